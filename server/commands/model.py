"""Which model a command is about: a configured one, or any checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from server.configuration import load_settings
from server.errors import ConfigurationError
from server.settings import ModelSettings


def chosen_model(config: Path | None, name: str, environment: Mapping[str, str]) -> tuple[ModelSettings, str]:
    """(model, interpreter of its worker) of an id, of a configured model's directory, or of any other directory."""
    settings = load_settings(config, environment, {})
    ids = [model.id for model in settings.models if name == model.id or _same_directory(name, model.path)]
    if not ids and not Path(name).expanduser().is_dir():
        known = ", ".join(model.id for model in settings.models)
        raise ConfigurationError(f"MODEL = {name!r}: neither a configured model ({known}) nor a directory")
    settings = load_settings(config, environment, {"MODEL_ID": ids[0] if ids else name})
    model = settings.models[0]
    return model, model.python or settings.worker.python


def _same_directory(name: str, path: str) -> bool:
    return Path(name).expanduser().absolute().resolve() == Path(path).resolve()
