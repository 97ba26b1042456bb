"""Linear layers of the CPU decoder, with what follows them (activation, product, sum) fused where the library can.

Weights are kept in the decoder's dtype (in oneDNN's layout, or torch's own) or in float16 (in FBGEMM's). A decode step
reads every weight once for few rows, so smaller weights are faster ones. The operators are private to torch, so each is
held against F.linear before it is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from models.backend import ConfigurationError
from models.protocol import CpuWeights

# Packing wants a hint of the rows to come; the packed form serves any number.
_ROWS_HINT = 16

# What the operators raise that are not in this build of torch, or not for this processor or dtype.
_ABSENT = (AttributeError, RuntimeError, TypeError)


class Linear(Protocol):
    """y = x W^T + b for x (rows, in); each method goes on from y, (rows, out)."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def swish(self, x: Tensor) -> Tensor:
        """y * sigmoid(y)"""

    def multiply(self, x: Tensor, other: Tensor) -> Tensor:
        """y * other, both (rows, out)"""

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """y + residual, in float32"""


# Makes a Linear of a weight (out, in) in the decoder's dtype, and of a bias (out,) or None.
LinearType = Callable[[Tensor, Tensor | None], Linear]


class PackedLinear:
    """oneDNN with weights in its own layout: its float32 kernels compute a row alike however many stand beside it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return self._unary(x, "none")

    def swish(self, x: Tensor) -> Tensor:
        return self._unary(x, "swish")

    def multiply(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "mul")

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        if x.dtype != residual.dtype:
            return residual + self._unary(x, "none")
        return self._binary(x, residual, "add")

    def _unary(self, x: Tensor, operation: str) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, operation, [], "")
        return y

    def _binary(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, operation)
        return y


class Unfused(ABC):
    """A product, and what follows it one by one."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    def swish(self, x: Tensor) -> Tensor:
        return functional.silu(self(x), inplace=True)

    def multiply(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x).mul_(other)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self(x)


class PlainLinear(Unfused):
    """What every build of torch can do."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)


class HalfLinear(Unfused):
    """Weights in float16, which has three bits more than a bfloat16 checkpoint; products and sums in float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        largest = max(abs(float(end)) for end in weight.aminmax())
        if largest > torch.finfo(torch.float16).max:
            raise ConfigurationError(f'a weight of {largest:.3g} is over the range of float16: set weights = "dtype"')
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return y


class Gated(Protocol):
    """silu(x G^T) * (x U^T) for x (rows, in): the first half of a gated MLP, (rows, out)."""

    def __call__(self, x: Tensor) -> Tensor: ...


class GatePair:
    """Two products, each with what follows it. Alike for a row whatever stands beside it, if the linears are."""

    def __init__(self, gate: Linear, up: Linear) -> None:
        self._gate, self._up = gate, up

    def __call__(self, x: Tensor) -> Tensor:
        return self._up.multiply(x, self._gate.swish(x))


class GateStack:
    """One product of the two weights stacked: a call less a layer, which is 4 % of a step of few rows.

    Torch's own SiLU rounds the last few numbers of a thread's share in another way, so neighbours may change a row.
    """

    def __init__(self, stacked: Linear) -> None:
        """`stacked`: of weights (2 * out, in), the gate's first."""
        self._stacked = stacked

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self._stacked(x).chunk(2, -1)
        return functional.silu(gate).mul_(up)


def linear_type(dtype: torch.dtype, weights: CpuWeights = "dtype") -> LinearType:
    """The form to keep `weights` in. "dtype": PackedLinear where its operators agree with F.linear at `dtype`, else
    PlainLinear. ConfigurationError where this torch cannot multiply float16 weights."""
    if weights == "dtype":
        return PackedLinear if _agrees(PackedLinear, dtype, 1e-4 if dtype == torch.float32 else 5e-2) else PlainLinear
    if not _agrees(HalfLinear, dtype, 5e-3):
        raise ConfigurationError(
            f'torch {torch.__version__} cannot multiply {weights} weights on this processor: set weights = "dtype"'
        )
    return HalfLinear


def _agrees(kind: LinearType, dtype: torch.dtype, tolerance: float) -> bool:
    """Whether `kind` computes here, and computes what F.linear does."""
    weight = torch.linspace(-1, 1, 32 * 16).reshape(32, 16).to(dtype)
    x = torch.linspace(-1, 1, 3 * 16).reshape(3, 16).to(dtype)
    other = torch.linspace(-1, 1, 3 * 32).reshape(3, 32).to(dtype)
    plain = PlainLinear(weight, None)
    try:
        tried = kind(weight, None)
        pairs = [(tried(x), plain(x)), (tried.swish(x), plain.swish(x))]
        pairs += [(tried.multiply(x, other), plain.multiply(x, other)), (tried.add(x, other), plain.add(x, other))]
    except _ABSENT:
        return False
    return all(torch.allclose(left, right, rtol=tolerance, atol=tolerance) for left, right in pairs)
