"""The order of many rows at once, without sorting whole rows: the largest entries, and where a share of weight ends.

Keys are float32 (rows, width), none above 0; -inf is out. What is of another length in each row is padded with it.
A row's answer does not hang on its company: it is looked for by the row's own length, and equals are in ascending id.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from models.draws import LOWEST, NARROW, STRIDE, Doubles, Flags, Floats, Ids, mass_of, room

Number = TypeVar("Number", np.float32, np.int64)

SHORT = 256  # a head of so many is long enough for most nuclei
_GROUPS = (64, 32, 16, 8)
# `reach` sorts so many entries at most, and brackets what it looks for in longer rows by a sample of so many times
# their number's cube root squared, give or take so many standard deviations of a rank of the sample, and so many ranks.
_SORTED = 6144
_SAMPLE = 2.0
_DEVIATIONS, _RANKS = 2.5, 8
_SIDES = np.array([[-1], [1]])


def ranking(keys: Floats) -> Ids:
    """Where each row's keys lie in the flat matrix, in descending order, equals in ascending column."""
    # The bits of numbers of one sign are ordered as the numbers are. With the column below them one sort of integers,
    # which numpy vectorises, does what a stable argsort does several times slower.
    order: Ids = np.abs(keys).view(np.uint32).astype(np.int64)
    order <<= 32
    order |= np.arange(keys.shape[1])
    order.sort(axis=1)
    order &= 0xFFFF_FFFF
    if len(keys) > 1:
        order += (np.arange(len(keys)) * keys.shape[1])[:, np.newaxis]
    return order


@dataclass(frozen=True, slots=True)
class Ragged:
    """Entries of a matrix, row by row, in ascending column: their indices in it, laid out flat, and how many are of
    each row."""

    flat: Ids
    sizes: Ids

    @classmethod
    def where(cls, flags: Flags) -> Ragged:
        flat = np.flatnonzero(flags)  # numpy gathers by index several times faster than by mask
        if len(flags) == 1:
            return cls(flat, np.array([flat.size]))
        ends = flat.searchsorted(np.arange(len(flags) + 1) * flags.shape[1])
        return cls(flat, ends[1:] - ends[:-1])

    def rows(self) -> Ids:
        """The row of each entry."""
        return np.repeat(np.arange(self.sizes.size), self.sizes)

    def padded(self, entries: npt.NDArray[Number], width: int, fill: float) -> npt.NDArray[Number]:
        """Each row's of these entries, and `fill` up to so many columns."""
        count = self.sizes.size
        if entries.size == count * width:
            return entries.reshape(count, width)
        matrix = np.full((count, width), fill, dtype=entries.dtype)
        if count == 1:
            matrix[0, : entries.size] = entries
        else:
            matrix[np.arange(width) < self.sizes[:, np.newaxis]] = entries
        return matrix


def group_size(width: int, count: int) -> int:
    """Of how many entries `largest` takes the maximum first, to list `count` of a row; 1 where it is too short."""
    return next((size for size in _GROUPS if 4 * count * size <= width), 1)


def largest(values: Floats, counts: Ids, size: int) -> tuple[Ragged, Floats]:
    """(entries, bounds): at least the `counts` largest of each row with all their ties; all others are <= its bound,
    which is -inf where nothing but -inf is left out. `size`: the group_size of all rows or a smaller one.

    The count-th largest of the maxima of disjoint groups is at most the count-th largest entry, so everything from
    there up is a superset, found without sorting the row.
    """
    groups = values.shape[1] // size
    maxima = values
    if size > 1:
        maxima = values[:, : groups * size].reshape(len(values), size, groups).max(axis=1)
    thresholds = np.maximum(kth(maxima, counts), LOWEST)
    bounds = np.nextafter(thresholds, np.float32(-math.inf))
    return Ragged.where(values >= thresholds[:, np.newaxis]), bounds


