"""What all draws share: sums and picks, the order of keys, the largest entries, and where a share of weight ends."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.draws import NARROW, STRIDE, Numbers, mass_of, mean_of, pick
from models.selection import Ragged, group_size, largest, ranking, reach

Rows = npt.NDArray[np.float32]
INF = math.inf


def matrix(*rows: list[float]) -> Rows:
    return np.array(rows, dtype=np.float32)


@st.composite
def keys(draw: st.DrawFn, widths: st.SearchStrategy[int], count: int | None = None) -> Rows:
    """Rows with a highest entry of 0, ties in masses, entries that are out, all of any spread."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (count or draw(st.integers(1, 4)), draw(widths))
    values = random.normal(0.0, draw(st.sampled_from([0.0, 0.1, 3.0, 30.0])), shape)
    step = draw(st.sampled_from([0.0, 0.25, 2.0]))
    if step:
        values = np.round(values / step) * step
    values[random.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.99]))] = -INF
    values[:, random.integers(shape[1])] = draw(st.sampled_from([0.0, 5.0, 100.0]))
    return (values - values.max(axis=1, keepdims=True)).astype(np.float32)


# --- the numbers ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
def test_numbers_are_those_of_philox_wherever_they_jump(seed: int, indices: list[int]) -> None:
    numbers = Numbers(seed)

    found = [numbers.at(index) for index in indices]

    key = np.array([seed, 0], dtype=np.uint64)
    words = [int(np.random.Philox(key=key, counter=index).random_raw()) for index in indices]
    assert found == [(word >> 11) * 2.0**-53 for word in words]


# --- sums and picks -------------------------------------------------------------------------------------------------


def test_the_draw_inverts_the_cumulative_distribution_in_ascending_id() -> None:
    numbers = np.array([0.0, 0.2499, 0.25, 0.74, 0.75, 1 - 2**-53])
    weights = matrix(*[[1.0, 0.0, 2.0, 1.0]] * 6)

    assert pick(weights, numbers)[0].tolist() == [0, 0, 2, 2, 3, 3]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_draw_never_picks_what_weighs_nothing(data: st.DataObject) -> None:
    width = data.draw(st.one_of(st.integers(1, NARROW), st.sampled_from([5 * STRIDE, 8 * STRIDE])))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    weights = random.choice([0.0, 1e-30, 1e-3, 1.0], (3, width), p=data.draw(mixtures())).astype(np.float32)
    weights[:, random.integers(width)] = 1.0
    numbers = np.array([0.0, 1 - 2**-53, data.draw(st.floats(0, 1, exclude_max=True))])

    found, whole = pick(weights, numbers)

    assert whole.tolist() == mass_of(weights).tolist()
    for row, index in enumerate(found.tolist()):
        assert weights[row, index] > 0.0
        total = math.fsum(weights[row])
        assert whole[row] == pytest.approx(total, rel=1e-12)
        assert math.fsum(weights[row, :index]) <= numbers[row] * total + 1e-9 * total
        assert math.fsum(weights[row, : index + 1]) >= numbers[row] * total - 1e-9 * total


def mixtures() -> st.SearchStrategy[list[float]]:
    return st.sampled_from([[0.25] * 4, [0.99, 0.01, 0.0, 0.0], [0.9, 0.0, 0.1, 0.0]])


@settings(max_examples=50, deadline=None)
@given(keys(st.sampled_from([1, 700, NARROW, 5 * STRIDE, 16 * STRIDE, 251 * STRIDE]), count=5))
def test_sums_are_the_same_bits_alone_and_in_company(values: Rows) -> None:
    weights = np.exp(values)

    mass = mass_of(weights)
    mean = mean_of(values, weights, mass)

    for row in range(5):
        one = slice(row, row + 1)
        assert mass[one] == mass_of(weights[one])
        assert mean[one] == mean_of(values[one], weights[one], mass[one])
        assert mass[row] == pytest.approx(math.fsum(weights[row]), rel=1e-13)
        listed = np.flatnonzero(weights[row])
        products = weights[row, listed].astype(np.float64) * values[row, listed]
        assert mean[row] == pytest.approx(math.fsum(products) / mass[row], rel=1e-12, abs=1e-300)


