"""How the rows of a decode step attend to their slots: one after the other, or all in one call.

`one_by_one` gives every row a call over exactly its own length, so no shape in it depends on a neighbour. `together`
is faster from two rows on, and its rounding depends on the longest of them. Knows the cache, no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.cpu.cache import KvCache
from models.protocol import SlotInput

# (layer, queries): queries is (rows, heads, head_dim), turned, as many rows as are live; answers alike.
Attend = Callable[[int, Tensor], Tensor]

# Builds the attention of one step over its live rows.
StepAttention = Callable[[KvCache, Sequence[SlotInput]], Attend]

_CACHE_LINE = 64
_LENGTH_MULTIPLE = 64


def one_by_one(cache: KvCache, live: Sequence[SlotInput]) -> Attend:
    """A call a row."""
    places = [(row.slot, row.position + 1) for row in live]

    def attend(layer: int, queries: Tensor) -> Tensor:
        rows = queries[:, None, :, None].unbind(0)
        # Kernels may round differently by alignment: where rows do not all begin on a cache line, they are copied.
        if queries.stride(0) * queries.element_size() % _CACHE_LINE:
            rows = tuple(row.clone() for row in rows)
        attended = [
            functional.scaled_dot_product_attention(row, *cache.span(layer, slot, length), enable_gqa=True)
            for row, (slot, length) in zip(rows, places, strict=True)
        ]
        return torch.cat(attended).squeeze(2)

    return attend


def together(cache: KvCache, live: Sequence[SlotInput]) -> Attend:
    """One call over all slots from the lowest to the highest live one; a call a row where those lie far apart."""
    slots = [row.slot for row in live]
    first, count = min(slots), max(slots) - min(slots) + 1
    if len(live) == 1 or count > 2 * len(live):
        return one_by_one(cache, live)
    places = [slot - first for slot in slots]
    lengths = torch.ones(count, dtype=torch.int64)
    lengths[places] = torch.tensor([row.position + 1 for row in live])
    length = cache.rounded(int(lengths.max()), _LENGTH_MULTIPLE)
    unseen = torch.arange(length) >= lengths[:, None]
    mask = torch.zeros((count, 1, 1, length), dtype=cache.dtype).masked_fill_(unseen[:, None, None], float("-inf"))
    in_order = places == list(range(count))
    index = torch.tensor(places)

    def attend(layer: int, queries: Tensor) -> Tensor:
        keys, values = cache.spans(layer, first, count, length)
        placed = queries if in_order else queries.new_zeros((count, *queries.shape[1:])).index_copy_(0, index, queries)
        # The query heads of a group are the kernel's query positions: one pass over their keys serves them all.
        grouped = placed.reshape(count, keys.shape[1], -1, keys.shape[-1])
        attended = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        attended = attended.reshape(count, queries.shape[1], -1)
        return attended if in_order else attended[index]

    return attend
