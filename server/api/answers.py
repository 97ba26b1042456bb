"""The answers' JSON, key for key (wire contract, sections 6, 7, 11). Class names are those of TGI's OpenAPI document.

A key that is absent rather than null is UNSET here. Numbers that JSON cannot write (NaN, -inf) become null.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from server import core

_encoder = msgspec.json.Encoder()
encode = _encoder.encode
"""Compact UTF-8 JSON of any struct below."""

_FLOAT32 = struct.Struct("<f")
_FLOAT32_MAX = 3.4028234663852886e38


class Token(msgspec.Struct, frozen=True):
    """A token of a native answer."""

    id: int
    text: str
    logprob: float | None
    special: bool


class PrefillToken(msgspec.Struct, frozen=True):
    """A token of the prompt."""

    id: int
    text: str
    logprob: float | None


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """`details` of a plain native answer."""

    finish_reason: core.FinishReason
    generated_tokens: int
    seed: int | None
    prefill: Sequence[PrefillToken] = ()
    tokens: Sequence[Token]
    top_tokens: Sequence[Sequence[Token]] | UnsetType = UNSET


class GenerateResponse(msgspec.Struct, frozen=True):
    """A plain native answer."""

    generated_text: str
    details: Details | UnsetType = UNSET


class StreamDetails(msgspec.Struct, frozen=True):
    """`details` of the last native event."""

    finish_reason: core.FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A native event."""

    index: int
    token: Token
    top_tokens: Sequence[Token] | UnsetType = UNSET
    generated_text: str | None = None
    details: StreamDetails | None = None


class ErrorResponse(msgspec.Struct, frozen=True):
    """Every error that is not a BodyError, and the error event of a native stream."""

    error: str
    error_type: str


class ChatError(msgspec.Struct, frozen=True):
    """The inside of an OpenAI stream's error event; the code is TGI's, whatever the error."""

    message: str
    http_status_code: int = 422


class ChatErrorEvent(msgspec.Struct, frozen=True):
    """The error event of an OpenAI stream."""

    error: ChatError


class TopLogprob(msgspec.Struct, frozen=True):
    """An alternative of a chat token."""

    token: str
    logprob: float | None


class ChatLogprob(msgspec.Struct, frozen=True):
    """A token of a chat answer with its logprob."""

    token: str
    logprob: float | None
    top_logprobs: Sequence[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """`logprobs` of a choice."""

    content: Sequence[ChatLogprob]


class TextMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A text message, whole or one token of it."""

    role: str = "assistant"
    content: str


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one choice of a plain chat answer."""

    index: int = 0
    message: TextMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one choice of a chat event."""

    index: int = 0
    delta: TextMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class Usage(msgspec.Struct, frozen=True):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A plain chat answer."""

    object: str = "chat.completion"
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[ChatChoice]
    usage: Usage


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A chat event."""

    object: str = "chat.completion.chunk"
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[ChunkChoice]
    usage: Usage | None = None


def wire_logprob(logprob: float) -> float | None:
    """The shortest number that is this float32, as Rust prints it; None when it is not finite."""
    if not math.isfinite(logprob) or abs(logprob) > _FLOAT32_MAX:
        return None
    packed = _FLOAT32.pack(logprob)
    (exact,) = _FLOAT32.unpack(packed)
    shorter = (float(f"{exact:.{digits}g}") for digits in (6, 7, 8))
    return next((number for number in shorter if _FLOAT32.pack(number) == packed), float(f"{exact:.9g}"))


def wire_token(token: core.Token) -> Token:
    """A core token as native answers show it."""
    return Token(token.id, token.text, wire_logprob(token.logprob), token.special)


def wire_tokens(tokens: Sequence[core.Token]) -> list[Token]:
    """Several of them."""
    return [wire_token(token) for token in tokens]


def wire_usage(usage: core.Usage) -> Usage:
    """Token counts as the OpenAI routes show them."""
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
