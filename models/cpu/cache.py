"""The KV cache of the CPU decoder: static slots, and which tokens each one holds.

Knows the tokens so that a step which is repeated (a held slot) leaves the cache as it was, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.backend import StepError
from models.protocol import SlotInput
from models.spec import ModelSpec

# A part of every layer.
OfLayers = Sequence[Tensor]

# Rows of every slot begin on a cache line at any head_dim: kernels may round differently by alignment.
POSITION_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class Writes:
    """Where a decode step writes: `rows` are the rows of the step whose keys and values are written, `places`
    (rows * 2 * kv_heads,) where each head goes, counted in heads from the start of a layer."""

    rows: Tensor
    places: Tensor


class KvCache:
    """`layers[i]` is (2, slots, kv_heads, positions, head_dim): the keys of all slots, then the values.

    Who asks for a part gets that of every layer: a view of all of them, taken apart, costs little more than one.
    """

    def __init__(self, spec: ModelSpec, slots: int, n_positions: int, dtype: torch.dtype) -> None:
        padded = -(-n_positions // POSITION_MULTIPLE) * POSITION_MULTIPLE
        self._whole = torch.zeros((spec.layers, 2, slots, spec.kv_heads, padded, spec.head_dim), dtype=dtype)
        self.layers = self._whole.unbind(0)
        self._heads = self._whole.view(spec.layers, -1, spec.head_dim).unbind(0)
        self.dtype = dtype
        self.slots = slots
        self.kv_heads = spec.kv_heads
        self.group = spec.heads // spec.kv_heads  # query heads a key-value head
        self._padded = padded
        # What a row of a step writes, from its slot's first position on: the heads of its keys, then of its values.
        parts = torch.arange(2)[:, None] * slots * spec.kv_heads + torch.arange(spec.kv_heads)
        self._parts = parts.flatten() * padded
        self._tokens: list[list[int]] = [[] for _ in range(slots)]

    def spans(self, first: int, slots: int, length: int) -> OfLayers:
        """Keys, then values of the first positions of neighbouring slots, (2, slots, kv_heads, length, head_dim).

        What a slot does not hold is zero. The heads of all slots are one stride apart, so that they flatten to a view.
        """
        return self._whole[:, :, first : first + slots, :, :length].unbind(0)

    def every_span(self, length: int) -> OfLayers:
        """The keys of all slots, then their values, as (2 * slots, kv_heads, length, head_dim)."""
        return self._whole.flatten(1, 2)[:, :, :, :length].unbind(0)

    def held(self, slot: int, length: int) -> tuple[OfLayers, OfLayers]:
        """Keys, and values, of the first `length` positions of a slot, (kv_heads, length, head_dim)."""
        keys, values = self._whole[:, :, slot, :, :length].unbind(1)
        return keys.unbind(0), values.unbind(0)

    def places(self, slot: int, start: int, stop: int) -> OfLayers:
        """Where a feed of the positions [start, stop) writes: (stop - start, 2, kv_heads, head_dim)."""
        return self._whole[:, :, slot, :, start:stop].permute(0, 3, 1, 2, 4).unbind(0)

    def rounded(self, length: int, multiple: int) -> int:
        """`length` rounded up to `multiple` as far as there are positions."""
        return min(-(-length // multiple) * multiple, self._padded)

    def check_reachable(self, slot: int, position: int) -> None:
        """StepError when writing at `position` would leave a gap behind what the slot holds."""
        held = len(self._tokens[slot])
        if position > held:
            raise StepError(f"slot {slot} holds {held} tokens: position {position} would leave a gap")

    def fed(self, slot: int, tokens: Sequence[int], position: int) -> None:
        """Note that `tokens` are written from `position` on; what came behind is forgotten."""
        self._clear(slot, position + len(tokens))
        self._tokens[slot][position:] = tokens

    def copy(self, source: int, slot: int, length: int) -> None:
        """Let `slot` hold the first `length` tokens of `source`, which holds as many."""
        self._clear(slot, length)
        with torch.inference_mode():
            self._whole[:, :, slot, :, :length] = self._whole[:, :, source, :, :length]
        self._tokens[slot] = self._tokens[source][:length]

    def stepped(self, live: Sequence[SlotInput]) -> Writes:
        """Note one token a row, and answer which rows must be written: those that the slot does not hold already."""
        fresh = [row for row, each in enumerate(live) if self._step(each)]
        starts = [live[row].slot * self.kv_heads * self._padded + live[row].position for row in fresh]
        places = torch.tensor(starts, dtype=torch.int64)[:, None] + self._parts
        return Writes(rows=torch.tensor(fresh, dtype=torch.int64), places=places.flatten())

    def write(self, layer: int, places: Tensor, heads: Tensor) -> None:
        """`heads` (rows, 2 * kv_heads, head_dim), keys then values, to the `places` of these rows (see Writes)."""
        # One flat index: with several the library's kernel is twice as slow, and this runs once a layer.
        self._heads[layer].index_copy_(0, places, heads.reshape(-1, heads.shape[-1]))

    def content(self, slot: int) -> bytes:
        """All numbers that the slot holds."""
        held = len(self._tokens[slot])
        return self._whole[:, :, slot, :, :held].contiguous().view(torch.uint8).numpy().tobytes()

    def erase(self, slot: int, position: int) -> None:
        """Zero what a step wrote out of turn, further on than the slot holds anything."""
        with torch.inference_mode():
            self._whole[:, :, slot, :, position] = 0.0

    def forget(self) -> None:
        """Every slot is empty."""
        for slot, tokens in enumerate(self._tokens):
            self._clear(slot, 0)
            tokens.clear()

    def _step(self, row: SlotInput) -> bool:
        tokens = self._tokens[row.slot]
        held = row.position < len(tokens) and tokens[row.position] == row.token
        self._clear(row.slot, row.position + 1)
        tokens[row.position :] = [row.token]
        return not held

    def _clear(self, slot: int, start: int) -> None:
        """Zero what a slot holds from `start` on: a mask hides numbers from a kernel, but not what is no number."""
        held = len(self._tokens[slot])
        if held > start:
            with torch.inference_mode():
                self._whole[:, :, slot, :, start:held] = 0.0
