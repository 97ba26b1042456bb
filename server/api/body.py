"""From a request's bytes to a JSON tree, refusing what TGI's router refuses (wire contract, section 2a).

Content type, size, syntax; what the tree must look like is decode.py's business. Objects stay lists of pairs
(`Members`), so that a repeated key is still seen there.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive

from server.api.syntax import STRUCTURE, reason_of
from server.errors import BodyTooLarge, MalformedJSON, UnsupportedMediaType

# serde_json stops at this depth; it also keeps every later walk over the tree within Python's own stack.
MAX_DEPTH = 128
_U64_DIGITS = 20
_U64_MAX = 2**64 - 1

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


class Members(list[tuple[str, Any]]):
    """The (key, value) pairs of a JSON object, in order, repeated keys included."""


class ClientGone(Exception):
    """The client closed the connection; nobody is left to answer."""


def check_content_type(headers: Headers) -> None:
    """UnsupportedMediaType unless it is application/json or application/*+json, parameters allowed."""
    essence = headers.get("content-type", "").partition(";")[0].strip().lower()
    kind, _, subtype = essence.partition("/")
    if kind != "application" or not (subtype == "json" or (subtype.endswith("+json") and subtype != "+json")):
        raise UnsupportedMediaType()


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body; BodyTooLarge over `limit` bytes, without keeping more than that. ClientGone when cut short."""
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise BodyTooLarge()
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone()
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge()
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def parse_json(body: bytes) -> Any:
    """The JSON tree of `body`; MalformedJSON when it is none.

    Integers beyond 64 bits become floats, as in serde_json, and fail later where an integer is wanted.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJSON(f"invalid unicode code point at byte {error.start}") from None
    _check_depth(text)
    _check_surrogates(text)
    try:
        return json.loads(
            text, object_pairs_hook=Members, parse_int=_integer, parse_float=_finite, parse_constant=_no_constant
        )
    except json.JSONDecodeError as error:
        raise MalformedJSON(reason_of(error)) from None
    except _NotJSON as error:
        raise MalformedJSON(f"{error} at {end_of(body)}") from None


def end_of(body: bytes) -> str:
    """Where the last byte stands, in serde's words: the position that every type error names."""
    column = len(body) - (body.rfind(b"\n") + 1)
    return f"line {body.count(10) + 1} column {column}"


class _NotJSON(Exception):
    pass


def _integer(digits: str) -> int | float:
    if len(digits) > _U64_DIGITS:
        return _finite(digits)
    number = int(digits)
    return number if -(2**63) <= number <= _U64_MAX else float(number)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _NotJSON("number out of range")
    return number


def _no_constant(name: str) -> float:
    raise _NotJSON("expected value")


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") < MAX_DEPTH:
        return
    depth = 0
    for match in STRUCTURE.finditer(text):
        token = match.group()
        if token in "[{":
            depth += 1
            if depth >= MAX_DEPTH:
                raise MalformedJSON(f"recursion limit exceeded at byte {len(text[: match.start()].encode())}")
        elif token in "]}":
            depth -= 1


def _check_surrogates(text: str) -> None:
    """A \\u escape of half a character has no UTF-8: serde_json refuses it, Python's json does not."""
    if r"\ud" not in text and r"\uD" not in text:
        return
    leading_end = -1  # where the low half of a pair must begin, or -1
    for match in _ESCAPE.finditer(text):
        code = int(match.group(1), 16) if match.group(1) else 0
        trailing = 0xDC00 <= code <= 0xDFFF
        if trailing != (match.start() == leading_end and leading_end >= 0):
            raise MalformedJSON(f"lone surrogate in hex escape at column {match.start() + 1}")
        leading_end = match.end() if 0xD800 <= code <= 0xDBFF else -1
    if leading_end >= 0:
        raise MalformedJSON(f"unexpected end of hex escape at column {leading_end + 1}")
