"""Many thousands of requests of every kind, with workers killed among them: each is answered as the first of its kind
was, and the API process does not grow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

CLIENTS = 24
MEGABYTE = 1_000_000
SOAK = """
[worker]
restarts = 1000
[[models]]
id = "one"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 250
slots = 16
step_s = 0.0005
"""
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "seed": 1, "temperature": 0.7}
# What is asked, and the status that answers it.
KINDS: tuple[tuple[str, Any, int], ...] = (
    ("/generate", {"inputs": "hello", "parameters": {"max_new_tokens": 8, "details": True}}, 200),
    ("/generate_stream", {"inputs": "你好", "parameters": {"max_new_tokens": 8, "seed": 3, "top_p": 0.9}}, 200),
    ("/v1/chat/completions", CHAT, 200),
    ("/v1/chat/completions", {**CHAT, "stream": True}, 200),
    ("/v1/completions", {"prompt": "hello", "max_tokens": 4, "seed": 5}, 200),
    ("/tokenize", {"inputs": "hello"}, 200),
    ("/generate", {"inputs": "hello", "parameters": {"temperature": -1}}, 422),
    ("/generate", {"inputs": 1}, 422),
    ("/nothing", {}, 404),
)
_CHANGES = re.compile(r'"(id|created)":("[^"]*"|\d+)')


@pytest.fixture
def server(serve: Callable[..., Any], tiny_text_directory: Path) -> Any:
    running = serve(SOAK.format(directory=tiny_text_directory))
    running.wait_available()
    return running


async def ask(client: httpx.AsyncClient, kind: int) -> str:
    path, body, status = KINDS[kind]
    answer = await client.post(path, json=body)
    assert answer.status_code == status, (path, answer.text)
    return _CHANGES.sub("", answer.text)


async def leave(client: httpx.AsyncClient) -> None:
    """A stream that is given up after its first event."""
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 300}}
    async with client.stream("POST", "/generate_stream", json=body) as response:
        with contextlib.suppress(StopAsyncIteration):
            await response.aiter_lines().__anext__()


async def soak(server: Any, requests: int, kills: int) -> Counter[int]:
    """Ask `requests` times, CLIENTS at once; between them a worker is killed `kills` times."""
    rng = random.Random(requests)
    asked: Counter[int] = Counter()
    todo = iter(range(requests))
    moments = {requests * (i + 1) // (kills + 1) for i in range(kills)}
    async with httpx.AsyncClient(
        base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=CLIENTS)
    ) as client:
        first = [await ask(client, kind) for kind in range(len(KINDS))]

        async def one_client() -> None:
            for number in todo:
                if number in moments:
                    os.kill(server.worker_pid(), signal.SIGKILL)
                kind = rng.randrange(len(KINDS) + 1)
                asked[kind] += 1
                if kind == len(KINDS):
                    await leave(client)
                else:
                    assert await ask(client, kind) == first[kind]

        await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
    return asked


def memory(server: Any) -> float:
    """Resident bytes of the API process."""
    found = re.search(r"^process_resident_memory_bytes (\S+)$", server.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize(
    ("requests", "kills"), [(400, 1), pytest.param(20_000, 10, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_every_answer_is_as_the_first_and_the_process_does_not_grow(server: Any, requests: int, kills: int) -> None:
    asyncio.run(soak(server, requests // 4, 1))  # pools, caches and histograms reach their size
    before = memory(server)
    asked = asyncio.run(soak(server, requests, kills))
    assert len(asked) == len(KINDS) + 1
    assert memory(server) - before < 8 * MEGABYTE
    entry = server.get("/models/one").json()
    assert (entry["state"], entry["waiting"], entry["running"]) == ("available", 0, 0)
