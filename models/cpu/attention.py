"""How tokens attend to what their slot holds: in blocks that no neighbour changes, or all slots of a step in one call.

`by_length` and `fed` share one arithmetic, in which the numbers of a token are the same bits whether it is fed, in
whatever pieces, or decoded: it attends over whole blocks of positions, what it may not see is masked, and the query
rows of a call are padded to a multiple that the kernels treat alike. (Whether they do on this CPU is proven at load:
rows.py.) `together` is faster from two rows on, and its rounding depends on the longest of them. Knows the cache, no
weights.
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

# Positions that a call attends over come in whole blocks of this many.
_LENGTH_MULTIPLE = 64
# Query rows of a call: a remainder of one to three takes another path through the matrix kernels.
_QUERY_MULTIPLE = 4


class _Block:
    """Neighbouring tokens of one slot, [start, stop), that see the same block of positions as their last."""

    def __init__(self, cache: KvCache, slot: int, start: int, stop: int) -> None:
        self._cache, self._slot = cache, slot
        self._tokens = stop - start
        self._length = cache.rounded(stop, _LENGTH_MULTIPLE)
        rows = self._tokens * cache.group
        self._rows = _padded(rows)
        sees = torch.full((self._rows,), stop)
        sees[:rows] = torch.arange(start + 1, stop + 1).repeat_interleave(cache.group)
        self._mask = _mask(sees, self._length, cache.dtype)

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """`queries` and the answer: (tokens, heads, head_dim)."""
        tokens, heads, size = queries.shape
        group = self._cache.group
        # The query heads of a group are the kernel's query rows: one pass over their keys serves them all.
        placed = queries.new_zeros((1, heads // group, self._rows, size))
        grouped = queries.reshape(tokens, heads // group, group, size).transpose(0, 1)
        placed[0, :, : tokens * group] = grouped.flatten(1, 2)
        keys, values = self._cache.span(layer, self._slot, self._length)
        attended = functional.scaled_dot_product_attention(placed, keys, values, attn_mask=self._mask)
        attended = attended[0, :, : tokens * group].view(heads // group, tokens, group, size)
        return attended.transpose(0, 1).reshape(tokens, heads, size)


def fed(cache: KvCache, slot: int, start: int, stop: int) -> Attend:
    """The tokens of a feed, at the positions [start, stop) of `slot`; queries are (stop - start, heads, head_dim)."""
    ends = [*range((start // _LENGTH_MULTIPLE + 1) * _LENGTH_MULTIPLE, stop, _LENGTH_MULTIPLE), stop]
    bounds = list(zip([start, *ends[:-1]], ends, strict=True))
    blocks = [_Block(cache, slot, *each) for each in bounds]
    sizes = [end - begin for begin, end in bounds]

    def attend(layer: int, queries: Tensor) -> Tensor:
        parts = [block.attend(layer, part) for block, part in zip(blocks, torch.split(queries, sizes), strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return attend


def by_length(cache: KvCache, live: Sequence[SlotInput]) -> Attend:
    """A call for each run of neighbouring slots of the same rounded length: each row is one of a feed of one token."""
    order = sorted(range(len(live)), key=lambda row: live[row].slot)
    sees = torch.tensor([live[row].position + 1 for row in order])
    lengths = [cache.rounded(live[row].position + 1, _LENGTH_MULTIPLE) for row in order]
    slots = [live[row].slot for row in order]
    cuts = [0, *(at for at in range(1, len(live)) if (slots[at - 1] + 1, lengths[at - 1]) != (slots[at], lengths[at]))]
    runs = list(zip(cuts, [*cuts[1:], len(live)], strict=True))
    masks = [_mask(sees[start:stop, None, None], lengths[start], cache.dtype) for start, stop in runs]
    there, back = torch.tensor(order), torch.tensor(order).argsort()
    rows = _padded(cache.group)

    def attend(layer: int, queries: Tensor) -> Tensor:
        count, heads, size = queries.shape
        placed = queries.new_zeros((count, heads // cache.group, rows, size))
        placed[:, :, : cache.group] = queries[there].view(count, heads // cache.group, cache.group, size)
        parts = []
        for (start, stop), mask in zip(runs, masks, strict=True):
            keys, values = cache.spans(layer, slots[start], stop - start, lengths[start])
            parts.append(functional.scaled_dot_product_attention(placed[start:stop], keys, values, attn_mask=mask))
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        return attended[back, :, : cache.group].reshape(count, heads, size)

    return attend


def _padded(rows: int) -> int:
    return -(-rows // _QUERY_MULTIPLE) * _QUERY_MULTIPLE


def _mask(sees: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Additive (*sees.shape, length): how many positions each row may see."""
    unseen = torch.arange(length) >= sees[..., None]
    return torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, float("-inf"))


def together(cache: KvCache, live: Sequence[SlotInput]) -> Attend:
    """One call over all slots from the lowest to the highest live one; `by_length` where those lie far apart."""
    slots = [row.slot for row in live]
    first, count = min(slots), max(slots) - min(slots) + 1
    if len(live) == 1 or count > 2 * len(live):
        return by_length(cache, live)
    places = [slot - first for slot in slots]
    lengths = torch.ones(count, dtype=torch.int64)
    lengths[places] = torch.tensor([row.position + 1 for row in live])
    length = cache.rounded(int(lengths.max()), _LENGTH_MULTIPLE)
    mask = _mask(lengths[:, None, None], length, cache.dtype)
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
