"""How many rows a step may have: proven by probing, for kernels of every temper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.backend import FloatRows
from models.cpu import linear
from models.cpu.backend import CpuBackend
from models.cpu.linear import PlainLinear
from models.cpu.rows import Probe, candidate_counts, probe_steps, proven_counts, runs
from models.protocol import CpuOptions

TOKENS = [11, 12, 13, 14, 15, 16, 17, 18]


def _kernel(rounding: Callable[[int, int], float]) -> Probe:
    """A step whose row holds its token, plus what `rounding` makes of (place, rows)."""

    def probe(tokens: Sequence[int]) -> FloatRows:
        rows = [[token + rounding(place, len(tokens))] for place, token in enumerate(tokens)]
        return np.array(rows, dtype=np.float32)

    return probe


def _proven(rounding: Callable[[int, int], float]) -> tuple[int, ...]:
    return proven_counts(_kernel(rounding), TOKENS, lambda: None)


def test_a_kernel_that_computes_each_row_alike_may_have_any_count() -> None:
    assert _proven(lambda place, rows: 0.5) == (1, 2, 3, 4, 5, 6, 7, 8)


def test_a_vector_kernel_for_one_row_is_left_out() -> None:
    assert _proven(lambda place, rows: 0.25 if rows == 1 else 0.5) == (2, 3, 4, 5, 6, 7, 8)


def test_a_kernel_that_blocks_by_the_count_keeps_the_full_count() -> None:
    assert _proven(lambda place, rows: float(rows)) == (8,)


def test_a_kernel_whose_edge_differs_is_never_given_two_rows() -> None:
    assert _proven(lambda place, rows: 0.25 if place == rows - 1 else 0.5) == (1,)


def test_one_slot_needs_one_row() -> None:
    assert proven_counts(_kernel(lambda place, rows: 0.0), TOKENS[:1], lambda: None) == (1,)


@given(st.integers(1, 70))
def test_counts_the_probe_steps_beforehand(slots: int) -> None:
    steps: list[None] = []
    proven_counts(_kernel(lambda place, rows: 0.0), range(slots), lambda: steps.append(None))
    assert len(steps) == probe_steps(slots)


@given(st.integers(1, 70))
def test_a_step_is_padded_by_an_eighth_at_most(slots: int) -> None:
    counts = candidate_counts(slots)
    for live in range(1, slots + 1):
        (_, count), *more = runs(live, counts)
        assert not more
        assert live <= count <= (live if live <= 16 else 1.125 * live)


@given(st.integers(1, 70), st.sets(st.integers(1, 16), min_size=1))
def test_runs_cover_every_row_once(live: int, counts: set[int]) -> None:
    covered: list[int] = []
    for rows, count in runs(live, sorted(counts)):
        assert count in counts
        part = range(live)[rows]
        assert 0 < len(part) <= count
        covered.extend(part)
    assert covered == list(range(live))


def test_the_guarantee_holds_without_the_packed_kernels(
    tiny_checkpoint: Callable[..., Path],
    load_cpu: Callable[..., Any],
    forced: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F.linear depends on the number of rows on many CPUs: then fewer counts are proven, and the bits still hold."""
    monkeypatch.setattr(linear, "linear_type", lambda dtype, weights: PlainLinear)
    directory = tiny_checkpoint("llama3", hidden_size=576, intermediate_size=1536, num_attention_heads=9,
                                num_key_value_heads=3, vocab_size=1000)  # fmt: skip
    loaded = load_cpu(directory, slots=6)
    prompt, tokens = [5, 6, 7], [1, 2, 3, 4]
    expected = forced(0, prompt, tokens)
    expected.start(loaded)
    while not expected.done:
        expected.scores.append(loaded.decode(expected.next)[0])
    for live in range(2, 7):
        sequences = [forced(slot, prompt, tokens) for slot in range(live)]
        for each in sequences:
            each.start(loaded)
        while not sequences[0].done:
            rows = loaded.decode(*[each.next for each in sequences])
            for each, row in zip(sequences, rows, strict=True):
                each.scores.append(row)
        for each in sequences:
            assert np.stack(each.scores).tobytes() == np.stack(expected.scores).tobytes()


class _LonelyLinear(PlainLinear):
    """A row alone is rounded another way, as by many a matrix-vector kernel; any others are computed alike."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([super(_LonelyLinear, self).__call__(row[None]) for row in x])
        return rows * (1 + 2**-18) if len(x) == 1 else rows


def test_a_row_alone_gets_company_where_kernels_compute_it_in_another_way(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    options = CpuOptions(slots=4, n_positions=96, chunk=8, dtype="float32", layout="fixed", threads=1)
    backend = CpuBackend(tiny_checkpoint("llama3"), options, _LonelyLinear)
    backend.stage(lambda *report: None)
    description = backend.load(lambda *report: None)
    assert backend._counts == (2, 3, 4)
    assert description.reuse == "tokens"
    prompt = [3, 1, 4, 1, 5]
    expected = backend.feed(0, prompt).rows
    backend.feed(1, prompt[:1], 0)
    backend.feed(1, prompt[1:4], 1)
    assert np.array_equal(backend.feed(1, prompt[4:], 4).rows, expected)
    assert np.array_equal(backend.feed(1, prompt[4:], 4, all_logits=True).rows, expected)
