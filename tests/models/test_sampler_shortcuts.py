"""Where the sampler looks at less than a whole row, or at a masked one: the answer is that of the plain way.

The plain way, a whole row without a grammar, is held to a reference in test_sampler.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backend import Candidates, Logits
from models.draws import Choice, Numbers
from models.matcher import Matcher
from models.protocol import SamplingParams
from models.sampler import sample
from models.sequence_sampler import SequenceSampler

Row = npt.NDArray[np.float32]


def plain(row: Row, params: SamplingParams, prompt: Sequence[int] = (), emitted: Sequence[int] = ()) -> Choice:
    sampler = SequenceSampler(params, prompt, emitted)
    (choice,) = sample(Logits(row[np.newaxis]), [sampler], lambda _: pytest.fail("the row is whole"))
    return choice


# --- candidates of a device, where they are so few that they hardly prove anything


def candidates(row: Row, count: int) -> Candidates:
    """The `count` best, descending, as a device gives them."""
    order = np.argsort(-row, kind="stable")[:count]
    exact = row.astype(np.float64)
    normaliser = exact.max() + np.log(np.exp(exact - exact.max()).sum())
    return Candidates(order[np.newaxis], row[order][np.newaxis], np.array([normaliser], np.float32))


def same_as_the_whole_row(
    row: Row, count: int, params: SamplingParams, prompt: Sequence[int] = (), emitted: Sequence[int] = ()
) -> None:
    sampler = SequenceSampler(params, prompt, emitted)
    (choice,) = sample(candidates(row, count), [sampler], lambda rows: Logits(row[np.newaxis][rows]))
    whole = plain(row, params, prompt, emitted)
    assert choice.token == whole.token
    assert choice.logprob == pytest.approx(whole.logprob, rel=1e-4, abs=1e-4)
    assert [token for token, _ in choice.top] == [token for token, _ in whole.top]


@pytest.mark.parametrize("temperature", [0.5, 0.9, 1.0, 1.1])
@settings(max_examples=100, deadline=None)
@given(row=st.integers(0, 2**32), count=st.integers(2, 30), top_p=st.floats(0.05, 0.99), seed=st.integers(0, 99))
def test_the_mass_that_is_not_listed_counts(temperature: float, row: int, count: int, top_p: float, seed: int) -> None:
    values = np.random.default_rng(row).normal(0.0, 1.5, 60).astype(np.float32)
    params = SamplingParams(do_sample=True, temperature=temperature, top_p=top_p, seed=seed, top_n_tokens=60)
    same_as_the_whole_row(values, count, params)


@settings(max_examples=200, deadline=None)
@given(
    row=st.integers(0, 2**32),
    penalties=st.sampled_from([(0.3, 0.0, 0.0), (1.0, -2.0, 0.0), (1.0, 0.0, -2.0), (3.0, 2.0, 2.0), (3.0, -2.0, 2.0)]),
    prompt=st.lists(st.integers(0, 19), max_size=8),
    emitted=st.lists(st.integers(0, 19), max_size=8),
    top_k=st.integers(0, 3),
    do_sample=st.booleans(),
)
def test_a_penalty_may_bring_up_what_is_not_listed(
    row: int,
    penalties: tuple[float, float, float],
    prompt: list[int],
    emitted: list[int],
    top_k: int,
    do_sample: bool,
) -> None:
    """One that raises a token which the device left out, or lowers all of those that it gave."""
    values = np.random.default_rng(row).normal(0.0, 1.0, 20).astype(np.float32)
    repetition, frequency, presence = penalties
    params = SamplingParams(
        do_sample=do_sample,
        top_k=top_k,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        seed=row,
        top_n_tokens=2,
    )
    same_as_the_whole_row(values, 4, params, prompt, emitted)


# --- masks


class Mask:
    """A grammar that allows the same tokens at every step."""

    def __init__(self, allowed: npt.NDArray[np.bool_]) -> None:
        self._allowed = allowed

    def allowed(self, size: int) -> npt.NDArray[np.bool_]:
        assert size == self._allowed.size
        return self._allowed

    def advance(self, token: int) -> None:
        assert self._allowed[token]


@settings(max_examples=200, deadline=None)
@given(
    row=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.95]),
    scale=st.sampled_from([1.0, 40.0]),
    size=st.sampled_from([7, 300, 2000]),
    filters=st.sampled_from([{}, {"top_k": 5}, {"top_p": 0.8}, {"typical_p": 0.5}, {"top_k": 50, "top_p": 0.5}]),
    temperature=st.sampled_from([0.01, 1.0, 3.0]),
    penalty=st.sampled_from([1.0, 1.5]),
    do_sample=st.booleans(),
)
def test_a_grammars_mask_is_as_if_the_model_had_ruled_the_rest_out(
    row: int,
    share: float,
    scale: float,
    size: int,
    filters: dict[str, Any],
    temperature: float,
    penalty: float,
    do_sample: bool,
) -> None:
    random = np.random.default_rng(row)
    values = random.normal(0.0, scale, size).astype(np.float32)
    allowed = random.random(size) < share
    allowed[int(values.argmin())] = True  # the least likely at least
    params = SamplingParams(
        do_sample=do_sample,
        temperature=temperature,
        repetition_penalty=penalty,
        frequency_penalty=penalty - 1.0,
        seed=row,
        top_n_tokens=3,
        **filters,
    )
    said = (0, 1, 1)
    sampler = SequenceSampler(params, said, said, cast(Matcher, Mask(allowed)))
    (choice,) = sample(Logits(values[np.newaxis]), [sampler], lambda _: pytest.fail("the row is whole"))
    assert choice == plain(np.where(allowed, values, np.float32(-np.inf)), params, said, said)
    assert allowed[choice.token]


# --- the numbers


def test_every_bit_of_a_seed_counts() -> None:
    numbers = [Numbers(1 << bit).at(0) for bit in range(64)]
    assert len({*numbers, Numbers(0).at(0)}) == 65
