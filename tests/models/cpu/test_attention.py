"""The two ways to attend, equal up to rounding, whatever rows are live and wherever a feed begins."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.cpu.attention_exact import EXACT
from models.cpu.attention_fast import _CALL_COST, FAST, _groups
from models.cpu.cache import KvCache
from models.protocol import SlotInput
from models.spec import ModelSpec, read_spec

SLOTS, POSITIONS = 6, 304


@pytest.fixture(scope="module")
def spec(tiny_checkpoint: Callable[..., Path]) -> ModelSpec:
    return read_spec(tiny_checkpoint("llama3"))


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def cache(request: pytest.FixtureRequest, spec: ModelSpec) -> KvCache:
    """Full of numbers."""
    cache = KvCache(spec, SLOTS, POSITIONS, request.param)
    for layer in cache.layers:
        layer.copy_(torch.randn(layer.shape, generator=torch.Generator().manual_seed(1)))
    return cache


@pytest.mark.parametrize(
    ("slots", "positions"),
    [
        ((0, 1, 2), (3, 70, 9)),
        ((2, 3, 4, 5), (0, 303, 63, 64)),
        ((1, 2, 3), (127, 128, 143)),  # one group, in one piece
        ((1, 2, 4), (127, 128, 144)),  # and in pieces
        ((3, 2, 1), (40, 41, 42)),
        ((4, 1, 3), (5, 6, 80)),  # out of order, with one idle between them
        ((5, 0), (10, 20)),
        ((0, 5, 4), (90, 1, 2)),
        ((3,), (40,)),
        ((3,), (300,)),
        ((5, 1), (300, 0)),  # each alone
    ],
)
def test_all_at_once_is_each_alone(
    cache: KvCache, spec: ModelSpec, slots: Sequence[int], positions: Sequence[int]
) -> None:
    live = [SlotInput(slot, 1, position) for slot, position in zip(slots, positions, strict=True)]
    queries = _queries(len(live), spec, cache)

    _assert_near(FAST.step(cache, live)(1, queries), EXACT.step(cache, live)(1, queries))


def test_slots_that_are_not_live_are_not_read(spec: ModelSpec) -> None:
    cache = KvCache(spec, 64, 96, torch.float32)
    slots = (63, 0, 1, 62)
    for layer in cache.layers:
        layer[:, 2:62] = float("nan")
        layer[:, list(slots)] = torch.randn(layer[:, list(slots)].shape, generator=torch.Generator().manual_seed(1))
    live = [SlotInput(slot, 1, 90) for slot in slots]
    queries = _queries(len(live), spec, cache)

    _assert_near(FAST.step(cache, live)(0, queries), EXACT.step(cache, live)(0, queries))


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 40).map(lambda blocks: 64 * blocks), min_size=1, max_size=7))
def test_no_other_groups_of_the_rows_are_cheaper(lengths: list[int]) -> None:
    def cost(groups: Sequence[Sequence[int]]) -> int:
        return sum(_CALL_COST + len(group) * max(lengths[row] for row in group) for group in groups)

    groups = _groups(lengths)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(group == sorted(group) for group in groups)
    # By descending length, some cut is the best one: swapping two rows across a cut never lowers a group's longest.
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    cuts = itertools.chain.from_iterable(
        itertools.combinations(range(1, len(lengths)), count) for count in range(len(lengths))
    )
    others = ([order[a:b] for a, b in itertools.pairwise((0, *cut, len(lengths)))] for cut in cuts)
    assert cost(groups) == min(map(cost, others))


def test_rows_of_one_length_are_one_group_in_their_own_order() -> None:
    assert _groups([128] * 5) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, 64), (0, 75), (3, 9), (60, 96), (64, 65), (0, 200), (120, 300)]
)
def test_a_feed_sees_what_came_before_each_token(cache: KvCache, spec: ModelSpec, start: int, stop: int) -> None:
    queries = _queries(stop - start, spec, cache)

    _assert_near(FAST.feed(cache, 2, start, stop)(1, queries), EXACT.feed(cache, 2, start, stop)(1, queries))


def test_what_a_slot_no_longer_holds_reaches_nobody(cache: KvCache, spec: ModelSpec) -> None:
    """A mask does not hide what is no number: a slot's earlier tokens are gone from the cache itself."""
    cache.fed(0, [1] * 50, 0)
    for layer in cache.layers:
        layer[:, 0, :, :50] = float("nan")
    cache.fed(0, [2] * 10, 0)
    for layer in cache.layers:
        layer[:, 0, :, :10] = 0.5
    live = [SlotInput(0, 1, 9), SlotInput(1, 1, 60)]

    assert FAST.step(cache, live)(0, _queries(2, spec, cache)).isfinite().all()


def _queries(rows: int, spec: ModelSpec, cache: KvCache) -> Tensor:
    return torch.randn(rows, spec.heads, spec.head_dim, generator=torch.Generator().manual_seed(2)).to(cache.dtype)


def _assert_near(left: Tensor, right: Tensor) -> None:
    """Scores of the fast way are rounded to the cache's dtype before the softmax."""
    tolerance = 1e-5 if left.dtype == torch.float32 else 3e-2
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
