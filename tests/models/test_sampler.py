"""Sampling: the rules of models/sampler.py, held against a plain reference over the whole vocabulary."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import sampler as sampler_module
from models.backend import Candidates, Logits, TokenIds
from models.draws import Choice, Numbers
from models.protocol import SamplingParams
from models.sampler import choose, sample
from models.sequence_sampler import SequenceSampler

Row = npt.NDArray[np.float32]
INF = math.inf
SINGLE = np.finfo(np.float32)


def row_of(*values: float) -> Row:
    return np.array(values, dtype=np.float32)


def no_full(rows: list[int]) -> Logits:
    raise AssertionError(f"the whole rows {rows} were asked for")


def draw(row: Row, params: SamplingParams, prompt: Sequence[int] = (), emitted: Sequence[int] = ()) -> Choice:
    (choice,) = sample(Logits(row[np.newaxis]), [SequenceSampler(params, prompt, emitted)], no_full)
    return choice


# --- the reference: one plain pass after the other, everything sorted ------------------------------------------


@dataclass
class Expected:
    token: int
    values: dict[int, float]  # of every survivor, after all processors
    log_total: float

    def logprob(self, token: int) -> float:
        return self.values[token] - self.log_total


def reference(row: Row, params: SamplingParams, prompt: Sequence[int], emitted: Sequence[int]) -> Expected:
    values = penalised_reference(row, params, prompt, emitted)
    if not params.do_sample:
        values = values - values.max()
        kept = [i for i, value in enumerate(values) if value > -INF]
        weights = np.exp(values)
        log_total = math.log(math.fsum(weights[kept]))
        return Expected(min(i for i in kept if values[i] == 0.0), {i: float(values[i]) for i in kept}, log_total)
    with np.errstate(over="ignore"):
        values = (values - values.max()) / np.clip(params.temperature, SINGLE.tiny, SINGLE.max).astype(np.float32)
    weights = np.exp(values)
    kept = [i for i in range(len(row)) if values[i] > -INF]
    if params.top_k and params.top_k < len(kept):
        kth = sorted((values[i] for i in kept), reverse=True)[params.top_k - 1]
        kept = [i for i in kept if values[i] >= kth]
    if params.top_p < 1.0:
        kept = nucleus_reference(kept, values, weights, params.top_p)
    if params.typical_p < 1.0:
        kept = typical_reference(kept, values, weights, params.typical_p)
    kept.sort()
    total = math.fsum(weights[kept])
    target = Numbers(params.seed).at(len(emitted)) * total
    running, token = 0.0, kept[-1]
    for i in kept:
        running += float(weights[i])
        if running > target:
            token = i
            break
    return Expected(token, {i: float(values[i]) for i in kept}, math.log(total))


def penalised_reference(row: Row, params: SamplingParams, prompt: Sequence[int], emitted: Sequence[int]) -> Row:
    values = row.copy()
    for token in set(prompt) | set(emitted):
        if params.repetition_penalty != 1.0:
            penalty = np.float32(params.repetition_penalty)
            values[token] = values[token] * penalty if values[token] < 0 else values[token] / penalty
    for token, count in Counter(emitted).items():
        values[token] -= np.float32(params.frequency_penalty) * np.float32(count)
        values[token] -= np.float32(params.presence_penalty)
    return values


def nucleus_reference(kept: list[int], values: Row, weights: Row, p: float) -> list[int]:
    """Most likely first, equals in ascending id, until the share before the next one reaches p."""
    total = math.fsum(weights[kept])
    nucleus: list[int] = []
    before = 0.0
    for i in sorted(kept, key=lambda i: (-values[i], i)):
        if nucleus and before >= p * total:
            break
        nucleus.append(i)
        before += float(weights[i])
    return nucleus


def typical_reference(kept: list[int], values: Row, weights: Row, p: float) -> list[int]:
    # The distance of surprise and entropy is that of a value and the mean value.
    total = math.fsum(weights[kept])
    mean = np.float32(math.fsum(float(weights[i]) * float(values[i]) for i in kept) / total)
    distance = {i: abs(mean - values[i]) for i in kept}
    reached, border = 0.0, np.float32(0.0)
    for i in sorted(kept, key=lambda i: (distance[i], i)):
        border = distance[i]
        reached += float(weights[i])
        if reached >= p * total:
            break
    return [i for i in kept if distance[i] <= border]


# --- rows that go wrong in every way ------------------------------------------------------------------------------

sizes = st.one_of(st.integers(1, 40), st.sampled_from([255, 257, 1025, 4097]))
temperatures = st.one_of(st.just(1.0), st.sampled_from([1e-40, 1e-6, 0.1, 0.7, 1.5, 1e4, 1e300]))


@st.composite
def rows(draw_: st.DrawFn, size: st.SearchStrategy[int] = sizes) -> Row:
    """Ties in masses (coarse steps), -inf entries, flat and peaked rows; always one finite entry."""
    random = np.random.default_rng(draw_(st.integers(0, 2**32)))
    n = draw_(size)
    values = random.normal(0.0, draw_(st.sampled_from([0.0, 0.5, 3.0, 30.0])), n)
    step = draw_(st.sampled_from([0.0, 0.25, 1.0]))
    if step:
        values = np.round(values / step) * step
    values[random.random(n) < draw_(st.sampled_from([0.0, 0.0, 0.3, 0.99]))] = -INF
    values[random.integers(n)] = draw_(st.sampled_from([0.0, 5.0, 100.0]))
    return values.astype(np.float32)


@st.composite
def sampling(draw_: st.DrawFn) -> SamplingParams:
    off_or = lambda off, *on: draw_(st.sampled_from([off, off, *on]))  # noqa: E731
    return SamplingParams(
        do_sample=draw_(st.sampled_from([True, True, True, False])),
        temperature=draw_(temperatures),
        top_k=off_or(0, 1, 2, 5, 50, 256, 300, 100_000),
        top_p=off_or(1.0, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.9999999),
        typical_p=off_or(1.0, 0.05, 0.5, 0.95),
        repetition_penalty=off_or(1.0, 0.8, 1.2, 5.0),
        frequency_penalty=off_or(0.0, -1.5, 0.7),
        presence_penalty=off_or(0.0, -1.0, 1.0),
        seed=draw_(st.integers(0, 2**64 - 1)),
        top_n_tokens=draw_(st.sampled_from([0, 1, 5])),
    )


@st.composite
def histories(draw_: st.DrawFn, vocabulary: int) -> tuple[list[int], list[int]]:
    tokens = st.lists(st.integers(0, vocabulary - 1), max_size=6)
    return draw_(tokens), draw_(tokens)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_the_plain_computation_over_the_whole_vocabulary(data: st.DataObject) -> None:
    row = data.draw(rows())
    params = data.draw(sampling())
    prompt, emitted = data.draw(histories(len(row)))

    choice = draw(row, params, prompt, emitted)

    expected = reference(row, params, prompt, emitted)
    assert choice.token == expected.token
    assert choice.logprob == pytest.approx(expected.logprob(choice.token), rel=1e-5, abs=1e-5)
    check_top(choice, expected, params.top_n_tokens)


def check_top(choice: Choice, expected: Expected, count: int) -> None:
    """The `count` best survivors and every tie of the last of them, best first, equals in ascending id."""
    order = sorted(expected.values, key=lambda i: (-expected.values[i], i))
    if count and len(order) > count:
        border = expected.values[order[count - 1]]
        order = [i for i in order if expected.values[i] >= border]
    assert [token for token, _ in choice.top] == (order if count else [])
    for token, logprob in choice.top:
        assert logprob == pytest.approx(expected.logprob(token), rel=1e-5, abs=1e-5)


@settings(max_examples=8, deadline=None)
@given(rows(st.sampled_from([70_001, 128_256])), sampling())
def test_equals_it_at_the_size_of_real_vocabularies(row: Row, params: SamplingParams) -> None:
    choice = draw(row, params)

    expected = reference(row, params, (), ())
    assert choice.token == expected.token
    assert choice.logprob == pytest.approx(expected.logprob(choice.token), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("filters", [{"top_p": 0.95}, {"typical_p": 0.9}, {"top_p": 0.9, "typical_p": 0.5}])
@pytest.mark.parametrize("deviation", [0.1, 3.0])
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_equals_it_where_most_of_a_real_vocabulary_survives(
    filters: dict[str, float], deviation: float, seed: int
) -> None:
    row = np.random.default_rng(seed).normal(0.0, deviation, 40_000).astype(np.float32)
    params = SamplingParams(do_sample=True, seed=seed, top_n_tokens=3, **filters)  # type: ignore[arg-type]

    choice = draw(row, params)

    expected = reference(row, params, (), ())
    assert choice.token == expected.token
    assert choice.logprob == pytest.approx(expected.logprob(choice.token), rel=1e-5, abs=1e-5)
    check_top(choice, expected, 3)


@pytest.mark.parametrize(
    ("temperature", "left"), [(1e5, 5000), (1e-40, 1)], ids=["all others tie", "all others are impossible"]
)
def test_equals_it_where_tempering_makes_one_of_many_values(temperature: float, left: int) -> None:
    row = (-1.0 + 6e-8 * np.random.default_rng(2).permutation(5000)).astype(np.float32)
    row[7] = 10_000.0
    params = SamplingParams(do_sample=True, temperature=temperature, top_k=2, top_n_tokens=2, seed=4)

    choice = draw(row, params)

    expected = reference(row, params, (), ())
    assert len(expected.values) == len(choice.top) == left
    assert choice.token == expected.token
    check_top(choice, expected, 2)


# --- greedy ---------------------------------------------------------------------------------------------------------


def test_greedy_takes_the_lowest_id_among_equals_and_ignores_the_filters() -> None:
    params = SamplingParams(do_sample=False, temperature=0.01, top_k=1, top_p=0.1)

    choice = draw(row_of(0.0, 2.0, 2.0, 1.0), params)

    assert choice.token == 1
    assert choice.logprob == pytest.approx(2.0 - math.log(1 + 2 * math.e**2 + math.e))


def test_penalties_apply_to_greedy_too() -> None:
    params = SamplingParams(repetition_penalty=3.0)

    assert draw(row_of(1.0, 2.0), params, prompt=(1,)).token == 0


# --- penalties ------------------------------------------------------------------------------------------------------


def test_repetition_penalty_counts_prompt_and_output_once_each_token() -> None:
    params = SamplingParams(repetition_penalty=2.0, top_n_tokens=3)

    choice = draw(row_of(4.0, -4.0, 1.0), params, prompt=(0, 0), emitted=(1, 0))

    logits = np.array([2.0, -8.0, 1.0])
    expected = logits - np.log(np.exp(logits).sum())
    assert dict(choice.top) == pytest.approx(dict(enumerate(expected)), rel=1e-5)


def test_frequency_and_presence_penalties_count_the_output_only() -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=1.0, top_n_tokens=3)

    choice = draw(row_of(4.0, 4.0, 4.0), params, prompt=(2, 2, 2), emitted=(0, 1, 1))

    logits = np.array([4.0 - 0.5 - 1.0, 4.0 - 1.0 - 1.0, 4.0])
    expected = logits - np.log(np.exp(logits).sum())
    assert dict(choice.top) == pytest.approx(dict(enumerate(expected)), rel=1e-5)


def test_a_sampled_token_is_penalised_in_the_next_step() -> None:
    sampler = SequenceSampler(SamplingParams(presence_penalty=10.0), history=())
    rows_ = Logits(np.array([[3.0, 2.0, 1.0]], dtype=np.float32))

    tokens = [sample(rows_, [sampler], no_full)[0].token for _ in range(3)]

    assert tokens == [0, 1, 2]


def test_an_absurd_penalty_leaves_a_finite_row() -> None:
    params = SamplingParams(repetition_penalty=1e-300)

    choice = draw(row_of(5.0, -5.0), params, prompt=(0, 1))

    assert choice.finite
    assert choice.token == 0


# --- filters --------------------------------------------------------------------------------------------------------


def survivors_of(row: Row, **filters: float) -> list[int]:
    choice = draw(row, SamplingParams(do_sample=True, top_n_tokens=len(row), **filters))  # type: ignore[arg-type]
    return sorted(token for token, _ in choice.top)


def test_top_k_keeps_every_tie_at_its_border() -> None:
    assert survivors_of(row_of(3.0, 1.0, 2.0, 2.0, 2.0), top_k=2) == [0, 2, 3, 4]


def test_top_p_keeps_the_smallest_set_that_reaches_it_and_breaks_ties_by_id() -> None:
    quarters = row_of(0.0, 0.0, 0.0, 0.0)

    assert survivors_of(quarters, top_p=0.5) == [0, 1]
    assert survivors_of(quarters, top_p=0.500001) == [0, 1, 2]
    assert survivors_of(quarters, top_p=1e-12) == [0]


def test_typical_p_prefers_the_expected_surprise_over_the_most_likely_token() -> None:
    row = np.log(np.array([0.5, 0.25, 0.1, 0.1, 0.05])).astype(np.float32)

    # The entropy is 1.29 nats; the surprise of 0.25 is 1.39, of 0.5 it is 0.69.
    assert survivors_of(row, typical_p=0.2) == [1]


def test_temperature_comes_before_the_filters() -> None:
    row = np.log(np.array([0.6, 0.4])).astype(np.float32)

    assert survivors_of(row, top_p=0.65) == [0, 1]
    assert survivors_of(row, top_p=0.65, temperature=0.5) == [0]


def test_masked_entries_are_never_drawn_and_never_listed() -> None:
    row = row_of(-INF, 1.0, -INF, 1.0)

    drawn = {draw(row, SamplingParams(do_sample=True, seed=seed)).token for seed in range(50)}

    assert drawn == {1, 3}
    assert survivors_of(row) == [1, 3]


def test_filters_equal_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    row = np.random.default_rng(5).normal(0.0, 2.0, 2000).astype(np.float32)
    prompt = (3, 7, 7, 1500)
    params = SamplingParams(
        do_sample=True, repetition_penalty=1.3, temperature=0.8, top_k=300, top_p=0.9, typical_p=0.8, top_n_tokens=2000
    )
    chain = [
        process.RepetitionPenaltyLogitsProcessor(1.3),
        process.TemperatureLogitsWarper(0.8),
        process.TopKLogitsWarper(300),
        process.TopPLogitsWarper(0.9),
        process.TypicalLogitsWarper(0.8),
    ]
    scores = torch.from_numpy(row.copy())[None]
    for processor in chain:
        scores = processor(torch.tensor([prompt]), scores)
    logprobs = torch.log_softmax(scores, -1)[0].numpy()

    choice = draw(row, params, prompt)

    expected = {int(i): float(logprobs[i]) for i in np.flatnonzero(np.isfinite(logprobs))}
    assert 10 < len(expected) < 300
    assert dict(choice.top) == pytest.approx(expected, rel=1e-4)


# --- the draw -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.999}])
def test_draws_follow_the_distribution(filters: dict[str, float]) -> None:
    probabilities = np.array([0.4, 0.3, 0.2, 0.06, 0.04])
    row = np.log(probabilities).astype(np.float32)
    params = SamplingParams(do_sample=True, seed=11, **filters)  # type: ignore[arg-type]
    sampler = SequenceSampler(params, history=())

    counts = Counter(sample(Logits(row[np.newaxis]), [sampler], no_full)[0].token for _ in range(5000))

    chi_square = sum((counts[i] - 5000 * p) ** 2 / (5000 * p) for i, p in enumerate(probabilities))
    assert chi_square < 18.5  # the 99.9 % quantile at 4 degrees of freedom


def test_numbers_depend_on_seed_and_index_alone() -> None:
    seen = {Numbers(seed).at(index) for seed in (0, 1, 2**64 - 1) for index in range(200)}

    assert len(seen) == 600
    assert all(0.0 <= number < 1.0 for number in seen)
    # Pinned: a server that is upgraded goes on with the same numbers.
    assert Numbers(42).at(0) == 0.8201981478608876
    assert Numbers(42).at(7) == 0.4074136540795371


@given(rows(st.integers(2, 600)), st.integers(0, 2**64 - 1), st.integers(0, 12))
@settings(max_examples=50, deadline=None)
def test_a_replayed_sequence_goes_on_with_the_same_tokens(row: Row, seed: int, cut: int) -> None:
    params = SamplingParams(do_sample=True, temperature=1.3, repetition_penalty=1.1, frequency_penalty=0.4, seed=seed)
    undisturbed = SequenceSampler(params, history=(1,))
    rows_ = Logits(row[np.newaxis])
    tokens = [sample(rows_, [undisturbed], no_full)[0].token for _ in range(12)]

    replayed = SequenceSampler(params, history=(1,), emitted=tokens[:cut])

    assert [sample(rows_, [replayed], no_full)[0].token for _ in range(cut, 12)] == tokens[cut:]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_all_kinds_of_rows_together_equal_the_reference_and_each_of_them_alone(data: st.DataObject) -> None:
    size = data.draw(sizes)
    batch = data.draw(st.lists(rows(st.just(size)), min_size=2, max_size=12))
    params = [data.draw(sampling()) for _ in batch]
    said = [data.draw(histories(size)) for _ in batch]
    broken = data.draw(st.sets(st.integers(0, len(batch) - 1), max_size=2))
    for row in broken:
        batch[row][data.draw(st.integers(0, size - 1))] = data.draw(st.sampled_from([INF, math.nan]))

    check_together(batch, params, said, broken)


@settings(max_examples=6, deadline=None)
@given(st.data())
def test_they_do_so_at_the_size_of_a_real_vocabulary(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([49_152, 50_257]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    batch = [data.draw(rows(st.just(size))) for _ in range(4)]
    batch += [random.normal(0.0, deviation, size).astype(np.float32) for deviation in (0.1, 2.5)]
    params = [data.draw(sampling()) for _ in batch]
    said = [data.draw(histories(size)) for _ in batch]

    check_together(batch, params, said, set())


def check_together(
    batch: list[Row], params: list[SamplingParams], said: list[tuple[list[int], list[int]]], broken: set[int]
) -> None:
    samplers = [SequenceSampler(p, *tokens) for p, tokens in zip(params, said, strict=True)]

    together = sample(Logits(np.stack(batch)), samplers, no_full)

    for row, (choice, values, asked, tokens) in enumerate(zip(together, batch, params, said, strict=True)):
        assert choice == draw(values, asked, *tokens)  # the same bits
        assert choice.finite is (row not in broken)
        if choice.finite:
            expected = reference(values, asked, *tokens)
            assert choice.token == expected.token
            assert choice.logprob == pytest.approx(expected.logprob(choice.token), rel=1e-5, abs=1e-5)
            check_top(choice, expected, asked.top_n_tokens)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_candidates_of_many_rows_are_answered_as_each_of_them_alone(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 400))
    batch = np.stack(data.draw(st.lists(rows(st.just(size)), min_size=2, max_size=6)))
    params = [data.draw(sampling()) for _ in batch]
    said = [data.draw(histories(size)) for _ in batch]
    count = data.draw(st.sampled_from([1, 4, 32, 128]))
    parts = [candidates_of(row, count) for row in batch]
    scores = Candidates(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.values for p in parts]),
        np.concatenate([p.normalisers for p in parts]),
    )

    samplers = [SequenceSampler(p, *tokens) for p, tokens in zip(params, said, strict=True)]
    together = sample(scores, samplers, lambda indices: Logits(batch[indices]))

    for row, (choice, part) in enumerate(zip(together, parts, strict=True)):
        sampler = SequenceSampler(params[row], *said[row])
        alone = sample(part, [sampler], lambda _, row=row: Logits(batch[row : row + 1]))  # type: ignore[misc]
        assert [choice] == alone


def test_rows_share_their_calls_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    for name in ("greedy", "unfiltered", "filtered", "heads_of", "draw_heads"):
        original = getattr(sampler_module, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(sampler_module, name, counted)
    ways = [
        {"do_sample": False},
        {"temperature": 0.7},
        {"top_k": 5, "top_p": 0.5},
        {"top_p": 0.5},
        {"typical_p": 0.5},
    ]
    params = [SamplingParams(**{"do_sample": True, **way}) for way in ways for _ in range(8)]  # type: ignore[arg-type]
    random = np.random.default_rng(1)
    scores = random.normal(0.0, 6.0, (len(params), 2000)).astype(np.float32)

    sample(Logits(scores), [SequenceSampler(each, ()) for each in params], no_full)

    assert calls == {"greedy": 1, "unfiltered": 1, "filtered": 1, "heads_of": 2, "draw_heads": 1}


def test_sampling_leaves_the_backends_rows_alone() -> None:
    rows_ = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32)
    before = rows_.copy()
    params = SamplingParams(do_sample=True, temperature=0.5, top_p=0.9, repetition_penalty=1.5, presence_penalty=1.0)

    sample(Logits(rows_), [SequenceSampler(params, (1, 2), (3,)) for _ in range(2)], no_full)

    assert np.array_equal(rows_, before)


# --- rows without an answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("broken", [(1.0, math.nan), (1.0, INF), (-INF, -INF)])
def test_a_row_that_is_not_finite_draws_nothing_and_does_not_advance(
    broken: tuple[float, float], do_sample: bool
) -> None:
    params = SamplingParams(do_sample=do_sample, top_p=0.9, seed=3)
    samplers = [SequenceSampler(params, ()) for _ in range(2)]

    spoiled, good = sample(Logits(np.array([broken, (0.0, 1.0)], dtype=np.float32)), samplers, no_full)

    assert (spoiled.finite, spoiled.token) == (False, -1)
    assert good.finite
    assert [sampler.drawn for sampler in samplers] == [0, 1]


def test_a_broken_candidate_row_draws_nothing() -> None:
    scores = Candidates(
        ids=np.array([[4, 2], [4, 2]]),
        values=np.array([[math.nan, 1.0], [2.0, 1.0]], dtype=np.float32),
        normalisers=np.array([2.5, math.nan], dtype=np.float32),
    )

    choices = sample(scores, [SequenceSampler(SamplingParams(), ()) for _ in range(2)], no_full)

    assert [choice.finite for choice in choices] == [False, False]


# --- candidates and device tokens -----------------------------------------------------------------------------------


def candidates_of(row: Row, count: int, shuffle: int = 0) -> Candidates:
    """The `count` best of a row, equals in any order, as a device returns them."""
    order = np.random.default_rng(shuffle).permutation(len(row))
    order = order[np.argsort(-row[order], kind="stable")][:count]
    peak = row.max()
    normaliser = peak + np.log(np.exp(row - peak).sum())
    return Candidates(order[np.newaxis].astype(np.int64), row[order][np.newaxis], np.array([normaliser], np.float32))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_candidates_give_what_the_whole_row_gives(data: st.DataObject) -> None:
    row = data.draw(rows(st.integers(1, 400)))
    params = data.draw(sampling())
    prompt, emitted = data.draw(histories(len(row)))
    scores = candidates_of(row, data.draw(st.sampled_from([1, 4, 32, 128])), data.draw(st.integers(0, 99)))
    sampler = SequenceSampler(params, prompt, emitted)

    (choice,) = sample(scores, [sampler], lambda indices: Logits(row[np.newaxis][indices]))

    whole = draw(row, params, prompt, emitted)
    assert choice.token == whole.token
    assert choice.logprob == pytest.approx(whole.logprob, rel=1e-4, abs=1e-4)
    assert [token for token, _ in choice.top] == [token for token, _ in whole.top]
    assert sampler.drawn == len(emitted) + 1


@pytest.mark.parametrize(
    ("params", "prompt"),
    [
        (SamplingParams(top_n_tokens=5), ()),
        (SamplingParams(do_sample=True, top_k=50, top_p=0.95, temperature=0.6, repetition_penalty=1.05), (3, 9)),
        (SamplingParams(do_sample=True, top_p=0.9), ()),
        (SamplingParams(do_sample=True, top_p=0.9, temperature=0.7), ()),
    ],
    ids=["greedy", "top-k with a penalty", "top-p", "top-p, colder"],
)
def test_candidates_suffice_for_the_usual_settings(params: SamplingParams, prompt: tuple[int, ...]) -> None:
    row = np.random.default_rng(1).normal(0.0, 3.0, 32_000).astype(np.float32)
    row[[5, 600, 31_000]] = 20.0, 19.0, 17.0

    (choice,) = sample(candidates_of(row, 256), [SequenceSampler(params, prompt)], no_full)

    assert choice.token == draw(row, params, prompt).token


def test_ties_at_the_border_that_are_not_all_listed_need_the_whole_row() -> None:
    row = row_of(1.0, 5.0, 1.0, 1.0)
    listed = np.array([[1, 2, 3]])
    scores = Candidates(listed, row[listed], np.log(np.exp(row).sum(keepdims=True)))
    params = SamplingParams(do_sample=True, top_p=0.96, top_n_tokens=4)

    (choice,) = sample(scores, [SequenceSampler(params, ())], lambda rows: Logits(row[np.newaxis]))

    assert [token for token, _ in choice.top] == [1, 0]


def test_only_the_rows_that_need_it_are_asked_for_in_one_call() -> None:
    peaked, flat = row_of(9.0, 1.0, 0.5, 0.0), row_of(1.0, 1.0, 1.0, 1.0)
    parts = [candidates_of(row, 2) for row in (flat, peaked, flat)]
    scores = Candidates(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.values for p in parts]),
        np.concatenate([p.normalisers for p in parts]),
    )
    asked: list[list[int]] = []

    def full(indices: list[int]) -> Logits:
        asked.append(indices)
        return Logits(np.stack([flat for _ in indices]))

    choices = sample(scores, [SequenceSampler(SamplingParams(), ()) for _ in range(3)], full)

    assert asked == [[0, 2]]
    assert [choice.token for choice in choices] == [0, 0, 0]


def test_tokens_sampled_on_the_device_pass_through_with_logprob_zero() -> None:
    sampler = SequenceSampler(SamplingParams(do_sample=True), ())

    assert sample(TokenIds(np.array([17])), [sampler], no_full) == [Choice(17, 0.0)]
    assert sampler.drawn == 1


def test_choose_does_not_advance() -> None:
    rows_ = row_of(0.0, 0.0)[np.newaxis]
    sampler = SequenceSampler(SamplingParams(do_sample=True, seed=1), ())

    assert choose(rows_, [sampler]) == choose(rows_, [sampler])
    assert sampler.drawn == 0


@pytest.mark.parametrize("samplers", [1, 3])
def test_rows_and_samplers_must_be_as_many(samplers: int) -> None:
    with pytest.raises(ValueError, match=f"2 rows for {samplers} samplers"):
        choose(np.zeros((2, 5), np.float32), [SequenceSampler(SamplingParams(), ())] * samplers)
