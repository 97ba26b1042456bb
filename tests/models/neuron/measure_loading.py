"""Loads a checkpoint on the emulator and says how much memory of the host the weights took on their way: JSON.

    python measure_loading.py DIRECTORY OPTIONS [--with-device-memory]     (options of NeuronOptions as JSON)

Run in the emulator's interpreter. What the emulator keeps in the place of device memory is put into mapped files, so
that the process's anonymous memory is the host's share: what the driver, the library and torch hold themselves.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import msgspec
import torch

from models.neuron.tnx import NeuronBackend
from models.protocol import NeuronOptions


class WeightsLoadedError(Exception):
    """The weights are on the device, and what comes next is not measured."""


class Peak:
    """Watches the anonymous memory of this process from a thread of its own."""

    def __init__(self) -> None:
        self.before = self.most = anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.001):
            self.most = max(self.most, anonymous_bytes())

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


def in_mapped_files() -> None:
    """Let the emulator keep its device tensors in files instead of anonymous memory."""
    from neuron_emulator.runtime import NeuronTensor

    def mapped(tensor: torch.Tensor) -> torch.Tensor:
        with tempfile.NamedTemporaryFile() as file:
            count = tensor.numel()
            memory = torch.from_file(file.name, shared=True, size=max(count, 1), dtype=tensor.dtype)
            return memory[:count].view(tensor.shape).copy_(tensor.detach())

    def to_device(tensors: list[torch.Tensor]) -> Any:
        return NeuronTensor([mapped(tensor) for tensor in tensors])

    torch.ops.neuron._parallel_to_neuron = to_device
    torch.ops.neuron._to_neuron = lambda tensor, ordinal: to_device([tensor])


def materialised_bytes(model: Any) -> int:
    """What the library holds of the checkpoint on the host."""
    parameters = model.chkpt_model.parameters()
    return sum(each.nbytes for each in parameters if not torch.nn.parameter.is_lazy(each))


def main(directory: Path, options: NeuronOptions, device_memory: bool) -> dict[str, Any]:
    backend = NeuronBackend(directory, options)
    backend.stage(lambda *report: None)
    if not device_memory:
        in_mapped_files()
    held: list[int] = []

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "compile":
            raise WeightsLoadedError
        if phase == "weights" and done:
            held.append(materialised_bytes(backend._model))

    peak = Peak()
    try:
        backend.load(progress)
    except Exception as error:
        if not isinstance(error.__cause__, WeightsLoadedError):
            raise
    peak.end()
    return {
        "peak": peak.most - peak.before,
        "left": anonymous_bytes() - peak.before,
        "held_between_layers": max(held),
        "layers": len(held),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.setdefault("NEURON_EMULATOR_CORES", "2")
    chosen = msgspec.convert({"kind": "neuron", **json.loads(sys.argv[2])}, NeuronOptions)
    print(json.dumps(main(Path(sys.argv[1]), chosen, "--with-device-memory" in sys.argv)))
