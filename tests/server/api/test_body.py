"""Reading a body: content type, size and JSON syntax, as TGI's router refuses them (wire contract, section 2a)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from server.api.body import ClientGone, check_content_type, parse_json, read_body
from server.api.decode import plain
from server.errors import BodyTooLarge, MalformedJSON, UnsupportedMediaType


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json ;charset=utf-8",
        "application/vnd.api+json",
    ],
)
def test_json_content_types_are_accepted(content_type: str) -> None:
    check_content_type(Headers({"content-type": content_type}))


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "text/json", "application/+json"],
)
def test_other_content_types_are_415(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_content_type(Headers({"content-type": content_type}))


def test_a_missing_content_type_is_415() -> None:
    with pytest.raises(UnsupportedMediaType, match="Expected request with `Content-Type: application/json`"):
        check_content_type(Headers({}))


class Wire:
    """ASGI messages of a body that arrives in pieces; counts how many were taken."""

    def __init__(self, *pieces: bytes, gone: bool = False) -> None:
        self._messages = iter(self._make(pieces, gone))
        self.taken = 0

    @staticmethod
    def _make(pieces: tuple[bytes, ...], gone: bool) -> Iterator[dict[str, object]]:
        for index, piece in enumerate(pieces):
            yield {"type": "http.request", "body": piece, "more_body": gone or index + 1 < len(pieces)}
        yield {"type": "http.disconnect"}

    async def receive(self) -> dict[str, object]:
        self.taken += 1
        return next(self._messages)


def read(wire: Wire, limit: int, headers: dict[str, str] | None = None) -> bytes:
    return asyncio.run(read_body(Headers(headers or {}), wire.receive, limit))  # type: ignore[arg-type]


def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert read(Wire(b"12345", b"67890"), 10) == b"1234567890"


def test_a_declared_length_over_the_limit_is_refused_before_reading() -> None:
    wire = Wire(b"1" * 11)
    with pytest.raises(BodyTooLarge):
        read(wire, 10, {"content-length": "11"})
    assert wire.taken == 0


def test_an_undeclared_length_over_the_limit_is_refused_at_the_piece_that_passes_it() -> None:
    wire = Wire(b"12345", b"678901", b"never read", b"never read")
    with pytest.raises(BodyTooLarge):
        read(wire, 10)
    assert wire.taken == 2


def test_a_body_cut_short_is_nobodys_request() -> None:
    with pytest.raises(ClientGone):
        read(Wire(b'{"inp', gone=True), 10)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "EOF while parsing a value at line 1 column 0"),
        (b"  \n", "EOF while parsing a value"),
        (b"{", "EOF while parsing"),
        (b'{"inputs": ', "EOF while parsing a value"),
        (b"inputs=x", "line 1 column 1"),
        (b'{"inputs": "x",}', "line 1 column"),
        (b"{'inputs': 'x'}", "line 1 column 2"),
        (b'{"inputs": "x"} {}', "trailing characters at line 1 column 17"),
        (b'{"inputs": NaN}', "expected value at line 1 column "),
        (b'{"inputs": Infinity}', "expected value at line 1 column "),
        (b'{"inputs": -Infinity}', "expected value at line 1 column "),
        (b'{"temperature": 1e999}', "number out of range"),
        (b'{"temperature": ' + b"9" * 400 + b"}", "number out of range"),
        (b'{"inputs": 01}', "line 1 column"),
        (b'{"inputs": "a\nb"}', "control character"),
        (b'{"inputs": "\xff"}', "invalid unicode code point at byte 12"),
        (b'{"inputs": "\xed\xa0\x80"}', "invalid unicode code point"),
        (b"\xef\xbb\xbf{}", "line 1 column 1"),
        ('{"inputs": "x"}'.encode("utf-16"), "invalid unicode code point"),
        (rb'{"inputs": "\ud83d"}', "unexpected end of hex escape"),
        (rb'{"inputs": "\ud83dx"}', "unexpected end of hex escape"),
        (rb'{"inputs": "\ude00"}', "lone surrogate"),
        (rb'{"inputs": "\ude00\ud83d"}', "lone surrogate"),
        (rb'{"inputs": "\ud83d\ud83d\ude00"}', "lone surrogate"),
        (rb'{"inputs": "\ud83d \ude00"}', "lone surrogate"),
        (b"[" * 128 + b"]" * 128, "recursion limit exceeded"),
        (b'{"a":' * 200_000, "recursion limit exceeded"),
        (b"[" * 1_000_000, "recursion limit exceeded"),
        # In quadratic time these would take hours.
        (b'"' + b'\\"' * 800_000 + b"[" * 128, "EOF while parsing a string"),
        (b'["' + b'\\"' * 800_000 + b"{" * 128 + b"\\", "EOF while parsing a string"),
    ],
)
def test_what_is_not_json_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(MalformedJSON) as error:
        parse_json(body)
    assert error.value.text.startswith("Failed to parse the request body as JSON: ")
    assert reason.lower() in error.value.text.lower()


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (rb'"\ud83d\ude00"', "😀"),
        (rb'"\\ud83d"', r"\ud83d"),
        ('"计算\u2028"'.encode(), "计算\u2028"),
        (b"[" * 127 + b"]" * 127, None),
        (b'["' + b"[" * 500 + b'"]', ["[" * 500]),
        (b'["\\"' + b"{" * 500 + b'"]', ['"' + "{" * 500]),
        (b"18446744073709551615", 18446744073709551615),
        (b"-9223372036854775808", -9223372036854775808),
        (b" \t\r\n1 ", 1),
    ],
)
def test_what_is_json_is_read(body: bytes, value: object) -> None:
    assert value is None or plain(parse_json(body)) == value


@pytest.mark.parametrize("digits", [b"18446744073709551616", b"-9223372036854775809", b"9" * 60])
def test_integers_beyond_64_bits_are_floats_as_in_serde(digits: bytes) -> None:
    assert isinstance(parse_json(digits), float)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(json_values, st.booleans())
def test_every_json_value_is_read_as_it_is(value: object, escaped: bool) -> None:
    assert plain(parse_json(json.dumps(value, ensure_ascii=escaped).encode())) == value


@given(st.binary())
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    try:
        parse_json(body)
    except MalformedJSON:
        return
    json.loads(body.decode())
