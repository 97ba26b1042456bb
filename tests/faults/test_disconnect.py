"""A client that leaves frees its slot, streamed or not, waiting or running; and nobody is admitted past the bound."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

ONE_SLOT = """
[limits]
max_concurrent_requests = 3
[[models]]
id = "one"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 256
slots = 1
step_s = 0.02
"""
LONG = {"inputs": "hello", "parameters": {"max_new_tokens": 1500}}
SHORT = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}


@pytest.fixture
def server(serve: Callable[..., Any], tiny_text_directory: Path) -> Any:
    running = serve(ONE_SLOT.format(directory=tiny_text_directory))
    running.wait_available()
    return running


def begin(server: Any, path: str, body: Any) -> socket.socket:
    """Send a request and return its socket, nothing read."""
    url = httpx.URL(server.url)
    connection = socket.create_connection((url.host, url.port))
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def until(server: Any, **wanted: int) -> None:
    """Wait until the model counts these."""
    deadline = time.monotonic() + 20
    entry: dict[str, Any] = {}
    while time.monotonic() < deadline:
        entry = server.get("/models/one").json()
        if all(entry[name] == count for name, count in wanted.items()):
            return
        time.sleep(0.02)
    raise AssertionError(f"wanted {wanted}, there is {entry}")


def dropped(server: Any) -> float:
    found = re.search(r'tgi_request_failure\{err="dropped"\} (\S+)', server.get("/metrics").text)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_a_running_request_whose_client_leaves_frees_its_slot(server: Any, path: str) -> None:
    with closing(begin(server, path, LONG)):
        until(server, running=1)
    until(server, running=0, waiting=0)
    assert server.post("/generate", SHORT).status_code == 200
    assert dropped(server) == 1


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_waiting_request_whose_client_leaves_is_dropped(server: Any, path: str) -> None:
    with closing(begin(server, "/generate_stream", LONG)):
        until(server, running=1)
        with closing(begin(server, path, LONG)):
            until(server, running=1, waiting=1)
        until(server, running=1, waiting=0)
    until(server, running=0)


def test_a_request_past_the_bound_is_told_so_and_permits_come_back(server: Any) -> None:
    with closing(begin(server, "/generate", LONG)), closing(begin(server, "/generate_stream", LONG)):
        with closing(begin(server, "/generate", LONG)):
            until(server, running=1, waiting=2)
            refused = server.post("/generate", {"inputs": "", "parameters": {"temperature": -1}})
            overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
            assert (refused.status_code, refused.json()) == (429, overloaded)
            streamed = server.post("/generate_stream", SHORT)
            assert streamed.status_code == 200
            assert json.loads(streamed.text.removeprefix("data: ")) == overloaded
        until(server, running=1, waiting=1)
    until(server, running=0, waiting=0)
    assert server.post("/generate", SHORT).status_code == 200
