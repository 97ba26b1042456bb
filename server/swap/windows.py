"""Cuts the configured slots to their models' sliding windows, before anything is planned, limited or loaded by them.

Reads config.json. What a window means is models/planner/window.py; a worker cuts by the same rule.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from models.planner import within_window
from models.spec import ModelSpec, SpecError, read_spec
from server.settings import ModelSettings, Settings


def within_windows(settings: Settings) -> tuple[Settings, tuple[str, ...]]:
    """(settings, what was cut, in words). A model without a readable config.json is left as it is: it cannot load."""
    models, notes = [], []
    for model in settings.models:
        try:
            model, note = cut(model, read_spec(Path(model.path)))
        except SpecError:
            note = ""
        models.append(model)
        notes += [note] if note else []
    return replace(settings, models=tuple(models)), tuple(notes)


def cut(model: ModelSettings, spec: ModelSpec) -> tuple[ModelSettings, str]:
    """`model` within its sliding window, and what that changed; "" when nothing."""
    device = within_window(spec, model.device)
    if device is model.device:
        return model, ""
    note = (
        f"{model.id}: n_positions {model.device.n_positions} is cut to the model's sliding_window, "
        f"{device.n_positions}: beyond it, full attention is not what the model was trained for"
    )
    return replace(model, device=device), note
