"""The two ways in which a step attends: equal up to rounding, whatever rows are live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from models.cpu.attention import by_length, together
from models.cpu.cache import KvCache
from models.protocol import SlotInput
from models.spec import ModelSpec, read_spec

SLOTS, POSITIONS = 6, 96


@pytest.fixture(scope="module")
def spec(tiny_checkpoint: Callable[..., Path]) -> ModelSpec:
    return read_spec(tiny_checkpoint("llama3"))


@pytest.fixture
def cache(spec: ModelSpec) -> KvCache:
    cache = KvCache(spec, SLOTS, POSITIONS, torch.float32)
    for layer in cache.layers:
        layer.copy_(torch.randn(layer.shape, generator=torch.Generator().manual_seed(1)))
    return cache


@pytest.mark.parametrize(
    ("slots", "positions"),
    [
        ((0, 1, 2), (3, 70, 9)),
        ((2, 3, 4, 5), (0, 95, 63, 64)),
        ((4, 1, 3), (5, 6, 80)),  # out of order, with one idle between them
        ((5, 0), (10, 20)),  # far apart
        ((3,), (40,)),
    ],
)
def test_all_at_once_is_each_alone(
    cache: KvCache, spec: ModelSpec, slots: Sequence[int], positions: Sequence[int]
) -> None:
    live = [SlotInput(slot, 1, position) for slot, position in zip(slots, positions, strict=True)]
    queries = torch.randn(len(live), spec.heads, spec.head_dim, generator=torch.Generator().manual_seed(2))

    torch.testing.assert_close(together(cache, live)(1, queries), by_length(cache, live)(1, queries))


def test_what_a_slot_no_longer_holds_reaches_nobody(cache: KvCache, spec: ModelSpec) -> None:
    """A mask does not hide what is no number: a slot's earlier tokens are gone from the cache itself."""
    cache.fed(0, [1] * 50, 0)
    for layer in cache.layers:
        layer[0, :, :50] = float("nan")
    cache.fed(0, [2] * 10, 0)
    for layer in cache.layers:
        layer[0, :, :10] = 0.5
    live = [SlotInput(0, 1, 9), SlotInput(1, 1, 60)]

    assert together(cache, live)(0, torch.ones(2, spec.heads, spec.head_dim)).isfinite().all()
