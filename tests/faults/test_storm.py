"""Storms of clients that leave at a random token, and readers that hardly read, beside streams that go on: afterwards
all slots are free, nobody waits, and the API process holds no more tasks and descriptors than before."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

SLOTS = 16
CLIENTS, STEADY, SLOW, STEADY_TOKENS = 500, 8, 6, 80
ASKED = 200  # tokens, by those who leave
STORM = """
[limits]
max_concurrent_requests = 1000
[[models]]
id = "one"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 250
slots = {slots}
step_s = 0.004
chunk = 16
"""


@pytest.fixture
def server(serve: Callable[..., Any], tiny_text_directory: Path) -> Any:
    running = serve(STORM.format(directory=tiny_text_directory, slots=SLOTS))
    running.wait_available()
    return running


@contextlib.asynccontextmanager
async def begun(url: httpx.URL, path: str, body: Any, limit: int = 65536) -> AsyncIterator[asyncio.StreamReader]:
    """A connection of its own on which a request was sent; left, it is hung up without a word."""
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limit)
        await asyncio.get_running_loop().sock_connect(connection, (url.host, url.port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=limit)
        try:
            yield await sent(reader, writer, path, body)
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)  # the transport closes in the loop's next turn


async def sent(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: Any
) -> asyncio.StreamReader:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    return reader


def request(seed: int, tokens: int) -> dict[str, Any]:
    parameters = {"max_new_tokens": tokens, "do_sample": True, "seed": seed + 1, "details": True}
    return {"inputs": f"hello {seed % 7}", "parameters": parameters}


async def leave_at_a_random_token(url: httpx.URL, seed: int) -> None:
    """Read a random number of tokens, none at all now and then, and hang up."""
    rng = random.Random(seed)
    await asyncio.sleep(rng.uniform(0, 1.0))
    path = rng.choice(("/generate_stream", "/generate_stream", "/v1/chat/completions", "/generate"))
    body: dict[str, Any] = request(seed, ASKED)
    if path.startswith("/v1"):
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": ASKED, "stream": True}
    async with begun(url, path, body) as reader:
        if path == "/generate":
            await asyncio.sleep(rng.uniform(0, 0.5))
        else:
            for _ in range(rng.randrange(12)):
                await reader.readuntil(b"data:")


async def stream_to_its_end(url: httpx.URL, seed: int) -> list[int]:
    """The tokens of a whole stream."""
    found = []
    async with (
        httpx.AsyncClient(timeout=120) as client,
        client.stream("POST", f"{url}/generate_stream", json=request(seed, STEADY_TOKENS)) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                found.append(json.loads(line.removeprefix("data:"))["token"]["id"])
    return found


async def read_a_byte_a_second(url: httpx.URL, seed: int, over: asyncio.Event) -> int:
    """Bytes that a slow reader has got when the storm is over; it then hangs up."""
    got = 0
    async with begun(url, "/generate_stream", request(seed, STEADY_TOKENS), limit=2048) as reader:
        while not over.is_set():
            got += len(await reader.read(1))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(over.wait(), 1)
    return got


async def storm(url: httpx.URL, clients: int) -> tuple[list[list[int]], list[int]]:
    over = asyncio.Event()
    slow = [asyncio.create_task(read_a_byte_a_second(url, i, over)) for i in range(SLOW)]
    steady = [asyncio.create_task(stream_to_its_end(url, i)) for i in range(STEADY)]
    await asyncio.gather(*(leave_at_a_random_token(url, i) for i in range(clients)))
    texts = await asyncio.gather(*steady)
    over.set()
    return texts, await asyncio.gather(*slow)


def series(server: Any, *names: str) -> dict[str, float]:
    text = server.get("/metrics").text
    found = {name: re.search(rf"^{name} (\S+)$", text, re.MULTILINE) for name in names}
    return {name: float(match[1]) for name, match in found.items() if match}


def generated(server: Any) -> float:
    """Tokens that were drawn for somebody."""
    return series(server, "neuronx_serve_generated_tokens_total").get("neuronx_serve_generated_tokens_total", 0.0)


def at_rest(server: Any) -> dict[str, float]:
    """What the API process holds, once nothing runs: the least of a few looks, since each look is a connection."""
    names = ("neuronx_serve_tasks", "process_open_fds", "tgi_queue_size", "tgi_batch_current_size")
    deadline = time.monotonic() + 30
    while any((seen := series(server, *names))[name] for name in names[2:]):
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)
    looks = [series(server, *names) for _ in range(20) if time.sleep(0.05) is None]
    return {name: min(look[name] for look in looks) for name in names}


def test_whoever_leaves_takes_nothing_along_and_disturbs_nobody(server: Any) -> None:
    url = httpx.URL(server.url)
    alone = asyncio.run(asyncio.wait_for(storm(url, 0), 120))[0]
    assert all(len(tokens) == STEADY_TOKENS for tokens in alone)
    before = at_rest(server)
    drawn = generated(server)
    texts, slow = asyncio.run(asyncio.wait_for(storm(url, CLIENTS), 300))
    drawn = generated(server) - drawn
    stayed = (STEADY + SLOW) * STEADY_TOKENS
    assert drawn - stayed < CLIENTS * ASKED / 2, "nothing is computed for who has left"
    assert texts == alone
    assert all(slow)
    assert at_rest(server) == before
    assert server.post("/generate", request(1, 3)).status_code == 200
    assert server.get("/models/one").json()["waiting"] == 0