def kth(values: Floats, counts: Ids) -> Floats:
    """The `counts`-th largest value of each row, -inf where it has fewer; the lowest for a count beyond its width."""
    width = values.shape[1]
    places = width - np.minimum(counts, width)
    ordered = np.partition(values, sorted(set(places.tolist())), axis=1)
    found: Floats = ordered[np.arange(len(values)), places]
    return found


@dataclass(frozen=True, slots=True)
class Border:
    """Where the entries of each row end that a share is reached with: the last one's `keys`. `equals`: how many of
    those with this key are among them, in ascending column; 0 for all."""

    keys: Floats
    equals: Ids


@dataclass(slots=True)
class _Rest:
    """Rows in which `reach` still looks; `rows` says which they are. `keys` and `weights` are those that are left,
    `sizes` their number, `total` their weight, `needed` what of it lies ahead of the border. `missed`: the last bracket
    did not hold the border."""

    rows: Ids
    keys: Floats
    weights: Floats
    sizes: Ids
    total: Doubles
    needed: Doubles
    missed: Flags

    def at(self, rows: Ids, width: int) -> _Rest:
        if rows.size == self.rows.size and width == self.keys.shape[1]:
            return self
        return _Rest(
            self.rows[rows],
            self.keys[rows, :width],
            self.weights[rows, :width],
            self.sizes[rows],
            self.total[rows],
            self.needed[rows],
            self.missed[rows],
        )


def reach(keys: Floats, weights: Floats, total: Doubles, target: Doubles, peaked: bool = False) -> Border:
    """Going down from the highest of each row's keys, the last entry that has less than `target` of weight ahead of
    it, and the first at least. `total` is the weight of all of a row; `peaked`: a few may come to the target.

    Floyd and Rivest's SELECT (1975) with weights for counts: a sample brackets the border, a pass tells whether it
    lies above the bracket, inside or below, and only the last few entries are sorted. Where heavy entries misled
    the sample, the bracket is its median: that halves what is left whatever weighs how much.
    """
    count, width = keys.shape
    found = Border(np.empty(count, dtype=np.float32), np.zeros(count, dtype=np.int64))
    every = np.arange(count)
    rest = _Rest(every, keys, weights, np.full(count, width), total, target, np.zeros(count, dtype=np.bool_))
    if width <= _SORTED:
        _sort_out(rest, found)
        return found
    if peaked and (rest.needed <= _SORTED).any():  # as no weight is above 1
        rest = _short_ones_out(rest, found)
    while rest.rows.size:
        before = rest.sizes
        rest = _narrowed(rest)
        done = (rest.sizes <= _SORTED) | (rest.sizes == before)  # or all keys are one and the same
        if (which := np.flatnonzero(done)).size:
            _sort_out(rest.at(which, int(rest.sizes[which].max())), found)
            rest = rest.at(np.flatnonzero(~done), rest.keys.shape[1])
    return found


def _sort_out(rest: _Rest, found: Border) -> None:
    """Sort what is left of these rows, and put down where their borders are."""
    every = np.arange(rest.rows.size)
    order = ranking(rest.keys)
    ranked, ordered = rest.keys.take(order), rest.weights.take(order).astype(np.float64)
    ahead = ordered.cumsum(axis=1)
    ahead -= ordered
    within = (ahead < rest.needed[:, np.newaxis]).sum(axis=1)
    within = np.minimum(np.maximum(within, 1), (ranked >= LOWEST).sum(axis=1))
    border = ranked[every, within - 1]
    found.keys[rest.rows] = border
    cut = (within < ranked.shape[1]) & (ranked[every, np.minimum(within, ranked.shape[1] - 1)] == border)
    if cut.any():
        found.equals[rest.rows] = np.where(cut, within - (ranked > border[:, np.newaxis]).sum(axis=1), 0)


