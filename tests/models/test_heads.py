"""Draws from the likeliest tokens of many rows: what does not hang on their company, and where they do not decide."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backend import Logits
from models.draws import Asked, Choice, Floats
from models.heads import BEYOND, Heads, draw_heads, heads_of
from models.protocol import SamplingParams
from models.sampler import sample
from models.selection import group_size
from models.sequence_sampler import SequenceSampler

INF = math.inf


def of(*values: float, bound: float = -INF, mass: float = 0.0) -> Heads:
    listed = np.array(values, dtype=np.float32)
    return Heads(
        ids=np.arange(listed.size) * 10,
        values=listed,
        sizes=np.array([listed.size]),
        highest=listed.max(keepdims=True),
        bounds=np.array([bound], dtype=np.float32),
        mass=np.array([mass]),
    )


def top_k(count: int, **others: float) -> SamplingParams:
    return SamplingParams(do_sample=True, top_k=count, **others)  # type: ignore[arg-type]


def drawn(heads: list[Heads], params: list[SamplingParams], numbers: list[float]) -> list[Choice | None]:
    asked = [(*SequenceSampler(each, ()).asked, number) for each, number in zip(params, numbers, strict=True)]
    with np.errstate(over="ignore"):
        return draw_heads(Heads.joined(heads), Asked.of(asked))


@st.composite
def heads(draw: st.DrawFn) -> tuple[Heads, SamplingParams, float]:
    """Of any length, with ties in masses, and a bound and a mass that may lie anywhere."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = np.round(random.normal(0.0, draw(st.sampled_from([0.5, 3.0, 60.0])), draw(st.integers(1, 300))), 1)
    params = top_k(
        draw(st.sampled_from([0, 1, 2, 5, 50, 256])),
        temperature=draw(st.sampled_from([1e-40, 0.3, 1.0, 1e5])),
        top_p=draw(st.sampled_from([1.0, 0.95, 0.5, 1e-9])),
        typical_p=draw(st.sampled_from([1.0, 1.0, 0.6])),
        top_n_tokens=draw(st.sampled_from([0, 3])),
    )
    bound = draw(st.sampled_from([-INF, float(values.min()), float(values.max())]))
    head = of(*values, bound=bound, mass=draw(st.sampled_from([1.0, 10.0, 1e9])))
    return head, params, draw(st.floats(0, 1, exclude_max=True))


@given(st.lists(heads(), min_size=2, max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_head_is_drawn_from_alike_alone_and_beside_longer_ones(
    batch: list[tuple[Heads, SamplingParams, float]],
) -> None:
    listed, params, numbers = (list(column) for column in zip(*batch, strict=True))

    together = drawn(listed, params, numbers)

    assert together == [drawn([h], [p], [n])[0] for h, p, n in batch]


def test_what_rounding_makes_equal_to_unlisted_tokens_is_not_decided() -> None:
    near, far = of(3.0, 1.0, bound=0.9999), of(10_000.0, 1.0, bound=0.9999)

    clear, tied = drawn([near, far], [top_k(2)] * 2, [0.0, 0.0])

    assert clear is not None
    assert clear.token == 0
    assert tied is None  # 10,000 below the highest, 1.0 and 0.9999 are one float32


@pytest.mark.parametrize(("mass", "decided"), [(1.49, True), (1.51, False)])
def test_a_nucleus_that_its_head_does_not_reach_is_not_decided(mass: float, decided: bool) -> None:
    head = of(0.0, math.log(0.35), bound=math.log(0.1), mass=mass)

    (choice,) = drawn([head], [top_k(0, top_p=0.9)], [0.9])

    assert (choice is not None) is decided


def test_a_nucleus_that_ends_in_a_tie_with_unlisted_tokens_is_not_decided() -> None:
    (tied,) = drawn([of(0.0, -1.0, bound=-1.0, mass=2.0)], [top_k(0, top_p=0.6)], [0.0])

    assert tied is None


def test_a_head_without_a_filter_that_cuts_it_is_not_decided() -> None:
    open_, typical, whole = drawn(
        [of(0.0, -1.0, bound=-2.0), of(0.0, -1.0, bound=-2.0), of(0.0, -1.0)],
        [top_k(0), top_k(0, typical_p=0.1), top_k(0)],
        [0.0] * 3,
    )

    assert open_ is None
    assert typical is None
    assert whole is not None


@pytest.mark.parametrize(("number", "token"), [(0.0, 10), (1 - 2**-53, 20)])
def test_no_number_draws_what_is_out_or_weighs_nothing(number: float, token: int) -> None:
    # The first is not among the best two; the others but these weigh 0 in float32.
    listed = [of(-9.0, 0.0, math.log(weight), -200.0, -100.0) for weight in np.linspace(0.1, 0.9, 500)]

    found = drawn(listed, [top_k(2)] * 500, [number] * 500)

    assert {choice.token for choice in found if choice is not None} == {token}


def test_a_survivor_that_weighs_nothing_is_listed_unless_top_p_is_on() -> None:
    listed = of(0.0, -200.0, -100.0)

    off, on = drawn([listed] * 2, [top_k(3, top_n_tokens=5), top_k(3, top_n_tokens=5, top_p=0.9)], [0.5] * 2)

    assert off is not None
    assert off.top == ((0, 0.0), (20, -100.0), (10, -200.0))
    assert on is not None
    assert on.top == ((0, 0.0),)


def test_the_likeliest_token_is_in_every_nucleus() -> None:
    (choice,) = drawn([of(1.0, 0.0)], [top_k(2, top_p=0.0)], [0.9])

    assert choice == Choice(0, 0.0)


def test_the_best_are_listed_with_the_ties_of_the_last() -> None:
    (choice,) = drawn([of(1.0, 0.0, 2.0, 1.0, 0.0)], [top_k(5, top_n_tokens=2)], [0.0])

    assert choice is not None
    assert [token for token, _ in choice.top] == [20, 0, 30]


@pytest.mark.parametrize("count", [1, 5, 50, 300])
@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.5])
def test_rows_without_ties_are_all_decided_by_their_heads(count: int, temperature: float) -> None:
    rows = np.random.default_rng(count).normal(3.0, 2.5, (40, 8192)).astype(np.float32)
    size = group_size(8192, count + BEYOND)
    found = heads_of(rows, rows.max(axis=1), np.full(40, count + BEYOND), size)

    choices = drawn([found], [top_k(count, temperature=temperature)] * 40, [0.5] * 40)

    assert None not in choices


def test_ties_beyond_measure_are_drawn_from_the_whole_row() -> None:
    rows: Floats = np.zeros((3, 5000), dtype=np.float32)
    rows[1, 7:12] = 1.0
    rows[2, :6] = np.arange(6)
    samplers = [SequenceSampler(top_k(5, top_n_tokens=2), ()) for _ in rows]

    flat, tied, clear = sample(Logits(rows), samplers, lambda _: pytest.fail("the rows are whole"))

    assert len(flat.top) == 5000
    assert [token for token, _ in tied.top] == [7, 8, 9, 10, 11]
    assert [token for token, _ in clear.top] == [5, 4]


@given(st.lists(st.integers(0, 400), max_size=100), st.lists(st.integers(0, 400), max_size=300))
def test_penalties_touch_prompt_and_output_and_count_the_output(prompt: list[int], output: list[int]) -> None:
    sampler = SequenceSampler(SamplingParams(repetition_penalty=1.1), prompt, output[:50])
    for token in output[50:]:
        sampler.advance(token)

    ids, counts = sampler.penalties()

    counted = Counter(output)
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {
        token: counted[token] for token in {*prompt, *output}
    }
