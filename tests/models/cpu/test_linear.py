"""The linear layers: packed or plain, with what is fused behind them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional

from models.backend import ConfigurationError
from models.cpu import linear
from models.cpu.linear import GatePair, GateStack, HalfLinear, PackedLinear, PlainLinear, linear_type

_EIGHT_BITS = {"rtol": 2e-2, "atol": 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [PackedLinear, PlainLinear])
@pytest.mark.parametrize("rows", [1, 3, 8, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_each_form_is_the_product_and_what_follows(
    kind: type[PackedLinear] | type[PlainLinear], rows: int, biased: bool, dtype: torch.dtype
) -> None:
    if linear_type(dtype) is PlainLinear and kind is PackedLinear:
        pytest.skip(f"this processor, or this build of torch, has no packed linears in {dtype}")
    generator = torch.Generator().manual_seed(rows)
    weight, x = (torch.randn(size, 20, generator=generator).to(dtype) for size in (37, rows))
    bias = torch.randn(37, generator=generator).to(dtype) if biased else None
    other = torch.randn(rows, 37, generator=generator).to(dtype)
    residual = torch.randn(rows, 37, generator=generator)
    y = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    layer = kind(weight, bias)
    # What is rounded to bfloat16 once, or twice where nothing is fused, is off by its eighth bit.
    near = partial(torch.testing.assert_close, check_dtype=False, **({} if dtype.itemsize == 4 else _EIGHT_BITS))
    near(layer(x), y)
    near(layer.swish(x), functional.silu(y))
    near(layer.multiply(x, other), y * other)
    summed = layer.add(x, residual)
    near(summed, y + residual)
    assert summed.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_gates_in_pairs_and_stacked_are_the_gated_product(rows: int, biased: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, x = (torch.randn(size, 20, generator=generator).to(dtype) for size in (74, rows))
    bias = torch.randn(74, generator=generator).to(dtype) if biased else None
    gate, up = functional.linear(x.float(), weight.float(), None if bias is None else bias.float()).chunk(2, -1)
    kind = linear_type(dtype)
    near = partial(torch.testing.assert_close, check_dtype=False, **({} if dtype.itemsize == 4 else _EIGHT_BITS))
    halves = [kind(weight[part], None if bias is None else bias[part]) for part in (slice(0, 37), slice(37, 74))]
    near(GatePair(*halves)(x), functional.silu(gate) * up)
    near(GateStack(kind(weight, bias))(x), functional.silu(gate) * up)


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
