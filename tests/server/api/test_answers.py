"""Numbers and keys of the answers' JSON."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.answers import GenerateResponse, StreamResponse, Token, encode, wire_logprob


def as_float32(number: float) -> float:
    (value,) = struct.unpack("<f", struct.pack("<f", number))
    return float(value)


@pytest.mark.parametrize(
    ("logprob", "written"),
    [
        (as_float32(-0.72), b"-0.72"),
        (as_float32(-1.1), b"-1.1"),
        (0.0, b"0.0"),
        (-0.0, b"-0.0"),
        (-5.0, b"-5.0"),
        (as_float32(-1e-7), b"-1e-7"),
        (-math.inf, b"null"),
        (math.nan, b"null"),
        (-1e300, b"null"),
    ],
)
def test_logprobs_as_rust_writes_them(logprob: float, written: bytes) -> None:
    assert encode(wire_logprob(logprob)) == written


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_the_short_number_is_the_same_float32(number: float) -> None:
    short = wire_logprob(number)
    assert short is not None
    assert as_float32(short) == number


def test_text_is_utf8_not_escapes() -> None:
    assert encode(Token(1, "计算😀\u2028\n", -1.0, False)) == (
        '{"id":1,"text":"计算😀\u2028\\n","logprob":-1.0,"special":false}'.encode()
    )


def test_absent_and_null_keys() -> None:
    assert encode(GenerateResponse("x")) == b'{"generated_text":"x"}'
    golden = (
        b'{"index":1,"token":{"id":1,"text":"","logprob":null,"special":true},"generated_text":null,"details":null}'
    )
    assert encode(StreamResponse(index=1, token=Token(1, "", None, True))) == golden
