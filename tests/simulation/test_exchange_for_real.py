"""Two minutes of clients of three models over real processes and real HTTP: the torture, without its virtual clock."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

MINUTES = 2
GAP_S = 0.25
LENGTHS = (1, 10, 40)
MODEL = """
[[models]]
id = "org/{name}"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = {vocab_size}
slots = 16
step_s = 0.02
load_s = 0.5
chunk = 64
"""
SWAP = """
[swap]
drain = 1.0
min_resident = 2.0
turn_after = 3.0
"""


@pytest.fixture
def three(serve: Callable[..., Any], tiny_text_directory: Path) -> Any:
    models = (
        MODEL.format(name=name, directory=tiny_text_directory, vocab_size=250 - 6 * i) for i, name in enumerate("abc")
    )
    server = serve(SWAP + "".join(models))
    server.wait_available()
    return server


def ask(server: Any, name: str, length: int) -> httpx.Response:
    parameters = {"max_new_tokens": length, "details": True}
    answer: httpx.Response = server.post(f"/models/org/{name}/generate", {"inputs": "hello", "parameters": parameters})
    return answer


def tokens(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["details"]["tokens"]]


@pytest.mark.long
def test_every_request_is_answered_by_its_own_model(three: Any) -> None:
    rng = random.Random(5)
    expected = {(name, length): tokens(ask(three, name, length)) for name in "abc" for length in LENGTHS}
    assert len({tuple(answer) for answer in expected.values()}) == len(expected)
    asked: list[tuple[str, int, Future[httpx.Response]]] = []
    end = time.monotonic() + 60 * MINUTES
    with ThreadPoolExecutor(100) as pool:
        while time.monotonic() < end:
            time.sleep(rng.expovariate(1 / GAP_S))
            name, length = rng.choice("aab"), rng.choice(LENGTHS)
            name = "c" if rng.random() < 0.1 else name
            asked.append((name, length, pool.submit(ask, three, name, length)))
    assert len(asked) > 200
    for name, length, answer in asked:
        assert tokens(answer.result()) == expected[name, length]
    assert {entry["state"] for entry in three.get("/models").json()["data"]} == {"available", "unloaded"}
