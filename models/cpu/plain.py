"""A Llama-architecture decoder as one writes it first: one that benchmark.py measures the CPU backend against.

Torch's own operators, one after the other, in the checkpoint's order: a product each for queries, keys, values, gate
and up, norms with their weights, the residual stream in the model's dtype, queries and keys turned apart, keys and
values written by an index, the library's attention. It shares no code with the pass that it is held against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from models.backend import Logits
from models.checkpoint import open_checkpoint
from models.cpu.rope import inverse_frequencies
from models.protocol import SlotInput
from models.spec import read_spec

_LENGTH_MULTIPLE = 64  # a step attends over whole blocks of so many positions

# (layer, queries, keys, values), each (rows, heads, head_dim), turned; answers (rows, heads * head_dim).
_WriteAndAttend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class PlainDecoder:
    """A loaded checkpoint over static slots, with the feeds and steps of a backend."""

    def __init__(self, directory: Path, dtype: torch.dtype, slots: int, n_positions: int) -> None:
        self._spec = spec = read_spec(directory)
        with open_checkpoint(directory, spec) as checkpoint:
            names = spec.tensor_shapes()
            self._weights = {name: checkpoint.read(name).to(dtype, copy=True) for name in names}
        shape = (spec.layers, slots, spec.kv_heads, n_positions, spec.head_dim)
        self._keys, self._values = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        angles = torch.outer(torch.arange(n_positions, dtype=torch.float32), inverse_frequencies(spec)).repeat(1, 2)
        self._cos, self._sin = angles.cos().to(dtype), angles.sin().to(dtype)

    @torch.inference_mode()
    def feed(self, slot: int, tokens: Sequence[int]) -> Logits:
        """`tokens` into a slot from its first position on. Logits of the last one, float32 (1, vocab_size)."""
        count = len(tokens)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self._keys[layer, slot, :, :count] = keys.transpose(0, 1)
            self._values[layer, slot, :, :count] = values.transpose(0, 1)
            query, key, value = (each.transpose(0, 1).unsqueeze(0) for each in (queries, keys, values))
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            return attended[0].transpose(0, 1).reshape(count, -1)

        return self._score(self._run(torch.tensor(tokens), torch.arange(count), attend)[-1:])

    @torch.inference_mode()
    def decode(self, live: Sequence[SlotInput]) -> Logits:
        """One token a row. Logits float32 (rows, vocab_size)."""
        slots = torch.tensor([row.slot for row in live])
        positions = torch.tensor([row.position for row in live])
        width = -(-(int(positions.max()) + 1) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        seen = (torch.arange(self._keys.shape[3]) <= positions[:, None])[:, None, None, :width]
        rows = slice(0, len(live)) if slots.equal(torch.arange(len(live))) else slots

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self._keys[layer][slots, :, positions] = keys
            self._values[layer][slots, :, positions] = values
            key, value = (each[layer][rows, :, :width] for each in (self._keys, self._values))
            query = queries.unsqueeze(2)
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
            return attended.flatten(1)

        return self._score(self._run(torch.tensor([row.token for row in live]), positions, attend))

    def _run(self, tokens: Tensor, positions: Tensor, attend: _WriteAndAttend) -> Tensor:
        """The residual stream behind the last layer, (rows, hidden_size)."""
        spec = self._spec
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
        hidden = self._weights["model.embed_tokens.weight"][tokens]
        for index in range(spec.layers):
            layer = f"model.layers.{index}"
            normed = self._normed(hidden, f"{layer}.input_layernorm")
            queries, keys, values = (
                self._linear(normed, f"{layer}.self_attn.{each}_proj").view(len(tokens), -1, spec.head_dim)
                for each in "qkv"
            )
            attended = attend(index, _turned(queries, cos, sin), _turned(keys, cos, sin), values)
            hidden = hidden + self._linear(attended, f"{layer}.self_attn.o_proj")
            normed = self._normed(hidden, f"{layer}.post_attention_layernorm")
            gate = functional.silu(self._linear(normed, f"{layer}.mlp.gate_proj"))
            hidden = hidden + self._linear(
                gate * self._linear(normed, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj"
            )
        return hidden

    def _score(self, hidden: Tensor) -> Logits:
        head = "model.embed_tokens" if self._spec.tied else "lm_head"
        return Logits(self._linear(self._normed(hidden, "model.norm"), head).float().numpy())

    def _normed(self, hidden: Tensor, name: str) -> Tensor:
        spec = self._spec
        return functional.rms_norm(hidden, (spec.hidden_size,), self._weights[f"{name}.weight"], spec.rms_norm_eps)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (rows, heads, head_dim), whose pairs are half a head apart."""
    first, second = heads.chunk(2, -1)
    return heads * cos + torch.cat((-second, first), -1) * sin
