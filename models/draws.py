"""Which tokens of one row survive the filters, and which of them a uniform number picks.

Pure functions over one row of processed logits. Knows no sequence, no penalty and no batch: models/sampler.py does.
Rows that top-k makes short are drawn from by models/heads.py, all at once.

One representation carries everything: a `Shortlist` holds the entries of a row that were looked at, and bounds for
those that were not. A filter answers None where those bounds do not decide, and the caller comes back with a longer
list; so a short list that answers at all gives what the whole row gives.

Weights are float32 exponentials accumulated in float64 everywhere, whatever the length of the list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from models.protocol import SamplingParams

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

SHORT = 256
_GROUP, _LEAST_GROUP = 64, 8
_STRIDE = 512
# `reach` sorts so many entries at most, and brackets what it looks for in longer rows by a sample of this size, give
# or take so many of its ranks: two standard deviations of the rank of a share.
_SORTED = 6144
_SAMPLE = 4096
_MARGIN = 64
# A sample that stands for so much of a row's weight hides no few heavy entries; `SHORT` entries of a real vocabulary
# are then less than so many of its own.
_HIDDEN = 0.8
_FEW = 8
# Where more of a row than this part survives, what does not is masked: that is faster than gathering the survivors.
_MASKED = 1 / 8
_TINIEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


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


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Entries of one row, and what is known of the others.

    `ids` ascend; `values` are processed logits, finite, the row's highest is 0; `weights` are their exponentials. No
    unlisted value is above `bound` (-inf: nothing that counts is unlisted). The sum of exp(value) over the whole row
    lies within `mass` (low, high). `kept` marks the entries that a filter has left, None for all; the weights of the
    others are 0, and nobody has summed the mass yet (NaN).
    """

    ids: Ids
    values: Floats
    weights: Floats
    bound: float
    mass: tuple[float, float]
    kept: npt.NDArray[np.bool_] | None = None

    @property
    def complete(self) -> bool:
        return self.bound == -math.inf

    def gathered(self) -> Shortlist:
        """The same without the entries that are out."""
        if self.kept is None:
            return self
        where = np.flatnonzero(self.kept)  # numpy gathers by index several times faster than by mask
        weights = self.weights[where]
        mass = mass_of(weights)
        return Shortlist(self.ids[where], self.values[where], weights, self.bound, (mass, mass))


def uniform(seed: int, index: int) -> float:
    """The number in [0, 1) that draws token `index`: Philox 4x64 keyed by the seed."""
    key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, 0], dtype=np.uint64)
    word = int(np.random.Philox(key=key, counter=index).random_raw())
    return (word >> 11) * 2.0**-53


def tempered(row: Floats, highest: float, temperature: float) -> Floats:
    """`row` relative to its highest value, over the temperature. The shift comes first: no temperature overflows."""
    with np.errstate(over="ignore"):
        values: Floats = row - np.float32(highest)
        if temperature != 1.0:
            values /= positive(temperature)
    return values


def positive(number: float) -> np.float32:
    """A positive number as a float32 that is neither 0 nor infinite."""
    single: np.float32 = np.float32(min(max(number, _TINIEST), _LARGEST))
    return single


def weights_of(values: Floats) -> Floats:
    with np.errstate(under="ignore"):
        weights: Floats = np.exp(values)
    return weights


def mass_of(weights: Floats) -> float:
    """Sum of the weights, in float64."""
    return float(weights.sum(dtype=np.float64))