def _short_ones_out(rest: _Rest, found: Border) -> _Rest:
    """Put down the borders of rows whose few highest keys come to what is needed; the others are left."""
    count, width = rest.keys.shape
    entries, _ = largest(rest.keys, np.full(count, SHORT), group_size(width, SHORT))
    weights = rest.weights.take(entries.flat)
    total = np.bincount(entries.rows(), weights, minlength=count)
    short = (total >= rest.needed) & (entries.sizes <= _SORTED)
    if short.any():
        width = int(entries.sizes.max())
        keys = entries.padded(rest.keys.take(entries.flat), width, -math.inf)
        heads = replace(rest, keys=keys, weights=entries.padded(weights, width, 0.0), sizes=entries.sizes)
        which = np.flatnonzero(short)
        _sort_out(heads.at(which, int(entries.sizes[which].max())), found)
    return rest.at(np.flatnonzero(~short), rest.keys.shape[1])


def _narrowed(rest: _Rest) -> _Rest:
    """One turn of `reach`: the part of each row that holds its border."""
    low, high = _brackets(rest)
    above = rest.keys > high
    left = rest.keys >= low
    left ^= above
    over = mass_of(np.multiply(rest.weights, above, out=room("product", *above.shape)))
    up = over >= rest.needed
    if up.any():
        left[up] = above[up]
    entries = Ragged.where(left)
    weights = rest.weights.take(entries.flat)
    total = np.asarray(np.bincount(entries.rows(), weights, minlength=rest.rows.size), dtype=np.float64)
    needed = rest.needed - over * ~up
    down = ~up & (total < needed)
    if down.any():
        below = (rest.keys < low) & (rest.keys >= LOWEST)
        down &= below.any(axis=1)
        needed[down] -= total[down]
        total[down] = (rest.total - over - total)[down]
        left[down] = below[down]
        entries = Ragged.where(left)
        weights = rest.weights.take(entries.flat)
    width = int(entries.sizes.max())
    if width > NARROW:
        width = -(-width // STRIDE) * STRIDE
    keys = entries.padded(rest.keys.take(entries.flat), width, -math.inf)
    return _Rest(rest.rows, keys, entries.padded(weights, width, 0.0), entries.sizes, total, needed, up | down)


def _brackets(rest: _Rest) -> Floats:
    """(low, high) keys, shape (2, rows, 1), between which the running weight from the lowest up most likely comes to
    what lies behind the border, by a sample; twice the sample's median where the last one missed. From the lowest,
    since a few heavy entries hide from a sample: they are high."""
    strides = (np.cbrt(rest.sizes) / _SAMPLE).astype(np.int64)
    taken = -(-rest.sizes // strides)
    if (strides == strides[0]).all():
        picked = np.s_[:, : int(rest.sizes.max()) : int(strides[0])]
        keys, weights = rest.keys[picked].copy(), rest.weights[picked].copy()
    else:
        picks = np.arange(taken.max()) * strides[:, np.newaxis]
        beyond = picks >= rest.sizes[:, np.newaxis]
        picks[beyond] = 0
        keys, weights = np.take_along_axis(rest.keys, picks, axis=1), np.take_along_axis(rest.weights, picks, axis=1)
        keys[beyond], weights[beyond] = -math.inf, 0.0
    order = ranking(keys)[:, ::-1]  # what is beyond comes first
    sums = weights.take(order).astype(np.float64).cumsum(axis=1)
    first = keys.shape[1] - taken
    behind = (rest.total - rest.needed) * taken / rest.sizes
    rank = np.maximum((sums < behind[:, np.newaxis]).sum(axis=1) - first, 0)
    margin = (_DEVIATIONS * np.sqrt(rank * (1.0 - rank / taken)) + _RANKS).astype(np.int64)
    ends = np.minimum(np.maximum(rank + _SIDES * margin, 0), taken - 1)
    ends = np.where(rest.missed, taken // 2, ends) + first
    found: Floats = np.maximum(keys.take(order[np.arange(rest.rows.size), ends]), LOWEST)
    return found[:, :, np.newaxis]
