"""A machine on which everything is as it should be, for tests to break in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from models.neuron.artifacts import Manifest, Toolchain, ingredients_of
from models.planner.shapes import published_spec
from models.protocol import CpuOptions, NeuronOptions
from server.doctor.capture import (
    Capture,
    Checkpoint,
    DeviceNode,
    Devices,
    DiskRead,
    Driver,
    Instance,
    Interpreter,
    Memory,
    NeuronDevice,
    Port,
    Store,
)
from server.doctor.examination import examine
from server.doctor.finding import Finding
from server.settings import ModelSettings, ServerSettings, Settings

GIB = 1024**3
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
# Neuron SDK 2.21.1, as the reference release manifest lists it.
NEURON_PACKAGES = {
    "msgspec": "0.19.0",
    "numpy": "1.26.4",
    "llguidance": "1.9.1",
    "torch": "2.5.1",
    "safetensors": "0.4.5",
    "transformers": "4.47.1",
    "accelerate": "1.2.0",
    "transformers-neuronx": "0.13.380",
    "torch-neuronx": "2.5.1.2.4.0",
    "neuronx-cc": "2.16.372.0+4a9b2326",
    "libneuronxla": "2.1.714.0",
}
SYSTEM_PACKAGES = {
    "aws-neuronx-dkms": "2.19.64.0",
    "aws-neuronx-runtime-lib": "2.23.112.0-9b5179492",
    "aws-neuronx-collectives": "2.23.135.0-3e70920f2",
}


def neuron_settings(**options: Any) -> Settings:
    device = NeuronOptions(**{"slots": 4, "n_positions": 4096, **options})
    model = ModelSettings(id=LLAMA, path="/models/llama", device=device)
    return Settings(models=(model,), server=ServerSettings(port=8080))


def healthy_capture(settings: Settings) -> Capture:
    spec = published_spec(LLAMA)
    assert spec is not None
    interpreter = Interpreter(
        "/opt/neuron/bin/python", "3.10.12", NEURON_PACKAGES, library="/opt/neuron/lib/transformers_neuronx"
    )
    stores = {}
    for model in settings.models:
        if isinstance(model.device, NeuronOptions):
            names = ("transformers-neuronx", "torch-neuronx", "libneuronxla", "neuronx-cc")
            toolchain = Toolchain({name: NEURON_PACKAGES[name] for name in names}, interpreter.library, {})
            made_of = ingredients_of(spec, model.device, toolchain)
            manifest = Manifest(
                format=1, key=made_of.key, model=LLAMA, created="", ingredients=dict(made_of.entries), files=()
            )
            stores[model.id] = Store("/artifacts", ((made_of.key, manifest),))
    return Capture(
        devices=Devices(
            nodes=(DeviceNode("/dev/neuron0", "root", "neuron", "crw-rw----", True),),
            listed=(NeuronDevice(0, 2, 32 * GIB, ()),),
        ),
        driver=Driver("2.19.64.0", "2.19.64.0"),
        system_packages=SYSTEM_PACKAGES,
        interpreters={"": interpreter},
        environment={"PATH": "/usr/bin"},
        memory=Memory(16 * GIB, 14 * GIB),
        disk=DiskRead("/models/llama/model.safetensors", 256_000_000, 1.0),
        port=Port(),
        instance=Instance("Amazon EC2", "inf2.xlarge", "us-east-1"),
        checkpoints={model.id: Checkpoint(model.path, 16 * GIB, (), spec) for model in settings.models},
        stores=stores,
    )


class Machine:
    """Settings and a healthy capture for them; `findings(change=...)` replaces parts of the capture."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.capture = healthy_capture(settings)

    def findings(self, **changes: Any) -> tuple[Finding, ...]:
        return examine(self.settings, dataclasses.replace(self.capture, **changes)).findings

    def troubles(self, **changes: Any) -> list[tuple[str, str]]:
        """(level, check) of everything that is not ok."""
        return [(found.level, found.check) for found in self.findings(**changes) if found.level != "ok"]

    def trouble(self, **changes: Any) -> Finding:
        """The one finding that is not ok."""
        (found,) = (found for found in self.findings(**changes) if found.level != "ok")
        return found


@pytest.fixture
def inf2() -> Machine:
    """An inf2.xlarge with Neuron SDK 2.21.1 that serves Llama 3 8B."""
    return Machine(neuron_settings())


@pytest.fixture
def inf2_with() -> Callable[..., Machine]:
    """inf2_with(**device options)."""
    return lambda **options: Machine(neuron_settings(**options))


@pytest.fixture
def laptop() -> Machine:
    """A machine without a Neuron device that serves on its CPU."""
    model = ModelSettings(id="small", path="/models/small", device=CpuOptions())
    machine = Machine(Settings(models=(model,)))
    machine.capture = dataclasses.replace(
        machine.capture,
        devices=Devices(),
        driver=Driver(),
        system_packages={},
        instance=Instance("LENOVO", ""),
        interpreters={"": Interpreter("/usr/bin/python3", "3.12.1", {
            "msgspec": "0.19.0", "numpy": "2.1.0", "llguidance": "1.9.1", "torch": "2.13.0", "safetensors": "0.5.0"})},
        checkpoints={"small": Checkpoint("/models/small", GIB // 2)},
    )  # fmt: skip
    return machine