def largest(values: Floats, count: int) -> tuple[Ids, float]:
    """(ids, bound): at least the `count` largest entries with all their ties, ids ascending; all others <= bound.

    The count-th largest of the maxima of disjoint groups is at most the count-th largest entry, so everything from
    there up is a superset, found without sorting the row.
    """
    size = min(_GROUP, values.size // (4 * count))
    if size >= _LEAST_GROUP:
        groups = values.size // size
        maxima = values[: groups * size].reshape(size, groups).max(axis=0)
        threshold = np.partition(maxima, groups - count)[groups - count]
    elif count < values.size:
        threshold = np.partition(values, values.size - count)[values.size - count]
    else:
        threshold = np.float32(-math.inf)
    if threshold == -math.inf:
        return np.flatnonzero(values > -math.inf), -math.inf
    return np.flatnonzero(values >= threshold), float(np.nextafter(threshold, np.float32(-math.inf)))


def likeliest(row: Floats, highest: float, params: SamplingParams) -> Iterator[Shortlist]:
    """Ever longer lists of the heaviest entries of a row that is not tempered yet; none without a top-k, which alone
    asks for no mass. Tempering keeps the order, so it is spared the rest."""
    count = max(SHORT, params.top_k)
    while params.top_k and 4 * count <= row.size:
        ids, bound = largest(row, count)
        values = tempered(row[ids], highest, params.temperature)
        if values.min() == -math.inf:
            ids, values = ids[values > -math.inf], values[values > -math.inf]
        bound = float(tempered(np.array([bound], np.float32), highest, params.temperature)[0])
        yield Shortlist(ids, values, weights_of(values), bound, (math.nan, math.nan))
        count *= 16


def shortlists(values: Floats, params: SamplingParams) -> Iterator[Shortlist]:
    """Ever longer lists of one tempered row that hold what a filter may need; the last one is complete."""
    weights = weights_of(values)
    mass = mass_of(weights)
    nucleus = not params.top_k and params.top_p < 1.0
    if nucleus and values.size >= 4 * SHORT and not _flat(weights, mass, params.top_p):
        ids, bound = largest(values, SHORT)
        yield Shortlist(ids, values[ids], weights[ids], bound, (mass, mass))
    ids = _every(values.size)
    if values.min() == -math.inf:
        ids = np.flatnonzero(values > -math.inf)
        values, weights = values[ids], weights[ids]
    yield Shortlist(ids, values, weights, -math.inf, (mass, mass))


def _flat(weights: Floats, mass: float, p: float) -> bool:
    """Whether a sample tells that no short list of the heaviest comes to a share of `p`."""
    stride = -(-weights.size // _SAMPLE)
    sample = np.sort(weights[::stride])
    whole = mass_of(sample)
    return stride * whole >= _HIDDEN * mass and mass_of(sample[-_FEW:]) < p * whole


@lru_cache(maxsize=4)
def _every(size: int) -> Ids:
    ids = np.arange(size)
    ids.flags.writeable = False
    return ids


def survivors(listed: Shortlist, params: SamplingParams) -> Shortlist | None:
    """What top-k, top-p and typical-p leave, in TGI's order; None where the list is too short to tell."""
    left: Shortlist | None = listed
    if params.top_k:
        left = top_k(listed, params.top_k)
    if left is not None and params.top_p < 1.0:
        left = top_p(left, params.top_p)
    if left is not None and params.typical_p < 1.0:
        left = typical(left, params.typical_p)
    return left


def top_k(listed: Shortlist, k: int) -> Shortlist | None:
    """Every entry not below the k-th largest: ties at the border all stay (transformers' TopKLogitsWarper)."""
    border = _border(listed.values, listed.bound, k)
    return None if border is None else _kept(listed, listed.values >= border)


def _border(values: Floats, bound: float, count: int) -> float | None:
    """The `count`-th largest value of the row (-inf where it has fewer), None where the list is too short to tell."""
    size, complete = values.size, bound == -math.inf
    if count > size:
        return -math.inf if complete else None
    border = float(np.partition(values, size - count)[size - count])
    return border if complete or border > bound else None


def top_p(listed: Shortlist, p: float) -> Shortlist | None:
    """The smallest set of the most likely with a share of at least `p`, never empty (transformers' TopPLogitsWarper).

    Ties at the border are taken in ascending id, so that the set is one and the same everywhere.
    """
    listed = listed.gathered()
    least, highest = listed.mass
    total = least if listed.complete else mass_of(listed.weights)
    if total < p * least:
        return None
    border, most = reach(listed.values, listed.weights, total, p * least)
    if highest != least and reach(listed.values, listed.weights, total, p * highest)[1] != most:
        return None
    if most == listed.values.size and not listed.complete:
        return None
    if border <= listed.bound and not listed.complete:
        return None
    keep = listed.values > border
    ties = np.flatnonzero(listed.values == border)
    keep[ties[: most - int(np.count_nonzero(keep))]] = True
    return _kept(listed, keep)


def typical(listed: Shortlist, p: float) -> Shortlist | None:
    """Those whose surprise is nearest to the entropy, up to a share of `p`; ties at the border all stay.

    Locally typical sampling (arXiv:2202.00666), with the border of transformers' TypicalLogitsWarper.
    """
    if not listed.complete:
        return None
    listed = listed.gathered()
    total = mass_of(listed.weights)
    entropy = math.log(total) - float(np.einsum("i,i->", listed.weights, listed.values, dtype=np.float64)) / total
    nearness: Floats = np.float32(math.log(total) - entropy) - listed.values
    np.abs(nearness, out=nearness)
    np.negative(nearness, out=nearness)
    border, _ = reach(nearness, listed.weights, total, p * total)
    return _kept(listed, nearness >= border)


def reach(keys: Floats, weights: Floats, total: float, target: float) -> tuple[float, int]:
    """(border, count): going down from the highest of `keys`, the `count` entries, at least one, of which each but the
    first has less than `target` of weight ahead of it; `border` is the last one's key. `total` is the weight of all.

    Floyd and Rivest's SELECT (1975) with weights for counts: a sample brackets the border, a pass tells whether it
    lies above the bracket, inside or below, and only the last few entries are sorted. Where heavy entries misled
    the sample, the bracket is its median: that halves what is left whatever weighs how much.
    """
    weight, count, missed = 0.0, 0, False  # weight and count of all that lies ahead of the `keys` that are left
    while keys.size > _SORTED:
        low, high = _bracket(keys, weights, None if missed else weight + total - target)
        above, below, size, missed = keys > high, keys < low, keys.size, True
        over = mass_of(weights * above)
        if weight + over >= target:
            left, total = np.flatnonzero(above), over
        else:
            weight, count = weight + over, count + int(np.count_nonzero(above))
            left = np.flatnonzero(~(above | below))
            inside = mass_of(weights[left])
            if weight + inside < target and below.any():
                weight, count, total = weight + inside, count + left.size, total - over - inside
                left = np.flatnonzero(below)
            else:
                total, missed = inside, False
        keys, weights = keys[left], weights[left]
        if keys.size == size:
            break  # all keys are one and the same
    order = np.argsort(-keys)  # any order among equals has the same border
    ordered = weights[order]
    before = weight + running(ordered) - ordered
    within = max(int(np.searchsorted(before, target)), 1)
    return float(keys[order[within - 1]]), count + within


def _bracket(keys: Floats, weights: Floats, rest: float | None) -> tuple[np.float32, np.float32]:
    """(low, high) keys between which the running weight from the lowest up most likely comes to `rest`, by a sample;
    twice the sample's median for None. From the lowest, since a few heavy entries hide from a sample: they are high."""
    stride = -(-keys.size // _SAMPLE)
    sample = keys[::stride]
    order = np.argsort(sample)
    if rest is None:
        median = sample[order[order.size // 2]]
        return median, median
    sums = running(weights[::stride][order])
    rank = int(np.searchsorted(sums, rest * order.size / keys.size))
    return sample[order[max(rank - _MARGIN, 0)]], sample[order[min(rank + _MARGIN, order.size - 1)]]


def running(weights: Floats) -> Doubles:
    """Cumulative sums in float64."""
    # numpy is several times slower when it converts while it accumulates.
    sums: Doubles = np.cumsum(weights.astype(np.float64))
    return sums


def _kept(listed: Shortlist, keep: npt.NDArray[np.bool_]) -> Shortlist:
    """The survivors of a filter: whatever is unlisted no longer counts."""
    listed = replace(listed, bound=-math.inf, mass=(math.nan, math.nan), kept=keep)
    if keep.size <= _SORTED or np.count_nonzero(keep) <= _MASKED * keep.size:
        return listed.gathered()
    return replace(listed, weights=listed.weights * keep)


def pick(weights: Floats, number: float) -> tuple[int, float]:
    """(index, whole): where the running sum of `weights` first exceeds `number` of the whole: the inverted CDF.

    The sum runs over strides first: one pass at the speed of memory, and float64 only where it matters.
    """
    strides = weights.size // _STRIDE
    head = weights[: strides * _STRIDE].reshape(strides, _STRIDE).sum(axis=1, dtype=np.float64)
    tail = weights[strides * _STRIDE :].sum(dtype=np.float64)
    across: Doubles = np.cumsum(np.append(head, tail))
    target = number * across[-1]
    stride = min(int(np.searchsorted(across, target, side="right")), strides)
    start = stride * _STRIDE
    if stride:
        target -= across[stride - 1]
    within = running(weights[start : start + _STRIDE])
    index = start + int(np.searchsorted(within, target, side="right"))
    if index == min(start + _STRIDE, weights.size) or weights[index] == 0.0:
        # Rounding carried the target over the end of its stride: the last entry that weighs anything before it.
        index = int(np.flatnonzero(weights[:index])[-1])
    return index, float(across[-1])


def best(ids: Ids, values: Floats, bound: float, count: int) -> tuple[tuple[int, float], ...] | None:
    """The `count` largest of a list (see Shortlist) with all ties at the border, best first, as (id, value); None if
    the list is too short."""
    if count == 0:
        return ()
    border = _border(values, bound, count)
    if border is None:
        return None
    keep = np.flatnonzero(values >= border)
    keep = keep[np.argsort(-values[keep], kind="stable")]
    return tuple((int(ids[i]), float(values[i])) for i in keep)


def normalised(top: tuple[tuple[int, float], ...], log_mass: float) -> tuple[tuple[int, float], ...]:
    """Values as log-probabilities."""
    return tuple((token, value - log_mass) for token, value in top)


def draw(left: Shortlist, number: float, top_n_tokens: int) -> Choice:
    """Draw among the survivors of the filters, in ascending id."""
    if top_n_tokens:
        left = left.gathered()
    index, mass = pick(left.weights, number)
    log_mass = math.log(mass)
    top = best(left.ids, left.values, left.bound, top_n_tokens) or ()
    return Choice(int(left.ids[index]), float(left.values[index]) - log_mass, normalised(top, log_mass))
