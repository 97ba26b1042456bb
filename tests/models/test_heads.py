"""The draws of many rows at once: what does not hang on a row's company, and where a head does not decide."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.draws import Choice, Floats
from models.heads import Head, draw_heads, head, takes
from models.protocol import SamplingParams
from models.sequence_sampler import SequenceSampler

INF = math.inf


def of(*values: float, bound: float = -INF) -> Head:
    listed = np.array(values, dtype=np.float32)
    return Head(np.arange(listed.size) * 10, listed, float(listed.max()), bound)


def top_k(count: int, **others: float) -> SamplingParams:
    return SamplingParams(do_sample=True, top_k=count, **others)  # type: ignore[arg-type]


@st.composite
def heads(draw: st.DrawFn) -> tuple[Head, SamplingParams, float]:
    """Of any length, with ties in masses, and a bound that may lie anywhere."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = np.round(random.normal(0.0, draw(st.sampled_from([0.5, 3.0, 60.0])), draw(st.integers(1, 300))), 1)
    params = top_k(
        draw(st.sampled_from([1, 2, 5, 50, 256])),
        temperature=draw(st.sampled_from([1e-40, 0.3, 1.0, 1e5])),
        top_p=draw(st.sampled_from([1.0, 0.95, 0.5, 1e-9])),
        top_n_tokens=draw(st.sampled_from([0, 3])),
    )
    bound = draw(st.sampled_from([-INF, float(values.min()), float(values.max())]))
    return of(*values, bound=bound), params, draw(st.floats(0, 1, exclude_max=True))


@given(st.lists(heads(), min_size=2, max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_head_is_drawn_from_alike_alone_and_beside_longer_ones(
    batch: list[tuple[Head, SamplingParams, float]],
) -> None:
    listed, params, numbers = (list(column) for column in zip(*batch, strict=True))

    together = draw_heads(listed, params, numbers)

    assert together == [draw_heads([h], [p], [n])[0] for h, p, n in batch]


def test_what_rounding_makes_equal_to_unlisted_tokens_is_not_decided() -> None:
    near, far = of(3.0, 1.0, bound=0.9999), of(10_000.0, 1.0, bound=0.9999)

    clear, tied = draw_heads([near, far], [top_k(2)] * 2, [0.0, 0.0])

    assert clear is not None
    assert clear.token == 0
    assert tied is None  # 10,000 below the highest, 1.0 and 0.9999 are one float32


def test_a_head_shorter_than_top_k_decides_only_where_nothing_is_unlisted() -> None:
    whole, part = draw_heads([of(3.0, 1.0), of(3.0, 1.0, bound=0.5)], [top_k(3, top_n_tokens=3)] * 2, [0.0, 0.0])

    assert part is None
    assert whole is not None
    assert [token for token, _ in whole.top] == [0, 10]


@pytest.mark.parametrize(("number", "token"), [(0.0, 10), (1 - 2**-53, 20)])
def test_no_number_draws_what_is_out_or_weighs_nothing(number: float, token: int) -> None:
    # The first is not among the best two; the others but these weigh 0 in float32.
    listed = [of(-9.0, 0.0, math.log(weight), -200.0, -100.0) for weight in np.linspace(0.1, 0.9, 500)]

    drawn = draw_heads(listed, [top_k(2)] * 500, [number] * 500)

    assert {choice.token for choice in drawn if choice is not None} == {token}


def test_a_survivor_that_weighs_nothing_is_listed_unless_top_p_is_on() -> None:
    listed = of(0.0, -200.0, -100.0)

    off, on = draw_heads([listed] * 2, [top_k(3, top_n_tokens=5), top_k(3, top_n_tokens=5, top_p=0.9)], [0.5] * 2)

    assert off is not None
    assert off.top == ((0, 0.0), (20, -100.0), (10, -200.0))
    assert on is not None
    assert on.top == ((0, 0.0),)


def test_the_likeliest_token_is_in_every_nucleus() -> None:
    (choice,) = draw_heads([of(1.0, 0.0)], [top_k(2, top_p=0.0)], [0.9])

    assert choice == Choice(0, 0.0)


def test_the_best_are_listed_with_the_ties_of_the_last() -> None:
    (choice,) = draw_heads([of(1.0, 0.0, 2.0, 1.0, 0.0)], [top_k(5, top_n_tokens=2)], [0.0])

    assert choice is not None
    assert [token for token, _ in choice.top] == [20, 0, 30]


@pytest.mark.parametrize("top_k_", [1, 5, 50, 300])
@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.5])
def test_rows_without_ties_are_all_decided_by_their_heads(top_k_: int, temperature: float) -> None:
    rows = np.random.default_rng(top_k_).normal(3.0, 2.5, (40, 8192)).astype(np.float32)
    found = [head(row, float(row.max()), top_k_) for row in rows]
    listed = [each for each in found if each is not None]
    assert len(listed) == 40

    drawn = draw_heads(listed, [top_k(top_k_, temperature=temperature)] * 40, [0.5] * 40)

    assert None not in drawn


def test_ties_beyond_measure_are_left_to_their_row() -> None:
    row: Floats = np.zeros(5000, dtype=np.float32)

    assert head(row, 0.0, 5) is None
    row[7:12] = 1.0
    found = head(row, 1.0, 5)
    assert found is not None
    assert found.ids.tolist() == [7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("params", "taken"),
    [(top_k(1), True), (top_k(5, top_p=0.5), True), (top_k(5, typical_p=0.5), False), (top_k(0, top_p=0.5), False)],
)
def test_only_top_k_makes_heads(params: SamplingParams, taken: bool) -> None:
    assert takes(params) is taken


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
