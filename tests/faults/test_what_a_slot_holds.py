"""Who gets what a slot still holds, and how an answer tells of it: keys, models, workers, all routes of OpenAI."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

MODEL = """
[[models]]
id = "{id}"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 250
slots = 2
chunk = 16
reuse = true
"""
MESSAGES = [{"role": "user", "content": "the same long question, asked again"}]
PROMPT = "the same long text, asked again"

Start = Callable[..., Any]


@pytest.fixture
def start(serve: Start, tiny_text_directory: Path) -> Start:
    """start(scheduler settings) -> Server with one/a available and one/b beside it."""

    def start(scheduler: str = "") -> Any:
        models = (MODEL.format(id=name, directory=tiny_text_directory) for name in ("one/a", "one/b"))
        server = serve(f"[swap]\nmin_resident = 0\n[scheduler]\n{scheduler}\n" + "".join(models))
        server.wait_available()
        return server

    return start


def cached(usage: dict[str, Any]) -> int:
    """TGI knows no such member: it is there where something was reused."""
    details = usage.get("prompt_tokens_details", {"cached_tokens": 0})
    assert list(details) == ["cached_tokens"]
    return int(details["cached_tokens"])


def chat(server: Any, key: str = "a key", model: str = "one/a") -> dict[str, Any]:
    """The usage of an answer to MESSAGES."""
    body = {"model": model, "messages": MESSAGES, "max_tokens": 3}
    answered = server.post("/v1/chat/completions", body, headers={"authorization": f"Bearer {key}"})
    assert answered.status_code == 200, answered.text
    usage: dict[str, Any] = answered.json()["usage"]
    return usage


def streamed(server: Any, read_events: Callable[..., Any], path: str, body: Any) -> list[dict[str, Any]]:
    """The usages that a stream tells."""
    wanted = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", server.url + path, json=wanted, timeout=60) as response:
        return [event["usage"] for event in read_events(response) if event["usage"]]


def test_every_openai_answer_tells_what_was_not_fed_again(start: Start, read_events: Callable[..., Any]) -> None:
    server = start()
    text, asked = {"prompt": PROMPT, "max_tokens": 3}, {"messages": MESSAGES, "max_tokens": 3}
    assert server.post("/v1/completions", text).json()["usage"].get("prompt_tokens_details") is None
    usage = server.post("/v1/completions", text).json()["usage"]
    assert cached(usage) == usage["prompt_tokens"] - 1 == len(PROMPT) - 1, "all but the token that must be fed"
    assert [cached(each) for each in streamed(server, read_events, "/v1/completions", text)] == [len(PROMPT) - 1]
    usage = server.post("/v1/completions", {**text, "prompt": [PROMPT, PROMPT]}).json()["usage"]
    assert cached(usage) == usage["prompt_tokens"] - 2

    server.post("/v1/chat/completions", asked)
    usage = server.post("/v1/chat/completions", asked).json()["usage"]
    assert cached(usage) == usage["prompt_tokens"] - 1
    (shown,) = streamed(server, read_events, "/v1/chat/completions", asked)
    assert (cached(shown), shown["prompt_tokens"]) == (cached(usage), usage["prompt_tokens"])


@pytest.mark.parametrize(
    ("scheduler", "own", "others"),
    [("", True, False), ("share_prefixes = true", True, True), ("reuse_prefixes = false", False, False)],
    ids=["as installed", "shared", "off"],
)
def test_keys_share_prefixes_only_where_that_is_configured(
    start: Start, scheduler: str, own: bool, others: bool
) -> None:
    server = start(scheduler)
    assert cached(chat(server)) == 0
    assert (cached(chat(server)) > 0) == own
    assert (cached(chat(server, "another key")) > 0) == others


def test_nothing_is_reused_of_another_model_or_of_a_worker_that_is_gone(start: Start) -> None:
    server = start()
    chat(server)
    assert cached(chat(server)) > 0
    killed = server.worker_pid()
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{killed}").exists():  # until it is reaped
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert cached(chat(server)) == 0, "another worker"
    assert cached(chat(server)) > 0
    assert cached(chat(server, model="one/b")) == 0, "another model"
    assert cached(chat(server, model="one/b")) > 0
    assert cached(chat(server, model="one/a")) == 0, "the first one, that was away"
