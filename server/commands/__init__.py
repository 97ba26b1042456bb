"""The subcommands, one module each, and what they share. A module has `add_flags(parser)` and `run(arguments)`."""

from __future__ import annotations

import argparse
import os
import sys

from server.configuration import load_settings
from server.settings import Settings


def flags_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The flags that stand for a variable, keyed by its name."""
    return {name: value for name, value in vars(arguments).items() if name.isupper() and value is not None}


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The configuration that --config, the environment and the flags make; ConfigurationError when it cannot work."""
    return load_settings(arguments.config, os.environ, flags_of(arguments))


def refuse(error: Exception, exit_code: int) -> int:
    """Say why on stderr; the exit code."""
    print(f"neuronx-serve: {error}", file=sys.stderr)
    return exit_code
