"""Draws at once for all rows of which top-k leaves few tokens: what most streams of a step spend their sampling on.

The head of a row, its likeliest tokens, is found row by row, at the speed of memory (models/draws.py). What follows
works on a few dozen numbers a row, where a call of numpy costs more than its arithmetic: so all rows share the calls.

Heads are of different lengths and are padded to the longest. An answer does not hang on that: sums run one after the
other, in float64, and what is padded weighs nothing. Equal, then, are the draws of a row alone and in any company.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.draws import Choice, Doubles, Floats, Ids, largest, positive
from models.protocol import SamplingParams

Flags = npt.NDArray[np.bool_]

# A longer one is left to its row: all others would be padded to it.
_LONGEST = 2048
# So many more than top-k are listed: of two neighbours on the border, tempering may make one number.
_BEYOND = 16


@dataclass(frozen=True, slots=True)
class Head:
    """The likeliest entries of one row after its penalties, before the temperature.

    `ids` ascend; `values` are finite; the row's highest is `highest`. No unlisted value is above `bound` (-inf:
    nothing that counts is unlisted).
    """

    ids: Ids
    values: Floats
    highest: float
    bound: float


def takes(params: SamplingParams) -> bool:
    """Whether a head can decide: only top-k asks for nothing but the order of a row, and typical-p for all of it."""
    return params.do_sample and params.top_k > 0 and params.typical_p >= 1.0


def head(row: Floats, highest: float, top_k: int) -> Head | None:
    """The `top_k` largest entries of a whole row and their ties; None where they are not few."""
    if top_k > min(_LONGEST, row.size):
        return None
    for count in (min(top_k + _BEYOND, row.size), top_k):
        ids, bound = largest(row, count)
        if ids.size <= _LONGEST:
            return Head(ids, row[ids], highest, bound)
    return None


def draw_heads(
    heads: Sequence[Head], params: Sequence[SamplingParams], numbers: Sequence[float]
) -> list[Choice | None]:
    """Temperature, top-k, top-p and the draw by number i in [0, 1) of head i, as `params[i]` say.

    None for a head that does not hold all that top-k may keep: it is too short, or tempering made its last equal to an
    unlisted one.
    """
    ids, values = _padded(heads)
    values, bounds = _tempered(values, heads, params)
    order = np.argsort(-values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    top_k = np.array([each.top_k for each in params])
    sizes = np.array([each.ids.size for each in heads])
    width = values.shape[1]
    border = ranked[np.arange(len(heads)), np.minimum(top_k, width) - 1]
    decided = (bounds == -math.inf) | ((top_k <= sizes) & (border > bounds))
    kept, weights = _kept(ranked, border, np.array([each.top_p for each in params]))

    survivors = np.zeros(values.shape)
    np.put_along_axis(survivors, order, weights, axis=1)
    index, masses = _picked(survivors, np.array(numbers))
    choices: list[Choice | None] = []
    for row, (each, at, mass) in enumerate(zip(params, index.tolist(), masses.tolist(), strict=True)):
        if not decided[row]:
            choices.append(None)
            continue
        log_mass = math.log(mass)
        top = _top(ids[row, order[row]], ranked[row], kept[row], each.top_n_tokens, log_mass)
        choices.append(Choice(int(ids[row, at]), float(values[row, at]) - log_mass, top))
    return choices


def _padded(heads: Sequence[Head]) -> tuple[Ids, Floats]:
    """(rows, longest head): ids and values, what is padded -inf."""
    sizes = np.array([each.ids.size for each in heads])
    listed = np.arange(sizes.max()) < sizes[:, np.newaxis]
    ids = np.zeros(listed.shape, dtype=np.int64)
    values = np.full(listed.shape, -math.inf, dtype=np.float32)
    ids[listed] = np.concatenate([each.ids for each in heads])
    values[listed] = np.concatenate([each.values for each in heads])
    return ids, values


def _tempered(values: Floats, heads: Sequence[Head], params: Sequence[SamplingParams]) -> tuple[Floats, Floats]:
    """As draws.tempered: the values, and the bounds of what is unlisted, shape (rows,)."""
    highest = np.array([each.highest for each in heads], dtype=np.float32)
    bounds = np.array([each.bound for each in heads], dtype=np.float32)
    temperature = np.array([positive(each.temperature) for each in params])
    with np.errstate(over="ignore"):
        return (
            (values - highest[:, np.newaxis]) / temperature[:, np.newaxis],
            (bounds - highest) / temperature,
        )


def _kept(ranked: Floats, border: Floats, top_p: Doubles) -> tuple[Flags, Doubles]:
    """What top-k and top-p leave of rows in descending order: always their first few. The weights of others are 0.

    Top-k keeps all ties at its border. Top-p keeps those ahead of which less than its share lies, and the first;
    equals are in ascending id.
    """
    kept = (ranked >= border[:, np.newaxis]) & (ranked > -math.inf)
    with np.errstate(under="ignore"):
        weights = np.where(kept, np.exp(ranked), np.float32(0.0)).astype(np.float64)
    running = np.cumsum(weights, axis=1)
    ahead = np.zeros_like(running)
    ahead[:, 1:] = running[:, :-1]
    nucleus = ahead < top_p[:, np.newaxis] * running[:, -1:]
    nucleus[:, 0] = True
    nucleus[top_p >= 1.0] = True
    kept &= nucleus
    return kept, np.where(kept, weights, 0.0)


def _picked(weights: Doubles, numbers: Doubles) -> tuple[Ids, Doubles]:
    """(index, whole) a row: where the running sum first exceeds its number's share of the whole (draws.pick)."""
    running = np.cumsum(weights, axis=1)
    whole = running[:, -1]
    # No number below 1 carries the share up to the whole, so there is an entry behind it, and it weighs something.
    return np.count_nonzero(running <= (numbers * whole)[:, np.newaxis], axis=1), whole


def _top(ids: Ids, ranked: Floats, kept: Flags, count: int, log_mass: float) -> tuple[tuple[int, float], ...]:
    """The `count` best survivors with all ties at the border; all arguments in descending order."""
    if not count:
        return ()
    survivors = int(np.count_nonzero(kept))
    if count < survivors:
        survivors = int(np.count_nonzero(ranked[:survivors] >= ranked[count - 1]))
    return tuple((int(ids[i]), float(ranked[i]) - log_mass) for i in range(survivors))
