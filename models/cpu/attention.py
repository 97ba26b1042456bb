"""How tokens attend to what their slot holds: what its two kinds (attention_exact.py, attention_fast.py) share.

Knows the cache, no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.cpu.cache import KvCache
from models.protocol import SlotInput

# (layer, queries): queries is (rows, heads, head_dim), turned, as many rows as are live, those of a feed in float32;
# answers alike, in the cache's dtype.
Attend = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Attention:
    """`step` builds the attention of one decode over its live rows; `feed` that of the tokens of a feed, at the
    positions [start, stop) of a slot: (cache, slot, start, stop)."""

    step: Callable[[KvCache, Sequence[SlotInput]], Attend]
    feed: Callable[[KvCache, int, int, int], Attend]


def blocks_of(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """[start, stop) cut at the whole blocks of `size` positions."""
    ends = [*range((start // size + 1) * size, stop, size), stop]
    return list(zip([start, *ends[:-1]], ends, strict=True))


def additive_mask(sees: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Additive (*sees.shape, length): how many positions each row may see."""
    unseen = torch.arange(length) >= sees[..., None]
    return torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, float("-inf"))
