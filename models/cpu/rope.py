"""Rotary position embeddings: the tables, and turning query and key heads with them.

Su et al. 2021 in the half-split form of Hugging Face's Llama, with Llama 3.1's frequency scaling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.spec import ModelSpec, RopeScaling


class RotaryTables:
    """cos and sin of every position, (n_positions, 1, head_dim) float32, ready to broadcast over heads."""

    def __init__(self, spec: ModelSpec, n_positions: int) -> None:
        frequencies = inverse_frequencies(spec)
        angles = torch.outer(torch.arange(n_positions, dtype=torch.float32), frequencies)
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.cat((cos, cos), -1).unsqueeze(1)
        # Turning takes (-second half, first half); the sign goes into the table, so a roll is enough.
        self._sin = torch.cat((-sin, sin), -1).unsqueeze(1)
        self._half = spec.head_dim // 2

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) rows for int64 `positions` (rows,)."""
        return self._cos[positions], self._sin[positions]

    def turn(self, heads: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Turn `heads` (rows, heads, head_dim) in place."""
        rolled = heads.roll(self._half, -1)
        torch.addcmul(heads * cos, rolled, sin, out=heads)


def inverse_frequencies(spec: ModelSpec) -> Tensor:
    """Radians per position of each pair, float32 (head_dim / 2,)."""
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).float() / spec.head_dim
    frequencies = 1.0 / (spec.rope_theta**exponents)
    return frequencies if spec.rope_scaling is None else _stretched(frequencies, spec.rope_scaling)


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Long wavelengths are divided by `factor`, short ones kept, those between blended (Llama 3.1's reference code)."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_position_embeddings / wavelengths
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
