"""What clients see while their model is on its way: headers at once, comments, progress, and then their answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import text_generation
from huggingface_hub import InferenceClient

MODELS = """
[server]
keepalive_interval = 0.1

[[models]]
id = "org/first"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 250

[[models]]
id = "org/second"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 244
load_s = 1.5

[[models]]
id = "HuggingFaceTB/SmolLM2-135M-Instruct"
path = "cache:SmolLM2-135M-Instruct"
[models.device]
kind = "cpu"
slots = 2
n_positions = 256
"""
GENERATE = ("/models/org/second/generate_stream", {"inputs": "hello", "parameters": {"max_new_tokens": 5}})
CHAT = (
    "/v1/chat/completions",
    {"model": "org/second", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 5},
)


@pytest.fixture(scope="module")
def models(serve: Callable[..., Any], tiny_text_directory: Path, embedded_set_up: None) -> Any:
    server = serve(MODELS.format(directory=tiny_text_directory))
    server.wait_available()
    return server


@pytest.fixture
def server(models: Any) -> Any:
    """With org/first on the device."""
    assert httpx.post(f"{models.url}/models/org/first/activate?wait=true", json={}, timeout=60).status_code == 200
    return models


def changes(server: Any, model: str, until: str, watching: threading.Event) -> list[Any]:
    """What GET /models/events says of `model` until it is `until`."""
    seen = []
    with httpx.stream("GET", f"{server.url}/models/events", timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: ") and (entry := json.loads(line[len("data: ") :]))["id"] == model:
                seen.append(entry)
                watching.set()
                if entry["state"] == until:
                    return seen
    raise AssertionError(f"the events ended before {model} was {until}")


@pytest.mark.parametrize(("path", "body"), [GENERATE, CHAT])
def test_a_stream_gets_its_headers_at_once_and_comments_until_its_model_is_there(
    server: Any, path: str, body: dict[str, Any]
) -> None:
    with httpx.stream("POST", server.url + path, json=body, timeout=60) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert server.get("/models/org/second").json()["state"] in ("unloaded", "staging", "loading")
        lines = [line for line in response.iter_lines() if line]
    first = next(i for i, line in enumerate(lines) if line.startswith("data:"))
    assert first >= 5
    assert set(lines[:first]) == {":"}
    assert not any('"error"' in line for line in lines)


def of_text_generation(url: str) -> Iterator[str]:
    client = text_generation.Client(f"{url}/models/org/second", timeout=60)
    return (event.token.text for event in client.generate_stream("hello", max_new_tokens=5))


def of_huggingface_hub(url: str) -> Iterator[str]:
    client = InferenceClient(base_url=f"{url}/models/org/second", timeout=60)
    yield from client.text_generation("hello", max_new_tokens=5, stream=True)


def of_huggingface_hub_chat(url: str) -> Iterator[str]:
    messages = [{"role": "user", "content": "hi"}]
    client = InferenceClient(base_url=f"{url}/models/org/second", timeout=60)
    for chunk in client.chat_completion(messages, max_tokens=5, stream=True):
        yield chunk.choices[0].delta.content or ""


def of_openai(url: str) -> Iterator[str]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "hi"}]
        chunks = client.chat.completions.create(model="org/second", messages=messages, max_tokens=5, stream=True)
        for chunk in chunks:
            yield chunk.choices[0].delta.content or ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning:text_generation")
def test_the_clients_people_have_read_past_the_comments(serve: Callable[..., Any], tiny_text_directory: Path) -> None:
    """All of them wait, with nothing but comments to read, until an operator lets their model come."""
    two, _, _ = MODELS.format(directory=tiny_text_directory).partition('[[models]]\nid = "HuggingFaceTB/')
    server = serve("[swap]\non_request = false\n" + two)
    server.wait_available()
    clients = (of_text_generation, of_huggingface_hub, of_huggingface_hub_chat, of_openai)
    with ThreadPoolExecutor(len(clients)) as pool:
        answers = [pool.submit(lambda ask: list(ask(server.url)), client) for client in clients]
        deadline = time.monotonic() + 60
        while server.get("/models/org/second").json()["parked"] < len(clients):
            if time.monotonic() > deadline or any(answer.done() for answer in answers):
                break  # and let them end, whatever went wrong
            time.sleep(0.05)
        waiting = server.get("/models/org/second").json()["parked"]
        time.sleep(0.5)  # five comments
        server.post("/models/org/second/activate", {})
        texts = ["".join(answer.result()) for answer in answers]
    assert waiting == len(clients)
    assert all(texts)
    assert texts[0] == texts[1]


def test_a_plain_request_takes_longer_and_bare_ones_go_to_the_model_that_comes(server: Any) -> None:
    ask = {"inputs": "hello", "parameters": {"max_new_tokens": 5}}
    with ThreadPoolExecutor(2) as pool:
        named = pool.submit(server.post, "/models/org/second/generate", ask)
        while server.get("/models/org/second").json()["state"] not in ("staging", "loading"):
            time.sleep(0.01)
        bare = pool.submit(server.post, "/generate", ask)
        assert server.get("/info").json()["model_id"] == "org/second"
        assert named.result().status_code == bare.result().status_code == 200
        assert named.result().json() == bare.result().json()


@pytest.mark.parametrize("model", ["org/second", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_the_events_and_the_list_show_a_load_that_gets_on_and_when_it_ends(server: Any, model: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        connected = threading.Event()
        watching = pool.submit(changes, server, model, "available", connected)
        assert connected.wait(30)
        polled = []
        server.post(f"/models/{model}/activate", {})
        while not watching.done():
            data = server.get("/models").json()["data"]
            polled += [each["progress"] for each in data if each["id"] == model and each["progress"]]
            time.sleep(0.02)
        entries = watching.result()
    states = [entry["state"] for entry in entries]
    assert [state for i, state in enumerate(states) if state not in states[:i]] == [
        *("unloaded", "staging", "loading", "available")
    ]
    weights = [entry["progress"] for entry in entries if entry["progress"] and entry["progress"]["phase"] == "weights"]
    fractions = [progress["fraction"] for progress in weights]
    assert len(set(fractions)) >= 3
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert [progress["eta_s"] for progress in weights if progress["fraction"] == 1.0][-1] == 0.0
    assert all(progress["eta_s"] is None or progress["eta_s"] >= 0 for progress in weights)
    assert polled
    assert entries[-1]["progress"] is None
    phases = {(entry["state"], entry["progress"]["phase"]) for entry in entries if entry["progress"]}
    assert ("loading", "staging") not in phases
