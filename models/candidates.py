"""Answers from the K best of a row, where they provably are those of the whole row.

The K-th value bounds all that is unlisted, and the normaliser what it weighs; None where that does not decide.
"""

from __future__ import annotations

import math

import numpy as np

from models.draws import (
    NOT_FINITE,
    Choice,
    Doubles,
    Floats,
    Ids,
    Shortlist,
    best,
    draw,
    mass_of,
    normalised,
    survivors,
    tempered,
    weights_of,
)
from models.heads import Head, takes
from models.sequence_sampler import SequenceSampler, penalise

# What a device's float32 normaliser may be off by, relative; a decision that hangs on less needs the whole row.
_SLACK = 1e-4


def proven(ids: Ids, values: Floats, normaliser: float, sampler: SequenceSampler) -> Choice | Head | None:
    """The Choice that the whole row gives, or the head from which top-k draws it; None where these candidates do not
    prove it. `ids` and `values`: see models.backend.Candidates, one row. Does not advance the sampler."""
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
    likeliest = _head(ids[order], values[order], bound, sampler)
    if likeliest is None or takes(params):
        return likeliest
    listed = _tempered(likeliest, values[order], normaliser, sampler)
    left = survivors(listed, params)
    # Without a filter that cut the list down, the draw runs over the whole row.
    if left is None or not left.complete:
        return None
    return draw(left, sampler.uniform(), params.top_n_tokens)


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
    return Choice(int(ids[index]), float(values[index]) - normaliser, normalised(top, normaliser))


def _head(ids: Ids, values: Floats, bound: np.float32, sampler: SequenceSampler) -> Head | None:
    """Candidates in ascending id after their penalties; None where an unlisted token may be the highest."""
    if sampler.penalised:
        if not sampler.only_lowers:
            return None
        touched, counts = sampler.penalties()
        _, where, which = np.intersect1d(ids, touched, assume_unique=True, return_indices=True)
        values = values.copy()
        values[where] = penalise(values[where], counts[which], sampler.params)
    highest = float(values.max())
    return Head(ids, values, highest, float(bound)) if highest > bound else None


def _tempered(head: Head, raw: Floats, normaliser: float, sampler: SequenceSampler) -> Shortlist:
    """The head of a row, whose entries were `raw` before the penalties, at its temperature."""
    temperature = sampler.params.temperature
    values = tempered(head.values, head.highest, temperature)
    bound = float(tempered(np.array([head.bound], dtype=np.float32), head.highest, temperature)[0])
    mass = _mass_bounds(values, raw, normaliser, bound, sampler)
    possible = values > -math.inf
    return Shortlist(head.ids[possible], values[possible], weights_of(values[possible]), bound, mass)


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
