"""Answers from the K best of each row, where they provably are those of the whole row.

The K-th value bounds all that is unlisted, and the normaliser what it weighs; None where that does not decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.backend import Candidates
from models.draws import NARROW, NOT_FINITE, Choice, Floats, Ids
from models.filters import best, choices
from models.heads import Unlisted, draw_listed
from models.selection import kth
from models.sequence_sampler import SequenceSampler, asked_of, penalise, touched

# What a device's float32 normaliser may be off by, relative; a decision that hangs on less needs the whole row.
_SLACK = 1e-4


def proven(scores: Candidates, samplers: Sequence[SequenceSampler]) -> list[Choice | None]:
    """The Choice that each whole row gives, None where these candidates do not prove it. Advances no sampler."""
    found: list[Choice | None] = [None] * len(samplers)
    spoiled = ~np.isfinite(scores.values[:, 0]) | ~np.isfinite(scores.normalisers) | np.isnan(scores.values).any(axis=1)
    for row in np.flatnonzero(spoiled).tolist():
        found[row] = NOT_FINITE
    # What a grammar allows is seldom among the likeliest.
    usable = [row for row, each in enumerate(samplers) if found[row] is None and each.matcher is None]
    greedy = [row for row in usable if not samplers[row].params.do_sample]
    sampled = [row for row in usable if samplers[row].params.do_sample]
    for rows, draw in ((greedy, _greedy), (sampled, _sampled)):
        if rows:
            for row, choice in zip(rows, draw(_Listed.of(scores, rows), [samplers[row] for row in rows]), strict=True):
                found[row] = choice
    return found


@dataclass(frozen=True, slots=True)
class _Listed:
    """Candidates of some rows in ascending id, float32 (rows, K) raw logits; no unlisted one is above `bounds`."""

    ids: Ids
    values: Floats
    bounds: Floats
    normalisers: Floats

    @classmethod
    def of(cls, scores: Candidates, rows: Sequence[int]) -> _Listed:
        ids, values = scores.ids[rows, :NARROW], scores.values[rows, :NARROW]
        order = ids.argsort(axis=1)
        return cls(
            np.take_along_axis(ids, order, axis=1),
            np.take_along_axis(values, order, axis=1),
            values.min(axis=1),
            scores.normalisers[rows],
        )


def _greedy(listed: _Listed, samplers: Sequence[SequenceSampler]) -> list[Choice | None]:
    """Argmax and best n; a penalty would change a normaliser that is not ours."""
    asked = asked_of(samplers)
    index = listed.values.argmax(axis=1)[:, np.newaxis]
    highest = np.take_along_axis(listed.values, index, axis=1)
    penalised = np.array([each.penalised for each in samplers])
    relative, bounds = listed.values - highest, listed.bounds - highest[:, 0]
    decided = ~penalised & (bounds < 0.0)
    if asked.lists:
        border = kth(relative, np.maximum(asked.top_n, 1))
        enough = (asked.top_n <= relative.shape[1]) & (border > bounds)
        decided &= (asked.top_n == 0) | enough | (bounds == -math.inf)
    log_mass = listed.normalisers.astype(np.float64) - highest[:, 0]
    drawn = choices(
        np.take_along_axis(listed.ids, index, axis=1)[:, 0],
        np.zeros(len(samplers)),
        log_mass.tolist(),
        best(relative.__getitem__, asked, listed.ids),
    )
    return [choice if sure else None for choice, sure in zip(drawn, decided.tolist(), strict=True)]


def _sampled(listed: _Listed, samplers: Sequence[SequenceSampler]) -> list[Choice | None]:
    """What the heads of the rows give where no unlisted token may be the highest."""
    asked = asked_of(samplers)
    values = _penalised(listed, samplers)
    highest = values.max(axis=1)
    lowered = np.array([not each.penalised or each.only_lowers for each in samplers])
    enough = (asked.top_k <= values.shape[1]) | (listed.bounds == -math.inf)
    certain = lowered & (highest > listed.bounds) & enough
    tempered: Floats = (values - highest[:, np.newaxis]) / asked.temperature[:, np.newaxis]
    bounds: Floats = (listed.bounds - highest) / asked.temperature
    unlisted = _unlisted(listed, tempered, bounds, samplers)
    drawn = draw_listed(listed.ids, tempered, unlisted, asked)
    return [choice if sure else None for choice, sure in zip(drawn, certain.tolist(), strict=True)]


def _penalised(listed: _Listed, samplers: Sequence[SequenceSampler]) -> Floats:
    """The values after the penalties, which touch what is listed among others."""
    values: Floats = listed.values
    owners, ids, counts = touched(samplers)
    if not owners.size:
        return values
    # A token of a row is one number among those of all rows.
    apart = 1 + max(int(listed.ids.max()), int(ids.max()))
    named = (listed.ids + apart * np.arange(len(samplers))[:, np.newaxis]).reshape(-1)
    _, where, which = np.intersect1d(named, ids + apart * owners, assume_unique=True, return_indices=True)
    values = values.copy()
    some: Floats = values.reshape(-1)[where]
    values.reshape(-1)[where] = penalise(some, counts[which], owners[which], samplers)
    return values


def _unlisted(listed: _Listed, tempered: Floats, bounds: Floats, samplers: Sequence[SequenceSampler]) -> Unlisted:
    """Bounds of the processed rows' mass, from the raw rows' normalisers.

    With nothing that counts unlisted it is the list's own. At temperature 1 the unlisted mass U is known. Below it,
    sum(w ** (1/T)) <= U * max(w) ** (1/T - 1), and no unlisted weight w exceeds the bound's. Above it, or under
    penalties, nothing here bounds it.
    """
    temperature = np.array([each.params.temperature for each in samplers])
    penalised = np.array([each.penalised for each in samplers])
    mass = np.exp(tempered).astype(np.float64).cumsum(axis=1)[:, -1]
    highest = listed.values.max(axis=1).astype(np.float64)
    raw = np.exp(listed.values.astype(np.float64) - highest[:, np.newaxis]).cumsum(axis=1)[:, -1]
    total = np.exp(listed.normalisers.astype(np.float64) - highest)
    rest = np.maximum(total - raw, 0.0)
    colder = (rest + _SLACK * total) * np.exp(bounds.astype(np.float64) * (1.0 - temperature))
    plain = ~penalised & (temperature == 1.0)
    least = np.where(plain, mass + rest, mass) * (1.0 - _SLACK)
    most = np.where(plain, mass + rest, mass + colder) * (1.0 + _SLACK)
    most[penalised | (temperature > 1.0)] = math.inf
    whole = bounds == -math.inf
    return Unlisted(bounds, np.where(whole, mass, least), np.where(whole, mass, most))
