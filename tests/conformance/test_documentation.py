"""Section 1 of the wire contract: /docs and the OpenAPI document, which is made of the types that validate."""

from __future__ import annotations

import re
from typing import Any

import pytest

TGI_PATHS = [
    *("/", "/chat_tokenize", "/generate", "/generate_stream", "/health", "/info", "/invocations", "/metrics"),
    *("/tokenize", "/v1/chat/completions", "/v1/completions", "/v1/models"),
]
TGI_SCHEMAS = [
    *("GenerateRequest", "GenerateParameters", "GenerateResponse", "CompatGenerateRequest"),
    *("StreamResponse", "StreamDetails", "Details", "Token", "PrefillToken", "BestOfSequence"),
    *("FinishReason", "ErrorResponse", "Info", "ChatRequest", "ChatCompletion", "ChatCompletionChunk"),
    *("CompletionRequest", "CompletionFinal", "Chunk", "Message", "Tool", "ToolChoice", "GrammarType"),
    *("SimpleToken", "TokenizeResponse", "ChatTokenizeResponse", "Usage"),
]


@pytest.fixture(scope="module")
def document(wire: Any) -> Any:
    answer = wire.get("/api-doc/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    return answer.json


def test_1_the_version_and_the_title(document: Any) -> None:
    assert document["openapi"] == "3.0.3"
    assert document["info"]["title"] == "Text Generation Inference"


@pytest.mark.parametrize("path", TGI_PATHS, ids=lambda path: f"1-path-{path}")
def test_paths_of_tgi(document: Any, path: str) -> None:
    assert path in document["paths"]


@pytest.mark.parametrize("name", TGI_SCHEMAS, ids=lambda name: f"1-schema-{name}")
def test_schemas_that_users_generate_code_from(document: Any, name: str) -> None:
    assert document["components"]["schemas"][name]


def test_1_every_reference_leads_somewhere(document: Any) -> None:
    references = set(re.findall(r'"#/components/schemas/(\w+)"', str(document).replace("'", '"')))
    assert references <= document["components"]["schemas"].keys()


def test_1_every_documented_operation_exists(wire: Any, document: Any) -> None:
    for path, operations in document["paths"].items():
        for method in operations:
            answer = wire.send(method.upper(), path.replace("{id}", "org/model"))
            assert answer.status == (415 if method == "post" else 200), (method, path)


def test_1_what_is_documented_is_what_is_read(document: Any) -> None:
    parameters = document["components"]["schemas"]["GenerateParameters"]["properties"]
    assert parameters["max_new_tokens"] == {"type": "integer", "format": "int32", "minimum": 0, "nullable": True}
    assert parameters["watermark"] == {"type": "boolean", "default": False}
    assert parameters["stop"] == {"type": "array", "items": {"type": "string"}}
    assert document["components"]["schemas"]["GenerateRequest"]["required"] == ["inputs"]
    assert document["components"]["schemas"]["FinishReason"]["enum"] == ["length", "eos_token", "stop_sequence"]


def test_1_docs_is_a_redirect_to_a_page_without_anything_from_elsewhere(wire: Any) -> None:
    redirect = wire.get("/docs")
    assert (redirect.status, redirect.headers["location"]) == (303, "/docs/")
    page = wire.get("/docs/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"../api-doc/openapi.json" in page.body
    assert not re.search(rb"(src|href)=\"(https?:)?//", page.body)


@pytest.mark.parametrize("path", ["/docs/", "/api-doc/openapi.json"], ids=lambda path: f"1-HEAD-{path}")
def test_head(wire: Any, path: str) -> None:
    answer = wire.send("HEAD", path)
    assert (answer.status, answer.body) == (200, b"")
