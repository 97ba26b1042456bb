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


class BestOfSequence(msgspec.Struct, frozen=True, kw_only=True):
    """A run of best_of that did not win."""

    generated_text: str
    finish_reason: core.FinishReason
    generated_tokens: int
    seed: int | None
    prefill: Sequence[PrefillToken] = ()
    tokens: Sequence[Token]
    top_tokens: Sequence[Sequence[Token]] | UnsetType = UNSET


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """`details` of a plain native answer."""

    finish_reason: core.FinishReason
    generated_tokens: int
    seed: int | None
    prefill: Sequence[PrefillToken] = ()
    tokens: Sequence[Token]
    top_tokens: Sequence[Sequence[Token]] | UnsetType = UNSET
    best_of_sequences: Sequence[BestOfSequence] | UnsetType = UNSET


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


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    """The function a model calls; `arguments` is JSON text."""

    description: str | None = None
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call in a plain chat answer."""

    id: str
    type: str = "function"
    function: CalledFunction


class FunctionDelta(msgspec.Struct, frozen=True):
    """A piece of a call: the name comes with the first, the arguments' texts concatenate."""

    name: str | None
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a call in a chat event."""

    index: int = 0
    id: str
    type: str = "function"
    function: FunctionDelta


class ToolMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that calls a tool, whole or a piece of it; it has no content."""

    role: str = "assistant"
    tool_calls: Sequence[ToolCall] | Sequence[ToolCallDelta]


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one choice of a plain chat answer."""

    index: int = 0
    message: TextMessage | ToolMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The one choice of a chat event."""

    index: int = 0
    delta: TextMessage | ToolMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Of the prompt's tokens, those that the device held already."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Token counts. TGI knows no details: they are there only where something was reused."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


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


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one prompt, whole or one token of it; `finish_reason` is "" until the last."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: str


class CompletionFinal(msgspec.Struct, frozen=True, kw_only=True):
    """A plain answer of /v1/completions."""

    object: str = "text_completion"
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[CompletionChoice]
    usage: Usage


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """An event of /v1/completions."""

    object: str = "text_completion"
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[CompletionChoice]
    usage: Usage | None = None


def wire_logprob(logprob: float) -> float | None:
    """The shortest number that is this float32, as Rust prints it; None when it is not finite."""
    if not math.isfinite(logprob) or abs(logprob) > _FLOAT32_MAX:
        return None
    packed = _FLOAT32.pack(logprob)
    (exact,) = _FLOAT32.unpack(packed)
    for written in ("%.6g", "%.7g", "%.8g"):
        number = float(written % exact)
        if _FLOAT32.pack(number) == packed:
            return number
    return float(f"{exact:.9g}")


def wire_token(token: core.Token) -> Token:
    """A core token as native answers show it."""
    return Token(token.id, token.text, wire_logprob(token.logprob), token.special)


def wire_tokens(tokens: Sequence[core.Token]) -> list[Token]:
    """Several of them."""
    return [wire_token(token) for token in tokens]


def wire_prefill(tokens: Sequence[core.Token]) -> list[PrefillToken]:
    """The tokens of a prompt."""
    return [PrefillToken(token.id, token.text, wire_logprob(token.logprob)) for token in tokens]


def wire_usage(usage: core.Usage) -> Usage:
    """Token counts as the OpenAI routes show them."""
    details = PromptTokensDetails(usage.cached_tokens) if usage.cached_tokens else None
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, details)
