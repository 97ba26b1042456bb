"""Sections 7 and 8 of the wire contract: what clients are told when the device fails, before and inside a stream."""

from __future__ import annotations

from typing import Any

import pytest

TOML = """
[worker]
restarts = 0
[[models]]
id = "org/model"
path = "{directory}"
[models.device]
kind = "simulated"
slots = 1
vocab_size = 99
step_s = 0.01
faults = ["decode:5=device"]
"""


@pytest.fixture
def failing(serve: Any, byte_tokenizer_directory: Any, wire: Any) -> Any:
    """A server whose device fails for good at the sixth decode step of its life, the warm-up's included."""
    server = serve(TOML.format(directory=byte_tokenizer_directory))
    server.wait_available()
    yield type(wire)(server.url)
    server.stop()


def test_8_plain_is_424(failing: Any) -> None:
    answer = failing.post("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 50}})
    assert (answer.status, answer.headers["content-type"]) == (424, "application/json")
    assert list(answer.json) == ["error", "error_type"]
    assert answer.json["error"].startswith("Request failed during generation: ")
    assert answer.json["error_type"] == "generation"


def test_7_a_native_stream_ends_with_an_error_event(failing: Any) -> None:
    answer = failing.post("/generate_stream", {"inputs": "x", "parameters": {"max_new_tokens": 50}})
    *tokens, last = answer.events
    assert [event["index"] for event in tokens] == list(range(1, len(tokens) + 1))
    assert tokens
    assert all("error" not in event for event in tokens)
    assert (list(last), last["error_type"]) == (["error", "error_type"], "generation")
    assert answer.status == 200


def test_7_a_chat_stream_ends_with_an_error_event_and_done(failing: Any) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 50}
    answer = failing.post("/v1/chat/completions", body)
    *chunks, last = answer.events
    assert chunks
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert last["error"]["http_status_code"] == 422
    assert last["error"]["message"].startswith("Request failed during generation: ")
    assert answer.chunks[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_failed_model_is_503_from_the_start(failing: Any, path: str) -> None:
    body = {"inputs": "x", "parameters": {"max_new_tokens": 50}}
    assert b"generation" in failing.post("/generate", body).body
    answer = failing.post(path, body)
    assert (answer.status, answer.json["error_type"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    health = failing.get("/health")
    assert (health.status, health.body) == (503, b'{"error":"unhealthy","error_type":"healthcheck"}')
    assert "failed" in health.headers["x-unhealthy-reason"]
    assert b'tgi_request_failure{err="generation"} 1.0' in failing.get("/metrics").body
