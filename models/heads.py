"""The likeliest tokens of rows, where they suffice: what most streams of a step spend their sampling on.

Heads are found at the speed of memory, whole rows at a time. What follows works on a few dozen numbers a row, where a
call of numpy costs more than its arithmetic: so all rows of a step share the calls. Heads are of different lengths and
are padded to the longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.draws import LOWEST, NARROW, Asked, Choice, Doubles, Flags, Floats, Ids
from models.filters import Survivors, draw, typical
from models.selection import Ragged, largest, ranking

# So many more than top-k are listed: of two neighbours on the border, tempering may make one number.
BEYOND = 16


@dataclass(frozen=True, slots=True)
class Unlisted:
    """What is known of the entries of each tempered row that its head leaves out, shape (rows,).

    None of them is above `bounds`; -inf: nothing that counts is left out. The weight of the whole row is `mass`, or
    lies between that and `most`; where top-k comes first, nobody asks.
    """

    bounds: Floats
    mass: Doubles
    most: Doubles | None = None


@dataclass(frozen=True, slots=True)
class Heads:
    """The likeliest entries of raw rows, one row after the other, in ascending id. `sizes`: how many are of each row;
    `highest` of each; no unlisted one is above `bounds`; `mass` of the whole row at its temperature, 0 for top-k."""

    ids: Ids
    values: Floats
    sizes: Ids
    highest: Floats
    bounds: Floats
    mass: Doubles

    @classmethod
    def joined(cls, heads: Sequence[Heads]) -> Heads:
        if len(heads) == 1:
            return heads[0]
        return cls(
            np.concatenate([each.ids for each in heads]),
            np.concatenate([each.values for each in heads]),
            np.concatenate([each.sizes for each in heads]),
            np.concatenate([each.highest for each in heads]),
            np.concatenate([each.bounds for each in heads]),
            np.concatenate([each.mass for each in heads]),
        )

    def of(self, rows: Flags) -> Heads:
        """The heads of these rows alone."""
        if rows.all():
            return self
        mine = np.repeat(rows, self.sizes)
        return Heads(
            self.ids[mine], self.values[mine], self.sizes[rows], self.highest[rows], self.bounds[rows], self.mass[rows]
        )


def heads_of(rows: Floats, highest: Floats, counts: Ids, size: int, mass: Doubles | None = None) -> Heads:
    """The `counts` likeliest of raw rows (rows, vocab_size), all of the group_size `size`, and their ties."""
    entries, bounds = largest(rows, counts, size)
    ids = entries.flat - np.repeat(np.arange(len(rows)) * rows.shape[1], entries.sizes)
    mass = np.zeros(len(rows)) if mass is None else mass
    return Heads(ids, rows.take(entries.flat), entries.sizes, highest, bounds, mass)


def few(heads: Heads) -> Flags:
    """Which heads are drawn from: all others would be padded to one whose ties are beyond measure."""
    found: Flags = heads.sizes <= NARROW
    return found


def reaching(heads: Heads, weights: Floats, top_p: Doubles) -> Flags:
    """Which heads come to a share of top-p; `weights` of the whole rows."""
    owners = np.repeat(np.arange(heads.sizes.size), heads.sizes)
    listed = np.bincount(owners, weights[owners, heads.ids], minlength=heads.sizes.size)
    found: Flags = listed >= top_p * heads.mass
    return found


def draw_heads(heads: Heads, asked: Asked) -> list[Choice | None]:
    """As draw_listed."""
    entries, width = Ragged(heads.ids, heads.sizes), int(heads.sizes.max())
    ids, values = entries.padded(heads.ids, width, 0), entries.padded(heads.values, width, -math.inf)
    temperature = asked.temperature
    values = (values - heads.highest[:, np.newaxis]) / temperature[:, np.newaxis]
    return draw_listed(ids, values, Unlisted((heads.bounds - heads.highest) / temperature, heads.mass), asked)


def draw_listed(ids: Ids, values: Floats, unlisted: Unlisted, asked: Asked) -> list[Choice | None]:
    """One Choice a row of (rows, longest head), what is padded -inf. None for a row that does not list all that its
    filters may keep: it is too short, or tempering made its last equal to an unlisted one."""
    places = ranking(values)
    weights, kept, decided = _ranked(values.take(places), unlisted, asked)
    left = Survivors(values, np.empty_like(values), None)
    left.weights.reshape(-1)[places] = weights
    if asked.lists:
        left.kept = np.empty(values.shape, dtype=np.bool_)
        left.kept.reshape(-1)[places] = kept
    if asked.typical:
        rows = np.flatnonzero(asked.typical_p < 1.0)
        near = values >= LOWEST
        near[rows] = typical(values[rows], left.weights[rows], left.total()[rows], asked.typical_p[rows])
        left.keep(near)
    drawn = draw(left, asked, ids)
    return [choice if sure else None for choice, sure in zip(drawn, decided.tolist(), strict=True)]


def _ranked(ranked: Floats, unlisted: Unlisted, asked: Asked) -> tuple[Floats, Flags, Flags]:
    """What top-k and top-p leave of rows in descending order, always their first few: the weights, 0 of the others;
    which are left; and which rows are decided.

    Top-k keeps all ties at its border. Top-p keeps those ahead of which less than its share lies, and the first;
    equals are in ascending id.
    """
    every, width = np.arange(len(ranked)), ranked.shape[1]
    top_k = asked.top_k
    cut = top_k > 0
    # Nothing that a row does not list may be as high as the last entry that is kept for sure.
    edge = np.where(cut, ranked[every, np.minimum(top_k, width) - 1], np.float32(-math.inf))
    kept = ranked >= edge[:, np.newaxis]
    weights = np.exp(ranked)
    weights *= kept
    decided = edge > unlisted.bounds
    if asked.nucleus:
        running = weights.astype(np.float64).cumsum(axis=1)
        listed = running[:, -1]
        target = asked.top_p * np.where(cut, listed, unlisted.mass)
        size = _reached(running, target)
        edge = np.where(cut, edge, ranked[every, size - 1])
        decided = (edge > unlisted.bounds) & (cut | (listed >= target))
        if unlisted.most is not None:
            most = asked.top_p * unlisted.most
            decided &= cut | ((listed >= most) & (_reached(running, most) == size))
        inside = np.arange(width) < size[:, np.newaxis]
        weights *= inside
        kept &= inside
    return weights, kept, decided | (unlisted.bounds == -math.inf)


def _reached(running: Doubles, targets: Doubles) -> Ids:
    """How many entries of each row have less than its target ahead of them, and the first."""
    size: Ids = (running[:, :-1] < targets[:, np.newaxis]).sum(axis=1) + 1
    return size
