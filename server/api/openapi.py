"""GET /api-doc/openapi.json and /docs: what this server can be asked, from the types that it reads and writes.

The table below says which types a route reads and writes; their fields come from those types (components.py). A test
holds the table against the app's routes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from server import core
from server.api import models, openai, ops
from server.api.answers import (
    BestOfSequence,
    ChatCompletion,
    ChatCompletionChunk,
    Chunk,
    CompletionFinal,
    ErrorResponse,
    GenerateResponse,
    StreamResponse,
)
from server.api.components import Components, Schema
from server.api.platforms import VertexResponse
from server.api.schema import (
    ChatRequest,
    CompatGenerateRequest,
    CompletionRequest,
    GenerateRequest,
    SagemakerRequest,
    VertexRequest,
)
from server.api.service import TGI_VERSION
from server.api.shapes import ToolChoice
from server.api.tokens import ChatTokenizeResponse
from server.swap.model import ModelEntry
from server.text import messages
from server.text.tokenizer import SimpleToken

TokenizeResponse = list[SimpleToken]
_NAMES: dict[Any, str] = {
    core.FinishReason: "FinishReason",
    ToolChoice: "ToolChoice",
    TokenizeResponse: "TokenizeResponse",
    SagemakerRequest: "SagemakerRequest",
    messages.ToolCall: "MessageToolCall",
}
_ERRORS = {
    400: "The body is not JSON (text/plain)",
    413: "The body is too large (text/plain)",
    415: "The Content-Type is not JSON (text/plain)",
    422: "The body has another shape (text/plain), or a value is not allowed",
    424: "Generation failed",
    429: "The model is overloaded",
    500: "The generation is incomplete",
    503: "No model can serve this now",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. `reads` and `writes` are JSON, `streams` is the JSON of a server-sent event."""

    method: str
    path: str
    summary: str
    reads: Any = None
    writes: Any = None
    streams: Any = None
    text: bool = False
    status: int = 200


def _post(path: str, summary: str, reads: Any, writes: Any = None, streams: Any = None) -> Operation:
    return Operation(method="post", path=path, summary=summary, reads=reads, writes=writes, streams=streams)


def _get(path: str, summary: str, writes: Any = None, *, text: bool = False) -> Operation:
    return Operation(method="get", path=path, summary=summary, writes=writes, text=text)


OPERATIONS = (
    _post(
        "/",
        "Generate tokens, or stream them if `stream`",
        CompatGenerateRequest,
        list[GenerateResponse],
        StreamResponse,
    ),
    _get("/health", "200 when a model can serve"),
    _get("/info", "The model and its limits", ops.Info),
    _get("/metrics", "Prometheus metrics", text=True),
    _post("/generate", "Generate tokens", GenerateRequest, GenerateResponse),
    _post("/generate_stream", "Stream tokens", GenerateRequest, streams=StreamResponse),
    _post("/tokenize", "The tokens of `inputs`", GenerateRequest, TokenizeResponse),
    _post("/chat_tokenize", "The prompt of a chat and its tokens", ChatRequest, ChatTokenizeResponse),
    _post("/v1/chat/completions", "Answer a chat", ChatRequest, ChatCompletion, ChatCompletionChunk),
    _post("/v1/completions", "Continue one or several prompts", CompletionRequest, CompletionFinal, Chunk),
    _get("/v1/models", "Every configured model", openai.ModelCards),
    _post("/invocations", "SageMaker: by the body's shape as /, chat or completions", SagemakerRequest, Any),
    _post("/vertex", "Vertex AI: every instance's text", VertexRequest, VertexResponse),
    _get("/models", "Every model with its state", models.ModelList),
    _get("/models/{id}", "One model with its state", ModelEntry),
    Operation(
        method="post", path="/models/{id}/activate", summary="Give the device to a model", writes=ModelEntry, status=202
    ),
    Operation(
        method="post", path="/models/{id}/unload", summary="Take the device from a model", writes=ModelEntry, status=202
    ),
)


@functools.cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.0.3 document."""
    components = Components(_NAMES)
    error = components.schema(ErrorResponse)
    components.schema(BestOfSequence)
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, components, error)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Text Generation Inference",
            "description": "neuronx-serve, an inference server for AWS Inferentia2 that speaks this HTTP",
            "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "version": TGI_VERSION,
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.schemas.items())),
            "securitySchemes": {"api_key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, components: Components, error: Schema) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.writes is not None:
        content["application/json"] = {"schema": components.schema(operation.writes)}
    if operation.streams is not None:
        content["text/event-stream"] = {"schema": components.schema(operation.streams)}
    if operation.text:
        content["text/plain"] = {"schema": {"type": "string"}}
    success: dict[str, Any] = {"description": operation.summary, **({"content": content} if content else {})}
    described: dict[str, Any] = {"summary": operation.summary, "responses": {str(operation.status): success}}
    if "{id}" in operation.path:
        where = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        described["parameters"] = [where]
    if operation.reads is not None:
        schema = components.schema(operation.reads)
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        described["security"] = [{}, {"api_key": []}]
        described["responses"] |= {str(status): _error(status, text, error) for status, text in _ERRORS.items()}
    elif operation.path == "/health":
        described["responses"]["503"] = _error(503, _ERRORS[503], error)
    return described


def _error(status: int, text: str, error: Schema) -> dict[str, Any]:
    plain = {"text/plain": {"schema": {"type": "string"}}} if status in (400, 413, 415, 422) else {}
    keys = {"application/json": {"schema": error}} if status not in (400, 413, 415) else {}
    return {"description": text, "content": {**plain, **keys}}


async def openapi(request: Request) -> Response:
    """GET /api-doc/openapi.json."""
    return Response(msgspec.json.encode(document()), media_type="application/json")


async def to_docs(request: Request) -> Response:
    """GET /docs."""
    return RedirectResponse("/docs/", 303)


async def docs(request: Request) -> Response:
    """GET /docs/: a page that shows the document, without anything from elsewhere."""
    return Response(_page(), media_type="text/html")


@functools.cache
def _page() -> bytes:
    return files("server.api").joinpath("docs.html").read_bytes()
