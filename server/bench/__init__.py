"""Measurement: the engine against a simulated device, a running server, and an exchange of models.

Every figure is defined where it is computed: `timeline.py` (steps), `streams.py` (what a client sees), `exchange.py`.
"""
