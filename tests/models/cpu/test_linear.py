"""The linear layers: packed or plain, with what is fused behind them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional

from models.backend import ConfigurationError
from models.cpu import linear
from models.cpu.linear import HalfLinear, PackedLinear, PlainLinear, linear_type


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


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_float16_weights_are_multiplied_in_float32(rows: int, biased: bool) -> None:
    """Activations are not rounded, and may be larger than any float16."""
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(37, 20, generator=generator), 1e6 * torch.randn(rows, 20, generator=generator)
    bias = torch.randn(37, generator=generator) if biased else None
    other = torch.randn(rows, 37, generator=generator)
    y = functional.linear(x, weight.half().float(), bias)
    layer = HalfLinear(weight, bias)
    near = partial(torch.testing.assert_close, rtol=1e-4, atol=1.0)
    near(layer(x), y)
    near(layer.swish(x), functional.silu(y))
    near(layer.multiply(x, other), y * other)
    near(layer.add(x, other), y + other)


def test_a_weight_beyond_float16_is_refused_with_its_value() -> None:
    with pytest.raises(ConfigurationError, match=r"a weight of 7e\+04 is over the range of float16: set weights"):
        HalfLinear(torch.tensor([[1.0, -7e4]]), None)


def test_a_build_without_the_operators_refuses_float16_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: HalfLinear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        raise RuntimeError("Didn't find engine for operation quantized::linear_prepack_fp16")

    monkeypatch.setattr(linear.HalfLinear, "__init__", absent)
    with pytest.raises(ConfigurationError, match='cannot multiply float16 weights on this processor: set weights = "d'):
        linear_type(torch.float32, "float16")
