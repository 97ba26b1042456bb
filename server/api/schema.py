"""The requests: every field of TGI's native and chat bodies, its type and its default (wire contract, sections 3, 11).

Ranges are validation.py's business. Class names are those of TGI's OpenAPI document.
"""

from __future__ import annotations

from typing import Annotated, Any

from server.api.decode import I32, U32, U64, USIZE, Body, ReadBy, first_of
from server.api.shapes import (
    Grammar,
    GrammarType,
    ToolChoice,
    read_grammar,
    read_message,
    read_prompt,
    read_response_format,
    read_stop,
    read_tool_choice,
)
from server.text.messages import Message


class GenerateParameters(Body, frozen=True, kw_only=True):
    """`parameters` of a native request; None means that the client left it to the server."""

    best_of: USIZE | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: I32 | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: U32 | None = None
    return_full_text: bool | None = None
    stop: tuple[str, ...] = ()
    truncate: USIZE | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: U64 | None = None
    top_n_tokens: U32 | None = None
    grammar: Annotated[Grammar, ReadBy(read_grammar, GrammarType)] | None = None
    adapter_id: str | None = None
    model: Any = None


# Left out altogether, `parameters` means sampling; present, even empty, it means greedy (TGI's own trap).
ABSENT_PARAMETERS = GenerateParameters(do_sample=True)


class GenerateRequest(Body, frozen=True, kw_only=True):
    """POST /generate and /generate_stream."""

    inputs: str
    parameters: GenerateParameters = ABSENT_PARAMETERS


class CompatGenerateRequest(GenerateRequest, frozen=True, kw_only=True):
    """POST /: the same, and the body says whether to stream."""

    stream: bool = False


class CompletionRequest(Body, frozen=True, kw_only=True):
    """POST /v1/completions. Fields that are not here (echo, n, best_of, logprobs ..) have no effect."""

    prompt: Annotated[tuple[str, ...], ReadBy(read_prompt, str | tuple[str, ...])]
    model: str | None = None
    max_tokens: U32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: Annotated[tuple[str, ...] | None, ReadBy(read_stop, str | tuple[str, ...] | None)] = None
    seed: U64 | None = None
    stream: bool = False
    suffix: str | None = None


class StreamOptions(Body, frozen=True, kw_only=True):
    """`stream_options` of a chat request."""

    include_usage: bool = False


class Function(Body, frozen=True, kw_only=True):
    """A function that a tool calls; `parameters` is its JSON schema."""

    name: str
    description: str | None = None
    parameters: Any

    @classmethod
    def aliases(cls) -> dict[str, str]:
        return {"arguments": "parameters"}


class Tool(Body, frozen=True, kw_only=True):
    """An entry of `tools`."""

    type: str
    function: Function


class ChatRequest(Body, frozen=True, kw_only=True):
    """POST /v1/chat/completions. `n` has no effect, nor has what is not here (user, logit_bias, store ..)."""

    messages: tuple[Annotated[Message, ReadBy(read_message)], ...]
    model: str | None = None
    max_tokens: U32 | None = None
    n: U32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: Annotated[tuple[str, ...] | None, ReadBy(read_stop, str | tuple[str, ...] | None)] = None
    seed: U64 | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    logprobs: bool | None = None
    top_logprobs: U32 | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: Annotated[str | None, ReadBy(read_tool_choice, ToolChoice | None)] = None
    tool_prompt: str | None = None
    response_format: Annotated[Grammar | None, ReadBy(read_response_format, GrammarType | None)] = None

    @classmethod
    def aliases(cls) -> dict[str, str]:
        return {"max_completion_tokens": "max_tokens"}


# POST /invocations.
SagemakerRequest = CompatGenerateRequest | ChatRequest | CompletionRequest


class GenerateVertexInstance(Body, frozen=True, kw_only=True):
    """A text to continue; of `parameters`, max_new_tokens and seed alone are used."""

    inputs: str
    parameters: GenerateParameters | None = None


VertexInstance = GenerateVertexInstance | ChatRequest


class VertexRequest(Body, frozen=True, kw_only=True):
    """POST /vertex."""

    instances: tuple[
        Annotated[VertexInstance, first_of(GenerateVertexInstance, ChatRequest, enum="VertexInstance")], ...
    ]