@given(keys(st.integers(1, 300)), st.integers(1, 400))
def test_what_is_padded_changes_no_sum_of_a_narrow_row(values: Rows, more: int) -> None:
    weights = np.exp(values)
    wider = np.pad(weights, ((0, 0), (0, more)))

    assert mass_of(wider).tolist() == mass_of(weights).tolist()


# --- order ----------------------------------------------------------------------------------------------------------


@given(keys(st.integers(1, 300)))
def test_the_ranking_is_that_of_a_stable_sort(values: Rows) -> None:
    columns = ranking(values) - (np.arange(len(values)) * values.shape[1])[:, np.newaxis]

    assert columns.tolist() == np.argsort(-values, axis=1, kind="stable").tolist()


@settings(max_examples=200, deadline=None)
@given(keys(st.one_of(st.integers(1, 40), st.sampled_from([255, 1025, 4097]))), st.data())
def test_the_short_list_holds_the_largest_and_bounds_the_rest(values: Rows, data: st.DataObject) -> None:
    count, width = values.shape
    counts = np.array([data.draw(st.integers(1, width)) for _ in range(count)])

    with np.errstate(over="ignore"):  # as in the sampler: nothing is below the lowest number but -inf
        entries, bounds = largest(values, counts, group_size(width, int(counts.max())))

    listed = np.zeros(values.size, dtype=np.bool_)
    listed[entries.flat] = True
    listed = listed.reshape(values.shape)
    assert np.all(np.diff(entries.flat) > 0)
    assert listed.sum(axis=1).tolist() == entries.sizes.tolist()
    for row in range(count):
        assert entries.sizes[row] >= min(counts[row], (values[row] > -INF).sum())
        assert np.all(values[row, ~listed[row]] <= bounds[row])
        assert np.all(values[row, listed[row]] > bounds[row])


def test_ragged_rows_are_padded_to_a_width() -> None:
    entries = Ragged.where(np.array([[True, False, True], [False, False, False], [False, True, False]]))

    assert entries.rows().tolist() == [0, 0, 2]
    assert entries.padded(np.array([5, 6, 7]), 3, -1).tolist() == [[5, 6, -1], [-1, -1, -1], [7, -1, -1]]


# --- where a share ends ---------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    keys(st.one_of(st.integers(1, NARROW), st.integers(5, 80).map(lambda strides: strides * STRIDE))),
    st.lists(st.floats(1e-9, 1.0), min_size=4, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_the_border_is_where_the_running_weight_reaches_the_target(
    values: Rows, shares: list[float], backwards: bool, peaked: bool
) -> None:
    # The weights of keys that are distances do not follow them; and a lone heavy entry hides from any sample.
    weights = np.exp(values[:, ::-1].copy() if backwards else values) * (values > -INF)
    weights[np.arange(len(values)), values.argmax(axis=1)] += 1.0
    total = mass_of(weights)
    target = np.array(shares[: len(values)]) * total

    with np.errstate(over="ignore"):
        border = reach(values, weights, total, target, peaked)

    for row, (some, heavy) in enumerate(zip(values, weights, strict=True)):
        edge, slack = border.keys[row], 1e-9 * total[row]
        assert edge > -INF
        ahead, equal = heavy[some > edge].sum(dtype=np.float64), heavy[some == edge].astype(np.float64)
        assert ahead < target[row] + slack
        assert ahead + equal.sum() >= target[row] - slack
        if border.equals[row]:
            assert border.equals[row] < equal.size
            assert ahead + equal[: border.equals[row]].sum() >= target[row] - slack
            assert ahead + equal[: border.equals[row] - 1].sum() < target[row] + slack or border.equals[row] == 1
        one = slice(row, row + 1)
        with np.errstate(over="ignore"):
            alone = reach(values[one], weights[one], total[one], target[one], peaked)
        assert (alone.keys[0], alone.equals[0]) == (edge, border.equals[row])


def test_keys_that_are_all_one_are_told_apart_by_their_columns() -> None:
    values = np.zeros((2, 20 * STRIDE), dtype=np.float32)
    weights = np.ones_like(values)

    border = reach(values, weights, mass_of(weights), np.array([700.0, 20.0 * STRIDE]))

    assert border.keys.tolist() == [0.0, 0.0]
    assert border.equals.tolist() == [700, 0]
