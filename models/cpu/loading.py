"""Builds a Decoder from a checkpoint: reads, fuses, folds and packs the weights, one layer at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.cpu.decoder import Layer, Weights
from models.cpu.linear import Gated, GatePair, GateStack, Linear, LinearType
from models.cpu.rope import interleaved
from models.spec import ModelSpec


def load_weights(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    dtype: torch.dtype,
    linear: LinearType,
    stacked: bool,
    progress: Callable[[int, int], None],
) -> Weights:
    """All weights, ready to run: `linear` keeps them, gates `stacked` or in pairs (linear.py). `progress` gets (bytes
    read, bytes in all) after each tensor."""
    return _Loader(checkpoint, spec, dtype, linear, stacked, progress).load()


class _Loader:
    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        dtype: torch.dtype,
        linear: LinearType,
        stacked: bool,
        progress: Callable[[int, int], None],
    ) -> None:
        self._checkpoint = checkpoint
        self._spec = spec
        self._dtype = dtype
        self._linear = linear
        self._stacked = stacked
        self._progress = progress
        self._done = 0
        self._total = sum(checkpoint.entries[name].bytes for name in spec.tensor_shapes())

    def load(self) -> Weights:
        embedding = self._read("model.embed_tokens.weight")
        layers = tuple(self._layer(f"model.layers.{index}") for index in range(self._spec.layers))
        norm = self._norm("model.norm")
        head = embedding if self._spec.tied else self._read("lm_head.weight")
        # The checkpoint's file is closed after the load: what is kept must not be a view of it.
        return Weights(embedding.to(self._dtype, copy=True), layers, self._pack(head, None, norm))

    def _layer(self, prefix: str) -> Layer:
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        before_attention = self._norm(f"{prefix}.input_layernorm")
        biased = self._spec.attention_bias
        qkv_linear = self._pack(
            self._projections(attention, "weight"),
            self._projections(attention, "bias") if biased else None,
            before_attention,
        )
        output = self._whole(f"{attention}.o_proj", biased)
        before_mlp = self._norm(f"{prefix}.post_attention_layernorm")
        return Layer(
            qkv=qkv_linear,
            output=output,
            gated=self._gated(mlp, before_mlp),
            down=self._whole(f"{mlp}.down_proj", self._spec.mlp_bias),
        )

    def _gated(self, mlp: str, norm: Tensor) -> Gated:
        names, biased = (f"{mlp}.gate_proj", f"{mlp}.up_proj"), self._spec.mlp_bias
        if not self._stacked:
            return GatePair(*(self._whole(name, biased, norm) for name in names))
        weight = torch.cat([self._read(f"{name}.weight") for name in names])
        bias = torch.cat([self._read(f"{name}.bias") for name in names]) if biased else None
        return GateStack(self._pack(weight, bias, norm))

    def _norm(self, name: str) -> Tensor:
        """What to multiply the columns of the linears behind a norm with: see Decoder._normed."""
        return self._read(f"{name}.weight").float() * math.sqrt(self._spec.hidden_size)

    def _projections(self, attention: str, part: str) -> Tensor:
        """Weights or biases of the three projections, stacked."""
        query, key, value = (self._read(f"{attention}.{name}_proj.{part}") for name in "qkv")
        return torch.cat([interleaved(query, self._spec.heads), interleaved(key, self._spec.kv_heads), value])

    def _whole(self, name: str, biased: bool, norm: Tensor | None = None) -> Linear:
        bias = self._read(f"{name}.bias") if biased else None
        return self._pack(self._read(f"{name}.weight"), bias, norm)

    def _pack(self, weight: Tensor, bias: Tensor | None, norm: Tensor | None) -> Linear:
        """(W diag(norm)) x = W (norm * x): the norm's weights cost nothing at run time."""
        folded = weight.float() if norm is None else weight.float() * norm
        return self._linear(folded.to(self._dtype, copy=True), None if bias is None else bias.to(self._dtype))

    def _read(self, name: str) -> Tensor:
        tensor = self._checkpoint.read(name)
        self._done += self._checkpoint.entries[name].bytes
        self._progress(self._done, self._total)
        return tensor
