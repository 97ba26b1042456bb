"""Which tokens of one row survive the filters, and which of them a uniform number picks.

Pure functions over one row of processed logits. Knows no sequence, no penalty and no batch: models/sampler.py does.

One representation carries everything: a `Shortlist` holds the entries of a row that were looked at, and bounds for
those that were not. A filter answers None where those bounds do not decide, and the caller comes back with a longer
list; so a short list that answers at all gives what the whole row gives.

Weights are float32 exponentials accumulated in float64 everywhere, whatever the length of the list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.protocol import SamplingParams

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

SHORT = 256
_GROUP = 64
_STRIDE = 512
_BANDS_A_UNIT = 64
_LAST_BAND = 2047
_TINIEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Entries of one row, and what is known of the others.

    `ids` ascend; `values` are processed logits, finite, the row's highest is 0. No unlisted value is above `bound`
    (-inf: nothing that counts is unlisted). The sum of exp(value) over the whole row lies within `mass` (low, high).
    """

    ids: Ids
    values: Floats
    bound: float
    mass: tuple[float, float]

    @property
    def complete(self) -> bool:
        return self.bound == -math.inf


def uniform(seed: int, choice: int, index: int) -> float:
    """The number in [0, 1) that draws token `index` of choice `choice`: Philox 4x64 keyed by (seed, choice)."""
    key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, choice], dtype=np.uint64)
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


def mass_of(values: Floats) -> float:
    """Sum of exp(value), in float64."""
    return float(weights_of(values).sum(dtype=np.float64))


def largest(values: Floats, count: int) -> tuple[Ids, float]:
    """(ids, bound): at least the `count` largest entries with all their ties, ids ascending; all others <= bound.

    The count-th largest of the maxima of disjoint groups is at most the count-th largest entry, so everything from
    there up is a superset, found without sorting the row.
    """
    groups = values.size // _GROUP
    if 4 * count <= groups:
        maxima = values[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        threshold = np.partition(maxima, groups - count)[groups - count]
    elif count < values.size:
        threshold = np.partition(values, values.size - count)[values.size - count]
    else:
        threshold = np.float32(-math.inf)
    if threshold == -math.inf:
        return np.flatnonzero(values > -math.inf), -math.inf
    return np.flatnonzero(values >= threshold), float(np.nextafter(threshold, np.float32(-math.inf)))


def shortlists(values: Floats, params: SamplingParams) -> Iterator[Shortlist]:
    """Ever longer lists of one row that hold what a filter may need; the last one is complete."""
    mass = mass_of(values) if params.top_k == 0 else math.nan
    if params.top_k or params.top_p < 1.0:
        count = max(SHORT, params.top_k)
        while 4 * count <= values.size:
            ids, bound = largest(values, count)
            yield Shortlist(ids, values[ids], bound, (mass, mass))
            count *= 16
    ids = np.flatnonzero(values > -math.inf)
    yield Shortlist(ids, values[ids], -math.inf, (mass, mass))


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
    border = _border(listed, k)
    return None if border is None else _kept(listed, listed.values >= border)


def _border(listed: Shortlist, count: int) -> float | None:
    """The `count`-th largest value of the row (-inf where it has fewer), None where the list is too short to tell."""
    size = listed.values.size
    if count > size:
        return -math.inf if listed.complete else None
    border = float(np.partition(listed.values, size - count)[size - count])
    return border if listed.complete or border > listed.bound else None


def top_p(listed: Shortlist, p: float) -> Shortlist | None:
    """The smallest set of the most likely with a share of at least `p`, never empty (transformers' TopPLogitsWarper).

    Ties at the border are taken in ascending id, so that the set is one and the same everywhere.
    """
    if not listed.complete and mass_of(listed.values) < p * listed.mass[0]:
        return None
    weights = weights_of(listed.values)
    least, highest = listed.mass
    border, most = reach(listed.values, weights, p * least)
    if highest != least and reach(listed.values, weights, p * highest)[1] != most:
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
    weights = weights_of(listed.values)
    total = listed.mass[0]
    entropy = math.log(total) - float(np.dot(weights.astype(np.float64), listed.values)) / total
    nearness: Floats = -np.abs(np.float32(math.log(total) - entropy) - listed.values)
    border, _ = reach(nearness, weights, p * total)
    return _kept(listed, nearness >= border)


def reach(keys: Floats, weights: Floats, target: float) -> tuple[float, int]:
    """(border, count): going down from the highest of `keys` (none above 0), the `count` entries, at least one, of
    which each but the first has less than `target` of weight ahead of it; `border` is the last one's key.

    Only the entries near the border are sorted: the others are told apart by the band that their key lies in.
    """
    with np.errstate(over="ignore"):
        bands = np.minimum(keys * np.float32(-_BANDS_A_UNIT), np.float32(_LAST_BAND)).astype(np.intp)
    across: Doubles = np.cumsum(np.bincount(bands, weights))
    band = min(int(np.searchsorted(across, target)), across.size - 1)
    ahead = int(np.count_nonzero(bands < band))
    inside = np.flatnonzero(bands == band)
    inside = inside[np.argsort(-keys[inside], kind="stable")]
    before = (across[band - 1] if band else 0.0) + running(weights[inside]) - weights[inside]
    count = max(int(np.searchsorted(before, target)), 1)
    return float(keys[inside[count - 1]]), ahead + count


def running(weights: Floats) -> Doubles:
    """Cumulative sums in float64."""
    # numpy is several times slower when it converts while it accumulates.
    sums: Doubles = np.cumsum(weights.astype(np.float64))
    return sums


def _kept(listed: Shortlist, keep: npt.NDArray[np.bool_]) -> Shortlist:
    """The survivors of a filter: whatever is unlisted no longer counts."""
    where = np.flatnonzero(keep)  # numpy gathers by index several times faster than by mask
    values = listed.values[where]
    mass = mass_of(values)
    return Shortlist(listed.ids[where], values, -math.inf, (mass, mass))


def pick(weights: Floats, number: float) -> int:
    """Index where the running sum of `weights` first exceeds `number` of the whole: the inverted CDF.

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
    if index < min(start + _STRIDE, weights.size) and weights[index] > 0.0:
        return index
    # Rounding carried the target over the end of its stride: the last entry that weighs anything before it.
    return int(np.flatnonzero(weights[:index])[-1])


def best(listed: Shortlist, count: int) -> tuple[tuple[int, float], ...] | None:
    """The `count` largest with all ties at the border, best first, as (id, value); None if the list is too short."""
    if count == 0:
        return ()
    border = _border(listed, count)
    if border is None:
        return None
    keep = np.flatnonzero(listed.values >= border)
    keep = keep[np.argsort(-listed.values[keep], kind="stable")]
    return tuple((int(listed.ids[i]), float(listed.values[i])) for i in keep)
