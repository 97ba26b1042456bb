"""Attention of many slots in few calls; how a token is rounded depends on who else is live.

Rows of about one length go in one call, with two batched products in place of the library's attention, whose kernels
are made for many query rows a head and have few here. Only a lone row, of which nothing is masked, is quicker with
those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.cpu.attention import Attend, Attention, additive_mask, blocks_of
from models.cpu.cache import POSITION_MULTIPLE, KvCache
from models.protocol import SlotInput

# Keys, then values, of a layer and the rows of a group, dense.
Gather = Callable[[int], Tensor]

# Rows whose lengths are alike when rounded up to this are never in two groups.
_GROUP_MULTIPLE = 64
# What one more call costs, in positions of one slot that could be attended over in the same time.
_CALL_COST = 1024
# Feeds attend in blocks of so many bytes a dimension: less of smaller ones is masked, but they are more calls. Their
# lengths are multiples of 32: softmax takes a third longer over rows that end within two vectors of bfloat16.
_FEED_BLOCK, _FEED_MULTIPLE = 256, 32


def together(cache: KvCache, live: Sequence[SlotInput]) -> Attend:
    """One call for all rows of about the same length, wherever their slots lie."""
    groups = [
        _Lone(cache, live, rows[0]) if len(rows) == 1 else _Group(cache, live, rows)
        for rows in _groups([cache.rounded(row.position + 1, _GROUP_MULTIPLE) for row in live])
    ]
    if len(groups) == 1:
        return groups[0].attend

    def attend(layer: int, queries: Tensor) -> Tensor:
        attended = torch.empty_like(queries)
        for group in groups:
            attended[group.rows] = group.attend(layer, queries[group.rows])
        return attended

    return attend


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """The rows in groups, ascending in each, of which the longest sets what all attend over: the cheapest ones, where a
    group costs a call and its padded positions."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    edges = [at for at in range(len(order)) if not at or lengths[order[at]] != lengths[order[at - 1]]]
    edges.append(len(order))
    best = [(0, 0)]  # of the rows before edges[i]: the least cost, and the edge at which the last group begins
    for stop in range(1, len(edges)):
        costs = (
            best[start][0] + _CALL_COST + lengths[order[edges[start]]] * (edges[stop] - edges[start])
            for start in range(stop)
        )
        best.append(min((cost, start) for start, cost in enumerate(costs)))
    groups = []
    stop = len(best) - 1
    while stop:
        start = best[stop][1]
        groups.append(sorted(order[edges[start] : edges[stop]]))
        stop = start
    return groups


class _Lone:
    """One row, by the library's attention over exactly what its slot holds."""

    def __init__(self, cache: KvCache, live: Sequence[SlotInput], row: int) -> None:
        self._cache = cache
        self._spans = cache.spans(live[row].slot, 1, live[row].position + 1)
        self.rows = torch.tensor([row])

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """`queries` and the answer: (1, heads, head_dim)."""
        heads, size = queries.shape[1:]
        keys, values = self._spans[layer].unbind(0)
        # The query heads of a group are the kernel's query rows: one pass over their keys serves them all.
        grouped = queries.reshape(1, self._cache.kv_heads, self._cache.group, size)
        return functional.scaled_dot_product_attention(grouped, keys, values).view(1, heads, size)


class _Group:
    """Rows of any slots, attended for in one call."""

    def __init__(self, cache: KvCache, live: Sequence[SlotInput], rows: Sequence[int]) -> None:
        self._cache = cache
        self.rows = torch.tensor(rows)
        slots = [live[row].slot for row in rows]
        sees = torch.tensor([live[row].position + 1 for row in rows])
        length = cache.rounded(int(sees.max()), POSITION_MULTIPLE)
        self._mask = additive_mask(sees.repeat_interleave(cache.kv_heads)[:, None], length, cache.dtype)
        # The products copy what is not dense anyway: gathering the slots costs no more, and spares those between them.
        self._gathered = _neighbours(cache, slots, length) or _anywhere(cache, slots, length)

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """`queries` and the answer: (rows, heads, head_dim)."""
        rows, heads, size = queries.shape
        keys, values = self._gathered(layer).view(2, rows * self._cache.kv_heads, -1, size).unbind(0)
        # The query heads of a group are the rows of one product: one pass over their keys serves them all.
        grouped = queries.reshape(rows * self._cache.kv_heads, self._cache.group, size)
        scores = torch.bmm(grouped, keys.transpose(1, 2))
        weights = torch.add(self._mask, scores, alpha=size**-0.5).softmax(-1)
        return torch.bmm(weights, values).view(rows, heads, size)


def _neighbours(cache: KvCache, slots: Sequence[int], length: int) -> Gather | None:
    """Of slots that lie one after the other: copied in one piece, which takes up to a third less. Else None."""
    if any(slot != slots[0] + row for row, slot in enumerate(slots)):
        return None
    spans = cache.spans(slots[0], len(slots), length)
    return lambda layer: spans[layer].contiguous()


def _anywhere(cache: KvCache, slots: Sequence[int], length: int) -> Gather:
    spans = cache.every_span(length)
    chosen = torch.tensor([*slots, *(cache.slots + slot for slot in slots)])
    return lambda layer: spans[layer].index_select(0, chosen)


def fed_in_products(cache: KvCache, slot: int, start: int, stop: int) -> Attend:
    """The tokens of a feed block by block, so that what one may see is about what it attends over."""
    bounds = blocks_of(start, stop, _FEED_BLOCK // cache.dtype.itemsize)
    blocks = [_Products(cache, slot, *each) for each in bounds]
    sizes = [(end - begin) * cache.group for begin, end in bounds]

    def attend(layer: int, queries: Tensor) -> Tensor:
        tokens, heads, size = queries.shape
        # (kv_heads, tokens * group, head_dim): the query heads of a group are the rows of one product.
        shape = (cache.kv_heads, tokens, cache.group, size)
        grouped = queries.new_empty(shape, dtype=cache.dtype)
        grouped.copy_(queries.view(tokens, cache.kv_heads, cache.group, size).transpose(0, 1))
        grouped = grouped.flatten(1, 2)
        if len(blocks) == 1:
            attended = blocks[0].attend(layer, grouped)
        else:
            parts = zip(blocks, torch.split(grouped, sizes, 1), strict=True)
            attended = torch.cat([block.attend(layer, part) for block, part in parts], 1)
        return attended.view(shape).transpose(0, 1).reshape(tokens, heads, size)

    return attend


class _Products:
    """Tokens of a feed, [start, stop), by two products over what the last of them sees."""

    def __init__(self, cache: KvCache, slot: int, start: int, stop: int) -> None:
        length = cache.rounded(stop, _FEED_MULTIPLE)
        self._keys, self._values = cache.held(slot, length)
        sees = torch.arange(start + 1, stop + 1).repeat_interleave(cache.group)
        self._mask = additive_mask(sees, length, cache.dtype)

    def attend(self, layer: int, grouped: Tensor) -> Tensor:
        """`grouped` and the answer: (kv_heads, tokens * group, head_dim)."""
        keys, values = self._keys[layer], self._values[layer]
        # A product of bfloat16 copies keys that are not dense, and is slow to copy them transposed.
        dense = keys if keys.dtype == torch.float32 else keys.contiguous()
        scores = torch.baddbmm(self._mask, grouped, dense.transpose(1, 2), alpha=grouped.shape[-1] ** -0.5)
        return torch.bmm(scores.softmax(-1), values)


FAST = Attention(step=together, feed=fed_in_products)
