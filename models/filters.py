"""Which tokens of whole rows top-k, top-p and typical-p leave, in TGI's order, and the draw among them.

Nothing is sorted but what `reach` must. Matrices are those of models/draws.py: float32 (rows, width), none above 0,
-inf what is out. Heads of rows, which are sorted, have the rules of models/heads.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.draws import LOWEST, NARROW, Asked, Choice, Doubles, Flags, Floats, Ids, mass_of, mean_of, pick, room, taken
from models.selection import group_size, kth, largest, ranking, reach


@dataclass(slots=True)
class Survivors:
    """What the filters have left of rows so far: `kept`, None for all that was in; the weights of others become 0."""

    values: Floats
    weights: Floats
    mass: Doubles | None  # None: not summed yet
    kept: Flags | None = None

    def keep(self, flags: Flags) -> None:
        self.weights *= flags
        self.mass = None
        self.kept = flags if self.kept is None else self.kept & flags

    def total(self) -> Doubles:
        """The weight of what is left of each row."""
        if self.mass is None:
            self.mass = mass_of(self.weights)
        return self.mass

    def listed(self, rows: Ids) -> Floats:
        """The values of these rows, -inf what is out."""
        if self.kept is None:
            return taken(self.values, rows)
        return np.where(self.kept[rows], self.values[rows], np.float32(-math.inf))


def survivors(values: Floats, weights: Floats, mass: Doubles, asked: Asked) -> Survivors:
    """What is left of rows that all have the same filters on. `weights` are the exponentials, `mass` their sums."""
    left = Survivors(values, weights, mass)
    if asked.top_k.any():
        # Every entry not below the k-th largest: ties at the border all stay (transformers' TopKLogitsWarper).
        border = np.where(asked.top_k > values.shape[1], LOWEST, np.maximum(kth(values, asked.top_k), LOWEST))
        left.keep(values >= border[:, np.newaxis])
    if (asked.top_p < 1.0).any():
        left.keep(_top_p(left, asked.top_p))
    if (asked.typical_p < 1.0).any():
        left.keep(typical(values, left.weights, left.total(), asked.typical_p))
    return left


def _top_p(left: Survivors, p: Doubles) -> Flags:
    """The smallest set of the most likely with a share of at least p, never empty (transformers' TopPLogitsWarper).

    Ties at the border are taken in ascending id, so that the set is one and the same everywhere.
    """
    mass = left.total()
    border = reach(left.values, left.weights, mass, p * mass)
    flags: Flags = left.values >= border.keys[:, np.newaxis]
    if (cut := np.flatnonzero(border.equals)).size:
        equal = left.values[cut] == border.keys[cut, np.newaxis]
        flags[cut] &= ~equal | (equal.cumsum(axis=1) <= border.equals[cut, np.newaxis])
    return flags


def typical(values: Floats, weights: Floats, mass: Doubles, p: Doubles) -> Flags:
    """Those whose surprise is nearest to the entropy, up to a share of p; ties at the border all stay.

    Locally typical sampling (arXiv:2202.00666), with the border of transformers' TypicalLogitsWarper. The distance of
    surprise and entropy is that of a value and the mean value.
    """
    mean = mean_of(values, weights, mass).astype(np.float32)
    nearness = np.subtract(mean[:, np.newaxis], values, out=room("nearness", *values.shape))
    nearness.view(np.uint32)[:] |= np.uint32(1 << 31)  # minus the distance, in one pass
    border = np.maximum(reach(nearness, weights, mass, p * mass, peaked=True).keys, LOWEST)
    flags: Flags = nearness >= border[:, np.newaxis]
    return flags


def draw(left: Survivors, asked: Asked, ids: Ids | None = None) -> list[Choice]:
    """One Choice a row among what is left of it, in ascending id; `ids` (rows, width) of the entries, None: columns."""
    index, mass = pick(left.weights, asked.number)
    every = np.arange(index.size)
    return choices(
        index if ids is None else ids[every, index],
        left.values[every, index],
        logs(mass),
        best(left.listed, asked, ids),
    )


# The best entries of rows by their index, best first, as (id, value).
Best = dict[int, list[tuple[int, float]]]


def best(listed: Callable[[Ids], Floats], asked: Asked, ids: Ids | None = None) -> Best:
    """The `top_n` largest of each row that asks for any, with all ties at the border. `listed` gives the values of rows
    of these indices, -inf what is out; `ids`: see draw."""
    if not asked.lists or not (asking := np.flatnonzero(asked.top_n)).size:
        return {}
    values, counts = listed(asking), asked.top_n[asking]
    names = None if ids is None else ids[asking]
    if values.shape[1] > NARROW:
        entries, _ = largest(values, counts, group_size(values.shape[1], int(counts.max())))
        width, columns = int(entries.sizes.max()), entries.flat - entries.rows() * values.shape[1]
        values = entries.padded(values.take(entries.flat), width, -math.inf)
        names = entries.padded(columns, width, 0)
    order = ranking(values)
    ranked = values.take(order)
    named = order % values.shape[1] if names is None else names.take(order)
    border = ranked[np.arange(asking.size), np.minimum(counts, ranked.shape[1]) - 1]
    sizes = (ranked >= np.maximum(border, LOWEST)[:, np.newaxis]).sum(axis=1)
    return {
        row: list(zip(some[:size].tolist(), best_values[:size].tolist(), strict=True))
        for row, some, best_values, size in zip(asking.tolist(), named, ranked, sizes.tolist(), strict=True)
    }


def choices(tokens: Ids, values: Floats | Doubles, log_mass: Sequence[float], best_of_rows: Best) -> list[Choice]:
    """Tokens and the best of rows, whose values become log-probabilities."""
    return [
        Choice(token, value - whole, tuple((each, best - whole) for each, best in best_of_rows.get(row, ())))
        for row, (token, value, whole) in enumerate(zip(tokens.tolist(), values.tolist(), log_mass, strict=True))
    ]


def logs(mass: Doubles) -> list[float]:
    return [math.log(each) for each in mass.tolist()]
