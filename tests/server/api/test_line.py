"""One log line a request: its fields, and what never stands in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

MODEL = """
[server]
json_output = true
api_key = "k"
[[models]]
id = "one"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 256
slots = 2
"""
SECRET = "the prompt"


@pytest.fixture(scope="module")
def ask(serve: Callable[..., Any], tiny_text_directory: Path) -> Callable[..., list[Any]]:
    """Post a body; the log lines about requests that it caused."""
    server = serve(MODEL.format(directory=tiny_text_directory))
    server.wait_available()
    headers = {"authorization": "Bearer k"}

    def lines() -> list[Any]:
        records = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
        return [record for record in records if record["target"] == "server.api.line"]

    def post(path: str, body: Any, **more: str) -> list[Any]:
        before = len(lines())
        httpx.post(server.url + path, json=body, headers=headers | more, timeout=30)
        deadline = time.monotonic() + 10
        while len(lines()) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.05)
        return lines()[before:]

    return post


def test_a_generation(ask: Callable[..., list[Any]]) -> None:
    body = {"inputs": SECRET, "parameters": {"max_new_tokens": 7}}
    (line,) = ask("/generate", body, **{"x-request-id": "abc-1"})
    assert (line["level"], line["message"]) == ("INFO", "POST /generate")
    assert (line["status"], line["model"], line["finish"], line["request_id"]) == (200, "one", "length", "abc-1")
    assert (line["prompt_tokens"], line["generated_tokens"]) == (len(SECRET), 7)
    for name in ("total_ms", "validation_ms", "queue_ms", "first_token_ms", "inference_ms"):
        assert line[name] >= 0
    assert SECRET not in json.dumps(line)


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
def test_a_stream_is_one_line(ask: Callable[..., list[Any]], path: str) -> None:
    (line,) = ask(path, {"inputs": SECRET, "parameters": {"max_new_tokens": 20}, "stream": True})
    assert (line["generated_tokens"], line["finish"]) == (20, "length")


def test_several_prompts_are_one_line(ask: Callable[..., list[Any]]) -> None:
    (line,) = ask("/v1/completions", {"prompt": ["ab", "abc"], "max_tokens": 2})
    assert (line["sequences"], line["prompt_tokens"], line["generated_tokens"]) == (2, 5, 4)


@pytest.mark.parametrize(
    ("path", "body", "status", "finish"),
    [
        ("/generate", {"inputs": ""}, 422, "validation"),
        ("/generate_stream", {"inputs": ""}, 200, "validation"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, 422, "suffix not supported"),
    ],
)
def test_a_refusal(ask: Callable[..., list[Any]], path: str, body: Any, status: int, finish: str) -> None:
    (line,) = ask(path, body)
    assert (line["status"], line["finish"]) == (status, finish)
    assert "generated_tokens" not in line


def test_a_body_that_is_none_and_a_wrong_key(ask: Callable[..., list[Any]]) -> None:
    (line,) = ask("/generate", [])
    assert line["status"] == 422
    (line,) = ask("/generate", {}, authorization="Bearer nope")
    assert line["status"] == 401


def test_a_request_id_cannot_forge_a_line(ask: Callable[..., list[Any]]) -> None:
    (line,) = ask("/tokenize", {"inputs": "x"}, **{"x-request-id": "a\tb" + "c" * 500})
    assert line["request_id"] == ("a?b" + "c" * 500)[:128]
