"""A slot within its model's sliding window: there, and only there, full attention is what the model was trained for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.planner import within_window
from models.planner.shapes import published_spec
from models.protocol import CpuOptions, NeuronOptions, SimulatedOptions
from models.spec import ModelSpec

NEURON = NeuronOptions(n_positions=8192, context_buckets=(256, 1024, 6144), token_buckets=(1024, 8192))


def mistral(window: int | None) -> ModelSpec:
    """Mistral 7B: v0.1 has a window of 4096, v0.2 has none."""
    spec = published_spec("mistralai/Mistral-7B-Instruct-v0.2")
    assert spec is not None
    return replace(spec, sliding_window=window)


@pytest.mark.parametrize("window", [None, 8192, 32768])
@pytest.mark.parametrize("options", [NEURON, CpuOptions(n_positions=8192), SimulatedOptions(n_positions=8192)])
def test_options_that_stay_within_the_window_are_left_alone(
    window: int | None, options: NeuronOptions | CpuOptions | SimulatedOptions
) -> None:
    assert within_window(mistral(window), options) is options


def test_positions_and_buckets_end_at_the_window() -> None:
    cut = within_window(mistral(4096), NEURON)
    assert (cut.n_positions, cut.context_buckets, cut.token_buckets) == (4096, (256, 1024, 4096), (1024, 4096))
    assert within_window(mistral(4096), cut) is cut


def test_buckets_that_were_all_longer_become_one() -> None:
    cut = within_window(mistral(200), NEURON)
    assert (cut.context_buckets, cut.token_buckets) == ((200,), (200,))


def test_a_chunk_is_no_longer_than_the_slot() -> None:
    cut = within_window(mistral(100), CpuOptions(n_positions=8192, chunk=128))
    assert (cut.n_positions, cut.chunk) == (100, 100)
