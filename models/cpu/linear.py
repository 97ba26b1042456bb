"""Linear layers of the CPU decoder, with what follows them (activation, product, sum) fused where oneDNN can.

oneDNN's prepacked float32 kernels stream the weights at memory speed for few rows, and compute a row alike however
many stand beside it. The operators are private to torch, so they are tested for; without them F.linear does the work.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

# Packing wants a hint of the rows to come; the packed form serves any number.
_ROWS_HINT = 16


class Linear(Protocol):
    """y = x W^T + b for x (rows, in); each method goes on from y, (rows, out)."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def swish(self, x: Tensor) -> Tensor:
        """y * sigmoid(y)"""

    def multiply(self, x: Tensor, other: Tensor) -> Tensor:
        """y * other, both (rows, out)"""

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """y + residual, in float32"""


class PackedLinear:
    """oneDNN with weights in its own layout."""

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


class PlainLinear:
    """What every build of torch can do."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)

    def swish(self, x: Tensor) -> Tensor:
        return functional.silu(self(x))

    def multiply(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x) * other

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self(x)


def linear_type(dtype: torch.dtype) -> type[PackedLinear] | type[PlainLinear]:
    """PackedLinear where its operators exist and agree with F.linear at `dtype`, else PlainLinear."""
    weight = torch.linspace(-1, 1, 32 * 16).reshape(32, 16).to(dtype)
    x = torch.linspace(-1, 1, 3 * 16).reshape(3, 16).to(dtype)
    other = torch.linspace(-1, 1, 3 * 32).reshape(3, 32).to(dtype)
    plain = PlainLinear(weight, None)
    try:
        packed = PackedLinear(weight, None)
        pairs = [(packed(x), plain(x)), (packed.swish(x), plain.swish(x))]
        pairs += [(packed.multiply(x, other), plain.multiply(x, other)), (packed.add(x, other), plain.add(x, other))]
    except (AttributeError, RuntimeError, TypeError):  # not in this build, or not for this CPU or dtype
        return PlainLinear
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    agree = all(torch.allclose(left, right, rtol=tolerance, atol=tolerance) for left, right in pairs)
    return PackedLinear if agree else PlainLinear
