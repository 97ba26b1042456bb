"""Models as the registry holds them, with no worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models.protocol import DeviceOptions, SimulatedOptions
from server.observe.metrics import Metrics
from server.settings import ModelSettings, Settings
from server.swap.model import Model


@pytest.fixture
def make(tiny_text_directory: Path) -> Callable[..., Model]:
    """make(id, device=simulated, pinned=False) -> Model"""

    def model(name: str, device: DeviceOptions | None = None, pinned: bool = False) -> Model:
        device = device or SimulatedOptions()
        settings = ModelSettings(id=name, path=str(tiny_text_directory), device=device, pinned=pinned)
        return Model(settings, Settings(models=(settings,)), Metrics(), lambda: None)

    return model
