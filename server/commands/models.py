"""`neuronx-serve models`: the configured models and what their directories lack."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.commands import settings_of
from server.settings import ModelSettings

DESCRIPTION = "List the configured models and what their directories lack."


def add_flags(parser: argparse.ArgumentParser) -> None:
    """None beyond --config."""


def run(arguments: argparse.Namespace) -> int:
    """Print each model with its device and what its directory lacks; 1 when one lacks something."""
    settings = settings_of(arguments)
    missing = {model.id: _missing(model) for model in settings.models}
    for model in settings.models:
        device = model.device.__struct_config__.tag
        state = f"lacks {', '.join(missing[model.id])}" if missing[model.id] else "complete"
        print(f"{model.id}\t{device}\t{model.path}\t{state}")
    return 1 if any(missing.values()) else 0


def _missing(model: ModelSettings) -> tuple[str, ...]:
    directory = Path(model.path)
    if not directory.is_dir():
        return ("the directory",)
    wanted = {name: (directory / name).is_file() for name in ("config.json", "tokenizer.json")}
    wanted["weights (*.safetensors or *.gguf)"] = any(
        any(directory.glob(f"*.{kind}")) for kind in ("safetensors", "gguf")
    )
    return tuple(name for name, there in wanted.items() if not there)
