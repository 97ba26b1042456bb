"""Rotary position embeddings: the tables, and turning query and key heads with them.

Su et al. 2021, with Llama 3.1's frequency scaling. A pair of numbers that turn together is one complex number here, so
that turning is one product. Hugging Face's Llama has the pairs half a head apart; `interleaved` puts them side by side
in the weights, which scores do not notice: queries and keys are in the same order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.spec import ModelSpec, RopeScaling


class RotaryTables:
    """The turn of every position, (n_positions, 1, head_dim / 2) complex64, ready to broadcast over heads."""

    def __init__(self, spec: ModelSpec, n_positions: int) -> None:
        angles = torch.outer(torch.arange(n_positions, dtype=torch.float32), inverse_frequencies(spec))
        self._turns = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)

    def at(self, positions: Tensor) -> Tensor:
        """The turns of int64 `positions` (rows,)."""
        return self._turns[positions]

    @staticmethod
    def turn(heads: Tensor, turns: Tensor) -> None:
        """Turn float32 `heads` (rows, heads, head_dim), interleaved, in place by `turns` of the rows."""
        torch.view_as_complex(heads.view(*heads.shape[:-1], -1, 2)).mul_(turns)


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """The rows of a projection (heads * head_dim, ...) with the two halves of each head interleaved."""
    halves = weight.reshape(heads, 2, weight.shape[0] // (2 * heads), *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


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
