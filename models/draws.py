"""Scores to weights to a token, for all rows of a step at once: what every way to draw shares.

Pure functions over matrices of one row a sequence. Knows no filter, no penalty and no slot.

Entries are relative to the highest of their row, so none is above 0; what is out is -inf and weighs 0. Weights are
float32 exponentials accumulated in float64 everywhere. A row's sums are the same bits alone and in any company: they
run one after the other where the width of a matrix hangs on its longest row, and over strides where it is a vocabulary.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# Wider matrices are a whole number of strides wide: a stride is added up by itself, then the strides one by one.
NARROW, STRIDE = 2048, 512
_TINIEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)
LOWEST = np.float32(-_LARGEST)  # of all that is not out


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


class Asked:
    """What each row asks for (see SamplingParams), each shape (rows,): `top_p` inf where it is off; `number` in [0, 1)
    draws the row. `nucleus`, `typical` and `lists` are False where no row of the step asks for top-p, typical-p or the
    best tokens: what it takes to look is a good part of a step of few rows."""

    __slots__ = ("_table", "lists", "nucleus", "typical")

    def __init__(self, table: Doubles, nucleus: bool, typical: bool, lists: bool) -> None:
        self._table = table
        self.nucleus, self.typical, self.lists = nucleus, typical, lists

    @classmethod
    def of(cls, rows: Sequence[tuple[float, ...]]) -> Asked:
        """From (temperature, top_k, top_p, typical_p, top_n, number) of each row."""
        nucleus, typical = any(row[2] < 1.0 for row in rows), any(row[3] < 1.0 for row in rows)
        return cls(np.array(rows).T, nucleus, typical, any(row[4] for row in rows))

    def at(self, rows: Ids) -> Asked:
        return Asked(self._table[:, rows], self.nucleus, self.typical, self.lists)

    def _column(self, index: int) -> Doubles:
        column: Doubles = self._table[index]
        return column

    @property
    def temperature(self) -> Floats:
        return self._column(0).astype(np.float32)

    @property
    def top_k(self) -> Ids:
        return self._column(1).astype(np.int64)

    @property
    def top_p(self) -> Doubles:
        return self._column(2)

    @property
    def typical_p(self) -> Doubles:
        return self._column(3)

    @property
    def top_n(self) -> Ids:
        return self._column(4).astype(np.int64)

    @property
    def number(self) -> Doubles:
        return self._column(5)


class Numbers:
    """The random numbers of one sequence: Philox 4x64 keyed by its seed, which may jump to any of them."""

    def __init__(self, seed: int) -> None:
        key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, 0], dtype=np.uint64)
        self._generator = np.random.Philox(key=key)
        # Setting the state takes a fifth of the time that making a generator takes.
        self._state = self._generator.state

    def at(self, index: int) -> float:
        """The number in [0, 1) that draws token `index`."""
        self._state["state"]["counter"][0] = index
        self._generator.state = self._state
        return (int(self._generator.random_raw()) >> 11) * 2.0**-53


_rooms = threading.local()


def room(name: str, count: int, width: int) -> Floats:
    """A matrix (count, width) in memory that is kept under this name: until it is asked for again, it is the caller's.

    The matrices of one step are large enough for the allocator to give them back to the system, which hands them out
    again page by page, at every step: that would take as long as the step.
    """
    kept: Floats | None = getattr(_rooms, name, None)
    if kept is None or kept.size < count * width:
        kept = np.empty(count * width, dtype=np.float32)
        setattr(_rooms, name, kept)
    return kept[: count * width].reshape(count, width)


def taken(matrix: Floats, rows: Ids) -> Floats:
    """These rows, in ascending order: a view where they lie one after the other."""
    first, last = int(rows[0]), int(rows[-1])
    return matrix[first : last + 1] if last - first + 1 == rows.size else matrix[rows]


def positive(number: float) -> float:
    """A positive number within what is neither 0 nor infinite in float32."""
    return min(max(number, _TINIEST), _LARGEST)


def tempered(rows: Floats, highest: Floats, temperature: Floats | None = None) -> Floats:
    """Raw rows (rows, vocab_size) relative to their highest, over their temperatures, none of which overflows: the
    shift comes first. What it is wider than the rows is out. It lies in the room "values"."""
    count, size = rows.shape
    width = size if size <= NARROW else -(-size // STRIDE) * STRIDE
    values = room("values", count, width)
    np.subtract(rows, highest[:, np.newaxis], out=values[:, :size])
    if width > size:
        values[:, size:] = -math.inf
    if temperature is not None and (temperature != 1.0).any():
        values /= temperature[:, np.newaxis]
    return values


def mass_of(weights: Floats) -> Doubles:
    """The sum of each row."""
    return (_running(weights) if weights.shape[1] <= NARROW else _over_strides(weights))[:, -1]


def pick(weights: Floats, numbers: Doubles) -> tuple[Ids, Doubles]:
    """(index, whole) of each row: where its running sum first exceeds `numbers` of the whole: the inverted CDF.

    No number below 1 carries its share up to the whole, so there is an entry behind it, and it weighs something.
    """
    if weights.shape[1] <= NARROW:
        running = _running(weights)
        whole = running[:, -1]
        return _behind(running, numbers * whole), whole
    across = _over_strides(weights)
    whole = across[:, -1]
    target = numbers * whole
    stride = _behind(across, target)
    every = np.arange(len(weights))
    target -= np.where(stride > 0, across[every, stride - 1], 0.0)
    inside = weights.reshape(len(weights), -1, STRIDE)[every, stride]
    # Rounding may carry a target over the end of its stride: then it is the last entry there that weighs anything.
    last = STRIDE - 1 - (inside[:, ::-1] > 0).argmax(axis=1)
    return stride * STRIDE + np.minimum(_behind(_running(inside), target), last), whole


def _behind(running: Doubles, targets: Doubles) -> Ids:
    """The index of the first entry of each row that exceeds its target."""
    index: Ids = (running <= targets[:, np.newaxis]).sum(axis=1)
    return index


def _running(weights: Floats) -> Doubles:
    """Cumulative sums of each row in float64, one after the other."""
    # numpy is several times slower when it converts while it accumulates.
    sums: Doubles = weights.astype(np.float64).cumsum(axis=1)
    return sums


def _over_strides(weights: Floats) -> Doubles:
    """Cumulative sums of the strides of each row, in one pass at the speed of memory."""
    sums: Doubles = np.einsum("rsi->rs", weights.reshape(len(weights), -1, STRIDE), dtype=np.float64).cumsum(axis=1)
    return sums


def mean_of(values: Floats, weights: Floats, mass: Doubles) -> Doubles:
    """The mean value of each row under its weights, whose sums are `mass`."""
    if values.shape[1] <= NARROW:
        total = (np.maximum(values, LOWEST) * weights.astype(np.float64)).cumsum(axis=1)[:, -1]
    else:
        shape = (len(values), -1, STRIDE)
        values, weights = values.reshape(shape), weights.reshape(shape)
        strides = np.einsum("rsi,rsi->rs", values, weights, dtype=np.float64)
        # What is out weighs nothing, and nothing times -inf is no number. Few strides have any of it.
        where = np.isnan(strides)
        if where.any():
            finite = np.maximum(values[where], LOWEST)
            strides[where] = np.einsum("si,si->s", finite, weights[where], dtype=np.float64)
        total = strides.cumsum(axis=1)[:, -1]
    mean: Doubles = total / mass
    return mean
