"""The linear layers: packed or plain, with what is fused behind them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from models.cpu import linear
from models.cpu.linear import PackedLinear, PlainLinear, linear_type


@pytest.mark.parametrize("kind", [PackedLinear, PlainLinear])
@pytest.mark.parametrize("rows", [1, 3, 8, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_each_form_is_the_product_and_what_follows(
    kind: type[PackedLinear] | type[PlainLinear], rows: int, biased: bool
) -> None:
    if linear_type(torch.float32) is PlainLinear and kind is PackedLinear:
        pytest.skip("this build of torch has no packed linears")
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(37, 20, generator=generator), torch.randn(rows, 20, generator=generator)
    bias = torch.randn(37, generator=generator) if biased else None
    other = torch.randn(rows, 37, generator=generator)
    y = functional.linear(x, weight, bias)
    layer = kind(weight, bias)
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(layer.swish(x), functional.silu(y))
    torch.testing.assert_close(layer.multiply(x, other), y * other)
    torch.testing.assert_close(layer.add(x, other), y + other)


def test_a_build_without_the_operators_gets_plain_linears(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: PackedLinear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr(linear.PackedLinear, "__init__", absent)
    assert linear_type(torch.float32) is PlainLinear


def test_operators_that_compute_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear.PackedLinear, "swish", lambda self, x: self(x))
    assert linear_type(torch.float32) is PlainLinear
