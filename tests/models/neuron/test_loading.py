"""What loading takes of the host's memory, on a scaled-down model: layer by layer, nothing whole and nothing twice.

The library and the driver are the real ones; measure_loading.py keeps the emulator's device memory out of the count.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.spec import read_spec

MB = 1_000_000
LAYERS = 20
SHAPES = {
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
}
OPTIONS = {"slots": 2, "n_positions": 64, "context_buckets": [32], "token_buckets": [64], "compile": "if-missing"}
# What torch and the library take besides weights: graphs under construction, allocator.
BESIDES = 60 * MB


@pytest.fixture(scope="module")
def measure(emulated_worker: Any, tiny_checkpoint: Callable[..., Path], graph_store: Path) -> Callable[..., Any]:
    """measure(*flags, **options): the weights of SHAPES on two cores, in a process of its own."""
    directory = tiny_checkpoint("llama3", **SHAPES)
    # A freed block of more than 64 KB goes back to the system at once, so that what is counted is what is held.
    environment = {
        **os.environ,
        **emulated_worker.environment,
        "NEURONX_SERVE_CACHE": str(graph_store),
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }

    def run(*flags: str, **options: Any) -> Any:
        script = Path(__file__).with_name("measure_loading.py")
        command = [str(emulated_worker.python), str(script), str(directory), json.dumps({**OPTIONS, **options}), *flags]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    return run


@pytest.mark.long
@pytest.mark.parametrize("quant", ["none", "s8"])
def test_the_peak_is_a_few_layers_and_not_the_model(
    measure: Callable[..., Any], tiny_checkpoint: Callable[..., Path], quant: str
) -> None:
    """The bound is the sum by which docs/neuron.md counts the 16 GB of an inf2.xlarge."""
    spec = read_spec(tiny_checkpoint("llama3", **SHAPES))
    embedding = spec.vocab_size * spec.hidden_size
    layer = (spec.parameters() - 2 * embedding) // LAYERS
    weights = spec.weight_bytes(2)
    # The embedding table is float32 whatever the type; lm_head is transposed, padded and cut; a layer likewise, and in
    # int8 each of its matrices is float32 for a while.
    bound = 4 * embedding + 3 * 2 * embedding + 4 * 2 * layer + BESIDES
    assert bound < weights / 2

    measured = measure(amp="bf16", quant=quant)
    assert measured["layers"] == LAYERS
    assert measured["held_between_layers"] <= 4 * embedding
    assert 4 * embedding <= measured["peak"] < bound
    assert measured["left"] < 4 * embedding + BESIDES


@pytest.mark.long
def test_the_count_would_see_a_whole_model(measure: Callable[..., Any], tiny_checkpoint: Callable[..., Path]) -> None:
    """With the emulator's device memory in it, it does."""
    weights = read_spec(tiny_checkpoint("llama3", **SHAPES)).weight_bytes(2)
    assert measure("--with-device-memory", amp="bf16")["peak"] > weights
