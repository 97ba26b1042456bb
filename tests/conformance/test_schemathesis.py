"""Schemathesis over the generated OpenAPI document: no 5xx for a client's mistake, whatever the body."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

OPERATIONS = [
    *("GET /health", "GET /info", "GET /metrics", "GET /v1/models", "GET /models", "GET /models/{id}"),
    *("POST /", "POST /generate", "POST /generate_stream", "POST /tokenize", "POST /chat_tokenize"),
    *("POST /v1/chat/completions", "POST /v1/completions", "POST /invocations"),
]  # /vertex answers 500 to mistakes, as TGI does; activate and unload would take the model away


@pytest.mark.long
@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        pytest.param(operation, mode, id=f"1-{operation}-{mode.value}")
        for operation in OPERATIONS
        for mode in GenerationMode
        if operation.startswith("POST") or mode is GenerationMode.POSITIVE
    ],
)
def test_no_5xx(wire: Any, operation: str, mode: GenerationMode) -> None:
    method, path = operation.split()
    url = f"http://{wire.address[0]}:{wire.address[1]}"
    described = schemathesis.openapi.from_url(url + "/api-doc/openapi.json")[path][method]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(case=described.as_strategy(generation_mode=mode))
    def answered(case: Any) -> None:
        answer = case.call(base_url=url, timeout=60)
        assert answer.status_code < 500, (operation, case.body, answer.text)

    try:
        answered()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE
        pytest.skip("schemathesis finds nothing that this operation does not allow")
