"""The forward pass of a Llama-architecture decoder on torch: rows of tokens in, logits out.

The weights of the RMS norms are folded into the linears behind them (loading.py); the residual stream is float32.
How the rows of a decode step attend is chosen outside (attention.py).
Knows nothing of what the rows mean beyond slot and position, and checks nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.cpu.attention import Attention
from models.cpu.cache import KvCache, Writes
from models.cpu.linear import Gated, Linear
from models.cpu.rope import RotaryTables
from models.protocol import SlotInput
from models.spec import ModelSpec

# (layer, turned): turned is float32 (rows, heads + 2 * kv_heads, head_dim); answers (rows, heads, head_dim) in the
# decoder's dtype.
WriteAndAttend = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """The linears of one layer; `qkv` is the three projections stacked, queries and keys interleaved (rope.py)."""

    qkv: Linear
    output: Linear
    gated: Gated
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """`embedding`: (vocab_size, hidden_size). `head` answers (rows, vocab_size)."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    head: Linear


class Decoder:
    """A loaded model over the slots of one cache. `dtype` is that of the linears and the cache."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        cache: KvCache,
        rope: RotaryTables,
        dtype: torch.dtype,
        attention: Attention,
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._cache = cache
        self._rope = rope
        self._dtype = dtype
        self._least_length = torch.tensor(math.sqrt(spec.hidden_size * spec.rms_norm_eps))
        self._attention = attention

    def decode(self, live: Sequence[SlotInput], writes: Writes, count: int) -> Tensor:
        """One token a row, computed as `count` rows with idle ones behind `live`. Logits float32 (live, vocab_size)."""
        idle = count - len(live)
        tokens = torch.tensor([row.token for row in live] + [0] * idle)
        positions = torch.tensor([row.position for row in live] + [0] * idle)
        return self._score(self._run(tokens, positions, self._live_rows(live, writes), idle))[: len(live)]

    def feed(self, slot: int, tokens: Sequence[int], position: int, every_row: bool, count: int = 1) -> Tensor:
        """`tokens` into a slot from `position` on, computed as at least `count` rows, with idle ones behind.

        Logits float32 (rows, vocab_size) of the last token, or of all.
        """
        fresh = len(tokens)
        idle = max(count - fresh, 0)
        # Of the last layer the other rows need keys and values alone.
        first = 0 if every_row else max(fresh - count, 0)
        attend = self._fed_rows(slot, position, position + fresh, first)
        placed = torch.tensor([*tokens, *[0] * idle])
        positions = functional.pad(torch.arange(position, position + fresh), (0, idle))
        scores = self._score(self._run(placed, positions, attend, idle, first))
        return scores[:fresh] if every_row else scores[fresh - first - 1 :][:1]

    def decode_and_feed(
        self, live: Sequence[SlotInput], writes: Writes, slot: int, tokens: Sequence[int], position: int
    ) -> Tensor:
        """Both in one pass. Logits float32 (1 + live, vocab_size): those of the last of `tokens`, then those of `live`.

        In this order what is fed stands before what is decoded, so the rows that are scored are neighbours.
        """
        fresh = len(tokens)
        attend_live = self._live_rows(live, writes)
        attend_fed = self._fed_rows(slot, position, position + fresh, fresh - 1)

        def attend(layer: int, heads: Tensor) -> Tensor:
            return torch.cat((attend_fed(layer, heads[:fresh]), attend_live(layer, heads[fresh:])))

        placed = torch.tensor([*tokens, *(row.token for row in live)])
        positions = torch.tensor([*range(position, position + fresh), *(row.position for row in live)])
        return self._score(self._run(placed, positions, attend, first=fresh - 1))

    def _live_rows(self, live: Sequence[SlotInput], writes: Writes) -> WriteAndAttend:
        """The rows of a decode."""
        cache, heads = self._cache, self._spec.heads
        every_row = len(writes.rows) == len(live)
        attend = self._attention.step(cache, live)

        def write_and_attend(layer: int, turned: Tensor) -> Tensor:
            rows = turned.to(self._dtype)
            written = rows[:, heads:]
            cache.write(layer, writes.places, written if every_row else written[writes.rows])
            return attend(layer, rows[:, :heads])

        return write_and_attend

    def _fed_rows(self, slot: int, start: int, stop: int, first: int) -> WriteAndAttend:
        """The rows of a feed; in the last layer, those from `first` on attend."""
        cache, spec = self._cache, self._spec
        attend_all = self._attention.feed(cache, slot, start, stop)
        attend_last = self._attention.feed(cache, slot, start + first, stop) if first else attend_all
        places = cache.places(slot, start, stop)

        def write_and_attend(layer: int, turned: Tensor) -> Tensor:
            places[layer].copy_(turned[:, spec.heads :].view(len(turned), 2, spec.kv_heads, spec.head_dim))
            begin, attend = (first, attend_last) if layer == spec.layers - 1 else (0, attend_all)
            return attend(layer, turned[begin:, : spec.heads])

        return write_and_attend

    def _run(self, tokens: Tensor, positions: Tensor, attend: WriteAndAttend, idle: int = 0, first: int = 0) -> Tensor:
        """The residual stream behind the last layer of the rows from `first` on, float32 (rows, hidden_size).

        `attend` answers these rows alone in the last layer, and all rows in the others, but for the last `idle` ones,
        which attend to nothing.
        """
        spec = self._spec
        rows, turned = len(tokens), spec.heads + spec.kv_heads
        turns = self._rope.at(positions)
        hidden = self._weights.embedding[tokens].float()
        for index, layer in enumerate(self._weights.layers):
            # Turned in float32, as the tables are, and once for queries and keys.
            heads = layer.qkv(self._normed(hidden)).float().view(rows, turned + spec.kv_heads, spec.head_dim)
            self._rope.turn(heads[:, :turned], turns)
            attended = attend(index, heads[: rows - idle]).flatten(1)
            if idle:
                attended = functional.pad(attended, (0, 0, 0, idle))
            hidden = layer.output.add(attended, hidden[first:] if index == spec.layers - 1 else hidden)
            hidden = layer.down.add(layer.gated(self._normed(hidden)), hidden)
        return hidden

    def _score(self, hidden: Tensor) -> Tensor:
        return self._weights.head(self._normed(hidden)).float()

    def _normed(self, hidden: Tensor) -> Tensor:
        """RMS norm without its weights and without the root of the hidden size, which the linears behind it hold.

        x / sqrt(x.x + n * eps) in three operators less than the library's: 60 of them are in every step.
        """
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True).hypot_(self._least_length)
        scaled: Tensor = hidden / length
        return scaled.to(self._dtype)
