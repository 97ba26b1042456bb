"""Two models on one device, over real HTTP and real workers: activate, requests that wait, loads that fail."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

TWO = """
[worker]
restarts = {restarts}
[swap]
drain = {drain}

[[models]]
id = "org/first"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 256
step_s = 0.02

[[models]]
id = "org/second"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 250
load_s = 0.3
faults = {faults}
"""
ASK = {"inputs": "hello", "parameters": {"max_new_tokens": 12, "details": True}}

Start = Callable[..., Any]


@pytest.fixture
def two(serve: Start, tiny_text_directory: Path) -> Start:
    """two(faults=[...], drain=..., restarts=...) -> Server with org/first available."""

    def start(faults: tuple[str, ...] = (), drain: float = 30, restarts: int = 3) -> Any:
        toml = TWO.format(directory=tiny_text_directory, faults=list(faults), drain=drain, restarts=restarts)
        server = serve(toml)
        server.wait_available()
        return server

    return start


def state(server: Any, model: str) -> str:
    return str(server.get(f"/models/{model}").json()["state"])


def activate(server: Any, model: str) -> httpx.Response:
    return httpx.post(f"{server.url}/models/{model}/activate?wait=true", json={}, timeout=60)


def tokens(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["details"]["tokens"]]


def test_activate_exchanges_the_models_and_back(two: Start) -> None:
    server = two()
    assert (state(server, "org/first"), state(server, "org/second")) == ("available", "unloaded")
    of_first = tokens(server.post("/generate", ASK))
    assert activate(server, "org/second").json()["state"] == "available"
    assert (state(server, "org/first"), state(server, "org/second")) == ("unloaded", "available")
    assert server.get("/info").json()["model_id"] == "org/second"
    of_second = tokens(server.post("/generate", ASK))
    assert of_second != of_first
    assert activate(server, "org/first").status_code == 200
    assert tokens(server.post("/generate", ASK)) == of_first
    assert tokens(server.post("/models/org/second/generate", ASK)) == of_second  # by path, with an exchange of its own


def test_a_request_by_name_makes_its_model_come_and_nobody_is_lost(two: Start) -> None:
    server = two()
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    of_first = tokens(server.post("/generate", ASK))
    with ThreadPoolExecutor(12) as pool:
        first = [pool.submit(server.post, "/models/org/first/generate", ASK) for _ in range(6)]
        second = [pool.submit(server.post, "/models/org/second/generate", ASK) for _ in range(6)]
        assert [tokens(each.result()) for each in first] == [of_first] * 6
        of_second = [tokens(each.result()) for each in second]
    assert of_second == [of_second[0]] * 6
    assert of_second[0] != of_first
    answer = server.post("/v1/chat/completions", {**chat, "model": "org/first"})
    assert answer.json()["model"] == "org/first"


def test_health_and_the_model_list_answer_all_through_an_exchange(two: Start) -> None:
    server = two()
    with ThreadPoolExecutor(1) as pool:
        change = pool.submit(activate, server, "org/second")
        states = set()
        while not change.done():
            assert server.get("/health").status_code == 200
            states.add(state(server, "org/second"))
            assert len(server.get("/v1/models").json()["data"]) == 2
    assert {"staging", "loading"} & states


def test_a_stream_that_is_parked_goes_on_with_the_tokens_it_would_have_had(
    two: Start, read_events: Callable[..., Any]
) -> None:
    server = two(drain=0.2)
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 60, "details": True}}
    undisturbed = tokens(server.post("/generate", body))
    seen: list[int] = []
    begun = threading.Event()

    def read() -> None:
        with httpx.stream("POST", server.url + "/models/org/first/generate_stream", json=body, timeout=60) as response:
            for event in read_events(response):
                assert "error" not in event, event
                seen.append(event["token"]["id"])
                if len(seen) == 10:
                    begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(30)
    assert activate(server, "org/second").json()["state"] == "available"
    assert 10 <= len(seen) < 60
    reader.join(60)  # its model comes back by itself: somebody waits for it
    assert seen == undisturbed


@pytest.mark.parametrize("fault", ["stage:0=configuration", "load:0=memory"])
def test_a_load_that_fails_brings_the_old_model_back(two: Start, fault: str) -> None:
    server = two(faults=(fault,))
    of_first = tokens(server.post("/generate", ASK))
    answer = activate(server, "org/second").json()
    assert answer["state"] == "failed"
    assert answer["error"]
    refused = server.post("/models/org/second/generate", ASK)
    assert (refused.status_code, refused.json()["error_type"]) == (503, "unavailable")
    server.wait_available()
    assert tokens(server.post("/generate", ASK)) == of_first


def test_a_worker_that_dies_too_often_fails_its_model_with_a_typed_error(two: Start) -> None:
    server = two(faults=("decode:3=exit",), restarts=2)
    activate(server, "org/second")
    answer = server.post("/generate", ASK)
    assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")
    assert state(server, "org/second") == "failed"
    health = server.get("/health")
    assert (health.status_code, health.json()) == (503, {"error": "unhealthy", "error_type": "healthcheck"})
    assert "org/second is failed" in health.headers["x-unhealthy-reason"]
    assert activate(server, "org/first").json()["state"] == "available"
    assert server.get("/health").status_code == 200


def test_an_idle_worker_that_is_killed_is_replaced(two: Start) -> None:
    server = two()
    of_first = tokens(server.post("/generate", ASK))
    killed = server.worker_pid()
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while state(server, "org/first") == "available" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tokens(server.post("/generate", ASK)) == of_first
    assert server.worker_pid() != killed
