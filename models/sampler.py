"""Draws one token for each row of scores: penalties, filters, the draw, logprobs. Runs in the worker.

Knows no slot, no device and no text. The order of the processors is TGI's (wire contract, section 3): repetition
penalty, frequency penalty, presence penalty, grammar, temperature, top-k, top-p, typical-p, draw. Greedy rows take the
penalties and the grammar and nothing else. `logprob` is the log-softmax after all of them.

A row is not finite when its highest logit is not: NaN anywhere, +inf anywhere, or -inf everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from models.backend import Candidates, Logits, Scores, TokenIds
from models.candidates import proven
from models.draws import (
    NOT_FINITE,
    Choice,
    Floats,
    best,
    draw,
    largest,
    likeliest,
    mass_of,
    normalised,
    pick,
    shortlists,
    survivors,
    tempered,
    weights_of,
)
from models.heads import Head, draw_heads, head, takes
from models.protocol import SamplingParams
from models.sequence_sampler import SequenceSampler, penalised

# Asks for the whole rows of these indices, in this order: the same step once more, with nothing left out.
FullRows = Callable[[list[int]], Logits]


def logprobs(rows: Floats, tokens: Sequence[int]) -> tuple[float, ...]:
    """Log-softmax of token i in row i of raw logits, float32 (len(tokens), vocab_size); NaN in a row that has NaN."""
    found = []
    for row, token in zip(rows, tokens, strict=True):
        values = tempered(row, float(row.max()), 1.0)
        found.append(float(values[token]) - math.log(mass_of(weights_of(values))))
    return tuple(found)


def sample(scores: Scores, samplers: Sequence[SequenceSampler], full: FullRows) -> list[Choice]:
    """One Choice a row, row i by samplers[i], which advances by that token.

    Rows are looked through one by one, each vectorised over the vocabulary. What top-k leaves of them is drawn from
    for all slots at once (models/heads.py); what other filters leave is of another length in each row, up to the whole
    vocabulary, and is drawn from row by row (models/draws.py).

    A row of Candidates is answered from them where that provably equals the whole row's answer; the others are asked
    for by one call of `full`, and drawn with the same random number.
    """
    match scores:
        case Logits():
            choices = choose(scores.rows, samplers)
        case Candidates():
            choices = _from_candidates(scores, samplers, full)
        case TokenIds():
            choices = [Choice(int(token), 0.0) for token in scores.ids]
    for choice, sampler in zip(choices, samplers, strict=True):
        if choice.finite:
            sampler.advance(choice.token)
    return choices


def choose(rows: Floats, samplers: Sequence[SequenceSampler]) -> list[Choice]:
    """The tokens of whole rows, float32 (rows, vocab_size), which are not changed. Does not advance the samplers."""
    found = [_choose(row, sampler) for row, sampler in zip(rows, samplers, strict=True)]
    drawn = _drawn(found, samplers)
    return [choice or _choose_alone(row, sampler) for choice, row, sampler in zip(drawn, rows, samplers, strict=True)]


def _from_candidates(scores: Candidates, samplers: Sequence[SequenceSampler], full: FullRows) -> list[Choice]:
    found = [
        proven(ids, values, float(normaliser), sampler)
        for ids, values, normaliser, sampler in zip(
            scores.ids, scores.values, scores.normalisers, samplers, strict=True
        )
    ]
    drawn = _drawn(found, samplers)
    missing = [row for row, choice in enumerate(drawn) if choice is None]
    if missing:
        whole = choose(full(missing).rows, [samplers[row] for row in missing])
        for row, choice in zip(missing, whole, strict=True):
            drawn[row] = choice
    return [choice for choice in drawn if choice is not None]


def _drawn(found: Sequence[Choice | Head | None], samplers: Sequence[SequenceSampler]) -> list[Choice | None]:
    """The choices among what was `found`, and those that its heads give; None where a head does not decide."""
    drawn = [each if isinstance(each, Choice) else None for each in found]
    heads = {row: each for row, each in enumerate(found) if isinstance(each, Head)}
    if heads:
        drawing = [samplers[row] for row in heads]
        params, numbers = [each.params for each in drawing], [each.uniform() for each in drawing]
        for row, choice in zip(heads, draw_heads(list(heads.values()), params, numbers), strict=True):
            drawn[row] = choice
    return drawn


def _choose(row: Floats, sampler: SequenceSampler) -> Choice | Head | None:
    """Its Choice, or the head that is left to be drawn from beside others; None where there is none that decides."""
    if not takes(sampler.params):
        return _choose_alone(row, sampler)
    row, highest = _processed(row, sampler)
    return head(row, highest, sampler.params.top_k) if math.isfinite(highest) else NOT_FINITE


def _choose_alone(row: Floats, sampler: SequenceSampler) -> Choice:
    """From the whole row, whatever its filters leave of it."""
    params = sampler.params
    row, highest = _processed(row, sampler)
    if not math.isfinite(highest):
        return NOT_FINITE
    if not params.do_sample:
        return _greedy(row, highest, params)
    for listed in likeliest(row, highest, params):
        if (left := survivors(listed, params)) is not None:
            return draw(left, sampler.uniform(), params.top_n_tokens)
    values = tempered(row, highest, params.temperature)
    if not params.top_k and params.top_p >= 1.0 and params.typical_p >= 1.0:
        return _unfiltered(values, sampler)
    for listed in shortlists(values, params):
        if (left := survivors(listed, params)) is not None:
            return draw(left, sampler.uniform(), params.top_n_tokens)
    raise AssertionError("the last shortlist is complete, so the filters decide on it")


def _processed(row: Floats, sampler: SequenceSampler) -> tuple[Floats, float]:
    """The row after penalties and grammar, and its highest entry: not finite where no token can be drawn."""
    highest = float(row.max())
    if not math.isfinite(highest):
        return row, highest
    if sampler.penalised:
        row = penalised(row, sampler)
        highest = float(row.max())
    if sampler.matcher is not None:
        row = np.where(sampler.matcher.allowed(row.size), row, np.float32(-math.inf))
        highest = float(row.max())  # -inf: the row itself has ruled out all that the grammar allows
    return row, highest


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
    return normalised(top, log_mass)
