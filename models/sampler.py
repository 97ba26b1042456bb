"""Draws one token for each row of scores: penalties, filters, the draw, logprobs. Runs in the worker.

Knows no slot, no device and no text. The order of the processors is TGI's (wire contract, section 3): repetition
penalty, frequency penalty, presence penalty, grammar, temperature, top-k, top-p, typical-p, draw. Greedy rows take the
penalties and the grammar and nothing else. `logprob` is the log-softmax after all of them.

Rules, with their sources:

- repetition penalty over prompt and output: a positive logit is divided, a negative one multiplied (arXiv:1909.05858)
- frequency penalty: subtracts penalty * (times the token was generated); presence penalty: subtracts the penalty once
  for every token that was generated (the formula in OpenAI's API reference; both count the output only)
- a row is not finite when its highest logit is not: NaN anywhere, +inf anywhere, or -inf everywhere
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.backend import Candidates, Logits, Scores, TokenIds
from models.draws import (
    Doubles,
    Floats,
    Ids,
    Shortlist,
    best,
    heads,
    largest,
    mass_of,
    pick,
    positive,
    shortlists,
    survivors,
    tempered,
    uniform,
    weights_of,
)
from models.matcher import Matcher
from models.protocol import SamplingParams

# What a device's float32 normaliser may be off by, relative; a decision that hangs on less needs the whole row.
_SLACK = 1e-4


@dataclass(frozen=True, slots=True)
class Choice:
    """One drawn token. `top` is best first and holds all ties at its border, so it may be longer than asked for.

    A token that was sampled on the device has logprob 0.0, as in TGI's Neuron backend: its row was never seen.
    `finite` False: the row held no usable number, `token` is -1 and the sampler did not advance.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    finite: bool = True


NOT_FINITE = Choice(token=-1, logprob=0.0, finite=False)

# Asks for the whole rows of these indices, in this order: the same step once more, with nothing left out.
FullRows = Callable[[list[int]], Logits]


