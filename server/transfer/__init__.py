"""Bringing checkpoints and compiled artifacts to this machine and away from it."""
