"""Either worker killed at any point of an exchange, over real processes and real HTTP: every request is answered, and
the server is in order afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

TWO = """
[worker]
restarts = 5
[swap]
drain = 1.0
turn_after = 0.5
min_resident = 0.0

[[models]]
id = "org/first"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 250
step_s = 0.02

[[models]]
id = "org/second"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 244
load_s = 1.5
step_s = 0.02
"""
LONG = {"inputs": "hello", "parameters": {"max_new_tokens": 100, "details": True}}
SHORT = {"inputs": "hello", "parameters": {"max_new_tokens": 12, "details": True}}


@pytest.fixture
def two(serve: Callable[..., Any], tiny_text_directory: Path) -> Any:
    server = serve(TWO.format(directory=tiny_text_directory))
    server.wait_available()
    return server


def workers(server: Any) -> list[int]:
    """The device workers, the oldest first."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    mains = [int(pid) for pid in children if b"models/__main__.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return sorted(mains, key=lambda pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]))


def until(server: Any, model: str, state: str) -> None:
    deadline = time.monotonic() + 30
    while (seen := server.get(f"/models/{model}").json()["state"]) != state:
        assert time.monotonic() < deadline, f"{model} is {seen}, not {state}"


def until_both(server: Any) -> list[int]:
    """The old worker and the new one, whose process may begin a moment after its model's state says so."""
    deadline = time.monotonic() + 30
    while len(found := workers(server)) < 2:
        assert time.monotonic() < deadline, found
    return found


def tokens(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["details"]["tokens"]]


@pytest.mark.parametrize(
    ("model", "state", "victim"),
    [
        ("org/second", "staging", "old"),
        ("org/second", "staging", "new"),
        ("org/first", "draining", "old"),
        ("org/first", "draining", "new"),
        ("org/second", "loading", "new"),
    ],
)
def test_a_kill_at_any_point_of_an_exchange_leaves_every_request_answered(
    two: Any, model: str, state: str, victim: str
) -> None:
    undisturbed = tokens(two.post("/models/org/first/generate", LONG))
    with ThreadPoolExecutor(4) as pool:
        first: list[Future[httpx.Response]] = [
            pool.submit(two.post, "/models/org/first/generate", LONG) for _ in range(2)
        ]
        second = pool.submit(two.post, "/models/org/second/generate", SHORT)
        until(two, model, state)
        there = workers(two) if state == "loading" else until_both(two)
        os.kill(there[0 if victim == "old" else -1], signal.SIGKILL)
        assert [tokens(each.result()) for each in first] == [undisturbed, undisturbed]
        answer = second.result()
    if victim == "old":
        of_second = tokens(answer)
    else:
        assert (answer.status_code, answer.json()["error_type"]) == (503, "unavailable")
        until(two, "org/first", "available")
        again = httpx.post(f"{two.url}/models/org/second/activate?wait=true", json={}, timeout=60)
        assert again.json()["state"] == "available"
        of_second = tokens(two.post("/generate", SHORT))
    assert len(of_second) == 12
    assert tokens(two.post("/models/org/first/generate", LONG)) == undisturbed
    assert tokens(two.post("/models/org/second/generate", SHORT)) == of_second
    assert two.get("/health").status_code == 200
    assert len(workers(two)) == 1
