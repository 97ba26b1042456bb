"""How heads are cut over cores; the numbers are those of transformers-neuronx 0.13 (utils.get_qkv_padding)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from models.planner.sharding import Heads, core_kv_bytes_per_token, core_weight_bytes, sharded_heads
from models.protocol import NeuronOptions
from models.spec import ModelSpec


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tp_degree", "expected"),
    [
        # Llama 3 8B and Mistral 7B: even up to eight cores, replicated beyond.
        (32, 8, 1, Heads(32, 8)),
        (32, 8, 2, Heads(32, 8)),
        (32, 8, 8, Heads(32, 8)),
        (32, 8, 12, Heads(36, 36)),
        (32, 8, 24, Heads(48, 24)),
        (32, 8, 32, Heads(32, 32)),
        # CodeLlama 7B: keys and values for every head.
        (32, 32, 2, Heads(32, 32)),
        (32, 32, 12, Heads(36, 36)),
        (32, 32, 24, Heads(48, 48)),
        # A 70B, and SmolLM2.
        (64, 8, 12, Heads(72, 72)),
        (64, 8, 24, Heads(72, 24)),
        (9, 3, 2, Heads(10, 10)),
        (9, 3, 4, Heads(12, 4)),
        (9, 3, 8, Heads(16, 16)),
        (9, 3, 12, Heads(12, 12)),
    ],
)
def test_heads_are_padded_and_kv_heads_replicated_as_the_library_does(
    heads: int, kv_heads: int, tp_degree: int, expected: Heads
) -> None:
    assert sharded_heads(heads, kv_heads, tp_degree) == expected


@pytest.mark.parametrize(("tp_degree", "times"), [(1, 1), (2, 1), (8, 1), (12, 4.5), (24, 3)])
def test_a_degree_that_does_not_divide_the_kv_heads_multiplies_the_cache(
    specs: Mapping[str, ModelSpec], tp_degree: int, times: float
) -> None:
    spec = specs["llama3"]
    a_token = core_kv_bytes_per_token(spec, NeuronOptions(tp_degree=tp_degree)) * tp_degree
    assert a_token == times * spec.kv_bytes_per_token(2)


def test_int8_halves_the_layers_and_leaves_the_head(specs: Mapping[str, ModelSpec]) -> None:
    spec = specs["llama3"]
    whole, quantised = (core_weight_bytes(spec, NeuronOptions(quant=quant)) for quant in ("none", "s8"))
    head = spec.vocab_size * spec.hidden_size * 2 // 2
    norms = 65 * 4096 * 2
    assert (whole - head - norms) == 2 * (quantised - head - norms)


def test_float32_doubles_everything(specs: Mapping[str, ModelSpec]) -> None:
    spec = specs["codellama"]
    half, full = (core_weight_bytes(spec, NeuronOptions(amp=amp)) for amp in ("bf16", "f32"))
    assert full == 2 * half