class SequenceSampler:
    """What sampling remembers of one sequence: how often each token occurred, and which draw comes next.

    `history` is the prompt, which only the repetition penalty reads. `emitted` are tokens that were drawn earlier
    (a replay): the next draw is number len(emitted). `matcher` has taken them already.
    """

    def __init__(
        self,
        params: SamplingParams,
        history: Sequence[int],
        emitted: Sequence[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        self.params = params
        self.matcher = matcher
        self.drawn = 0
        self.penalised = (
            params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        )
        self._counts: dict[int, int] = {}
        if self.penalised and params.repetition_penalty != 1.0:
            self._counts = dict.fromkeys(history, 0)
        for token in emitted:
            self._count(token)

    def advance(self, token: int) -> None:
        """Take `token` as the next one of the output."""
        self._count(token)
        if self.matcher is not None:
            self.matcher.advance(token)

    def _count(self, token: int) -> None:
        self.drawn += 1
        if self.penalised:
            self._counts[token] = self._counts.get(token, 0) + 1

    def penalties(self) -> tuple[Ids, Floats]:
        """(ids, counts): the tokens that the penalties touch, and how often each was generated (0: prompt only)."""
        size = len(self._counts)
        ids = np.fromiter(self._counts.keys(), dtype=np.int64, count=size)
        counts = np.fromiter(self._counts.values(), dtype=np.float32, count=size)
        return ids, counts

    @property
    def only_lowers(self) -> bool:
        """True when no penalty can raise a logit."""
        params = self.params
        return params.repetition_penalty >= 1.0 and params.frequency_penalty >= 0.0 and params.presence_penalty >= 0.0

    def uniform(self) -> float:
        """The random number of the next token."""
        return uniform(self.params.seed, self.params.choice, self.drawn)


def logprobs(rows: Floats, tokens: Sequence[int]) -> tuple[float, ...]:
    """Log-softmax of token i in row i of raw logits, float32 (len(tokens), vocab_size); NaN in a row that has NaN."""
    found = []
    for row, token in zip(rows, tokens, strict=True):
        values = tempered(row, float(row.max()), 1.0)
        found.append(float(values[token]) - math.log(mass_of(weights_of(values))))
    return tuple(found)


def sample(scores: Scores, samplers: Sequence[SequenceSampler], full: FullRows) -> list[Choice]:
    """One Choice a row, row i by samplers[i], which advances by that token.

    Rows are taken one by one, each vectorised over the vocabulary: what a filter leaves is of another length in each
    row, and so are the tokens that penalties touch, so that one array for all would be padded to the widest. A row
    costs 0.1 to 0.7 ms at 128,256 tokens (`python -m models.sampling_benchmark`).

    A row of Candidates is answered from them where that provably equals the whole row's answer; the others are asked
    for by one call of `full`, and drawn with the same random number.
    """
    match scores:
        case Logits():
            choices = [choose(row, sampler) for row, sampler in zip(scores.rows, samplers, strict=True)]
        case Candidates():
            choices = _from_candidates(scores, samplers, full)
        case TokenIds():
            choices = [Choice(int(token), 0.0) for token in scores.ids]
    for choice, sampler in zip(choices, samplers, strict=True):
        if choice.finite:
            sampler.advance(choice.token)
    return choices


def choose(row: Floats, sampler: SequenceSampler) -> Choice:
    """The token of one whole row, float32 (vocab_size,), which is not changed. Does not advance the sampler."""
    highest = float(row.max())
    if not math.isfinite(highest):
        return NOT_FINITE
    if sampler.penalised:
        row = _penalised(row, sampler)
        highest = float(row.max())
    if sampler.matcher is not None:
        row = np.where(sampler.matcher.allowed(row.size), row, np.float32(-math.inf))
        highest = float(row.max())
        if highest == -math.inf:  # the row itself has ruled out all that the grammar allows
            return NOT_FINITE
    params = sampler.params
    if not params.do_sample:
        return _greedy(row, highest, params)
    for listed in heads(row, highest, params):
        if (left := survivors(listed, params)) is not None:
            return _draw(left, sampler)
    values = tempered(row, highest, params.temperature)
    if not params.top_k and params.top_p >= 1.0 and params.typical_p >= 1.0:
        return _unfiltered(values, sampler)
    for listed in shortlists(values, params):
        if (left := survivors(listed, params)) is not None:
            return _draw(left, sampler)
    raise AssertionError("the last shortlist is complete, so the filters decide on it")


def _penalised(row: Floats, sampler: SequenceSampler) -> Floats:
    row = row.copy()
    ids, counts = sampler.penalties()
    row[ids] = penalise(row[ids], counts, sampler.params)
    return row


def penalise(logits: Floats, counts: Floats, params: SamplingParams) -> Floats:
    """The three penalties on the logits of tokens that occurred; `counts` says how often each was generated."""
    with np.errstate(over="ignore"):
        penalty = positive(params.repetition_penalty)
        moved = np.where(logits < 0, logits * penalty, logits / penalty)
        moved -= np.float32(params.frequency_penalty) * counts
        moved -= np.where(counts > 0, np.float32(params.presence_penalty), np.float32(0.0))
    # An absurd penalty may not turn a finite row into one without an answer; what was masked stays masked.
    limit = np.finfo(np.float32).max
    clipped: Floats = np.where(np.isneginf(logits), logits, np.clip(moved, -limit, limit))
    return clipped


def _greedy(row: Floats, highest: float, params: SamplingParams) -> Choice:
    values = tempered(row, highest, 1.0)
    log_mass = math.log(mass_of(weights_of(values)))
    token = int(row.argmax())
    return Choice(token, float(values[token]) - log_mass, _top_of_row(values, log_mass, params.top_n_tokens))


def _unfiltered(values: Floats, sampler: SequenceSampler) -> Choice:
    token, mass = pick(weights_of(values), sampler.uniform())
    log_mass = math.log(mass)
    return Choice(token, float(values[token]) - log_mass, _top_of_row(values, log_mass, sampler.params.top_n_tokens))


def _top_of_row(values: Floats, log_mass: float, count: int) -> tuple[tuple[int, float], ...]:
    if count == 0:
        return ()
    ids, bound = largest(values, count)
    top = best(ids, values[ids], bound, count)
    if top is None:
        raise AssertionError("a list of the largest `count` entries and their ties holds the best `count`")
    return _normalised(top, log_mass)


def _normalised(top: tuple[tuple[int, float], ...], log_mass: float) -> tuple[tuple[int, float], ...]:
    return tuple((token, value - log_mass) for token, value in top)


def _draw(left: Shortlist, sampler: SequenceSampler) -> Choice:
    """Draw among the survivors of the filters, in ascending id."""
    if sampler.params.top_n_tokens:
        left = left.gathered()
    index, mass = pick(left.weights, sampler.uniform())
    log_mass = math.log(mass)
    top = best(left.ids, left.values, left.bound, sampler.params.top_n_tokens) or ()
    return Choice(int(left.ids[index]), float(left.values[index]) - log_mass, _normalised(top, log_mass))


# --- candidates ---------------------------------------------------------------------------------------------------


def _from_candidates(scores: Candidates, samplers: Sequence[SequenceSampler], full: FullRows) -> list[Choice]:
    found = [
        _proven(ids, values, float(normaliser), sampler)
        for ids, values, normaliser, sampler in zip(
            scores.ids, scores.values, scores.normalisers, samplers, strict=True
        )
    ]
    missing = [row for row, choice in enumerate(found) if choice is None]
    if missing:
        rows = full(missing).rows
        for row, logits in zip(missing, rows, strict=True):
            found[row] = choose(logits, samplers[row])
    return [choice for choice in found if choice is not None]


def _proven(ids: Ids, values: Floats, normaliser: float, sampler: SequenceSampler) -> Choice | None:
    """The Choice that the whole row gives, or None where these candidates do not prove it."""
    if not (np.isfinite(values[0]) and math.isfinite(normaliser)) or np.isnan(values).any():
        return NOT_FINITE
    if sampler.matcher is not None:
        return None  # what a grammar allows is seldom among the likeliest
    bound = values.min()
    order = np.argsort(ids)
    order = order[values[order] > -math.inf]
    params = sampler.params
    if not params.do_sample:
        return _proven_greedy(ids[order], values[order], bound, normaliser, sampler)
    listed = _processed(ids[order], values[order], bound, normaliser, sampler)
    left = survivors(listed, params) if listed is not None else None
    # Without a filter that cut the list down, the draw runs over the whole row.
    return _draw(left, sampler) if left is not None and left.complete else None


def _proven_greedy(
    ids: Ids, values: Floats, bound: np.float32, normaliser: float, sampler: SequenceSampler
) -> Choice | None:
    """Argmax and best n of candidates in ascending id; a penalty would change a normaliser that is not ours."""
    index = int(values.argmax())
    if sampler.penalised or values[index] <= bound:
        return None
    top = best(ids, values, float(bound), sampler.params.top_n_tokens)
    if top is None:
        return None
    return Choice(int(ids[index]), float(values[index]) - normaliser, _normalised(top, normaliser))


def _processed(
    ids: Ids, values: Floats, raw_bound: np.float32, normaliser: float, sampler: SequenceSampler
) -> Shortlist | None:
    """Candidates in ascending id after penalties and temperature; None where an unlisted token may be the highest."""
    penalised = values
    if sampler.penalised:
        if not sampler.only_lowers:
            return None
        touched, counts = sampler.penalties()
        _, where, which = np.intersect1d(ids, touched, assume_unique=True, return_indices=True)
        penalised = values.copy()
        penalised[where] = penalise(values[where], counts[which], sampler.params)
    highest = float(penalised.max())
    if highest <= raw_bound:
        return None
    temperature = sampler.params.temperature
    processed = tempered(penalised, highest, temperature)
    bound = float(tempered(np.array([raw_bound], dtype=np.float32), highest, temperature)[0])
    mass = _mass_bounds(processed, values, normaliser, bound, sampler)
    possible = processed > -math.inf
    return Shortlist(ids[possible], processed[possible], weights_of(processed[possible]), bound, mass)


def _mass_bounds(
    processed: Floats, raw: Floats, normaliser: float, bound: float, sampler: SequenceSampler
) -> tuple[float, float]:
    """Bounds of the processed row's mass, from the raw row's normaliser.

    With nothing that counts unlisted it is the list's own. At temperature 1 the unlisted mass U is known. Below it,
    sum(w ** (1/T)) <= U * max(w) ** (1/T - 1), and no unlisted weight w exceeds the bound's. Above it, or under
    penalties, nothing here bounds it.
    """
    listed = mass_of(weights_of(processed))
    temperature = sampler.params.temperature
    if bound == -math.inf:
        return listed, listed
    if sampler.penalised or temperature > 1.0:
        return listed * (1.0 - _SLACK), math.inf
    total = math.exp(normaliser - float(raw.max()))
    weights: Doubles = np.exp(raw.astype(np.float64) - float(raw.max()))
    unlisted = max(total - float(weights.sum()), 0.0)
    if temperature == 1.0:
        return (listed + unlisted) * (1.0 - _SLACK), (listed + unlisted) * (1.0 + _SLACK)
    most = (unlisted + _SLACK * total) * math.exp(bound * (1.0 - temperature))
    return listed * (1.0 - _SLACK), (listed + most) * (1.0 + _SLACK)
