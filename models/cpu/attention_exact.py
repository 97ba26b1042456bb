"""Attention in which no neighbour changes the numbers of a token, and no cut of a prompt.

One arithmetic for feeds and decodes: the same bits whether a token is fed, in whatever pieces, or decoded. It attends
over whole blocks of positions, what it may not see is masked, and the query rows of a call are padded to a multiple
that the kernels treat alike. (Whether they do on this CPU is proven at load: rows.py.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.cpu.attention import Attend, Attention, additive_mask, blocks_of
from models.cpu.cache import KvCache
from models.protocol import SlotInput

# Positions that a call attends over come in whole blocks of this many.
_LENGTH_MULTIPLE = 64
# Query rows of a call: a remainder of one to three takes another path through the matrix kernels.
_QUERY_MULTIPLE = 4


class _Block:
    """Neighbouring tokens of one slot, [start, stop), that see the same block of positions as their last."""

    def __init__(self, cache: KvCache, slot: int, start: int, stop: int) -> None:
        self._cache = cache
        self._tokens = stop - start
        length = cache.rounded(stop, _LENGTH_MULTIPLE)
        self._spans = cache.spans(slot, 1, length)
        rows = self._tokens * cache.group
        self._rows = _padded(rows)
        sees = torch.full((self._rows,), stop)
        sees[:rows] = torch.arange(start + 1, stop + 1).repeat_interleave(cache.group)
        self._mask = additive_mask(sees, length, cache.dtype)

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """`queries` and the answer: (tokens, heads, head_dim)."""
        tokens, heads, size = queries.shape
        group = self._cache.group
        # The query heads of a group are the kernel's query rows: one pass over their keys serves them all.
        placed = queries.new_zeros((1, heads // group, self._rows, size), dtype=self._cache.dtype)
        grouped = queries.reshape(tokens, heads // group, group, size).transpose(0, 1)
        placed[0, :, : tokens * group] = grouped.flatten(1, 2)
        keys, values = self._spans[layer].unbind(0)
        attended = functional.scaled_dot_product_attention(placed, keys, values, attn_mask=self._mask)
        attended = attended[0, :, : tokens * group].view(heads // group, tokens, group, size)
        return attended.transpose(0, 1).reshape(tokens, heads, size)


def fed(cache: KvCache, slot: int, start: int, stop: int) -> Attend:
    """The tokens of a feed, at the positions [start, stop) of `slot`; queries are (stop - start, heads, head_dim)."""
    bounds = blocks_of(start, stop, _LENGTH_MULTIPLE)
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
    masks = [additive_mask(sees[start:stop, None, None], lengths[start], cache.dtype) for start, stop in runs]
    spans = [cache.spans(slots[start], stop - start, lengths[start]) for start, stop in runs]
    there, back = torch.tensor(order), torch.tensor(order).argsort()
    rows = _padded(cache.group)

    def attend(layer: int, queries: Tensor) -> Tensor:
        count, heads, size = queries.shape
        placed = queries.new_zeros((count, heads // cache.group, rows, size))
        placed[:, :, : cache.group] = queries[there].view(count, heads // cache.group, cache.group, size)
        parts = []
        for (start, stop), of_layers, mask in zip(runs, spans, masks, strict=True):
            keys, values = of_layers[layer].unbind(0)
            parts.append(functional.scaled_dot_product_attention(placed[start:stop], keys, values, attn_mask=mask))
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        return attended[back, :, : cache.group].reshape(count, heads, size)

    return attend


def _padded(rows: int) -> int:
    return -(-rows // _QUERY_MULTIPLE) * _QUERY_MULTIPLE


EXACT = Attention(step=by_length, feed=fed)
