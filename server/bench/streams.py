"""Clients of a running server, TGI's route or OpenAI's: what each stream sees, and when.

As a program it takes a Load on stdin, asks for all of it at once, and prints what each stream saw: clients in a process
of their own take no time from the server's.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from server.errors import ConfigurationError

try:
    import aiohttp
except ImportError:  # the extra `bench` is not installed
    aiohttp = None  # type: ignore[assignment]

Route = Literal["tgi", "openai"]
CONNECT_S = 10.0
READ_S = 600.0  # between two pieces of an answer
ANSWER_S = 3600.0  # aiohttp may wait for ever behind a chunk that it cannot read


class Stream(msgspec.Struct, frozen=True):
    """One request: `tokens` are asked for; `parameters` are further ones of its route."""

    prompt: str
    tokens: int
    parameters: dict[str, Any] = {}


class Load(msgspec.Struct, frozen=True):
    """Requests for one server."""

    url: str
    route: Route
    streams: list[Stream]


@dataclass(slots=True)
class Answer:
    """What a client saw, in seconds of its own clock. `error` is empty if the stream came to its end."""

    asked_at: float
    token_at: list[float] = field(default_factory=list)
    ended_at: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    error: str = ""


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    generated_tokens: int
    input_length: int = 0


class _Event(msgspec.Struct):
    """The fields of both routes that matter here; TGI's errors are text, OpenAI's an object."""

    token: dict[str, Any] | None = None
    details: _Details | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


# What a connection may end with.
_BROKEN: tuple[type[Exception], ...] = (asyncio.TimeoutError,)
if aiohttp is not None:
    _BROKEN += (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError)
_UNREADABLE: tuple[type[Exception], ...] = (*_BROKEN, msgspec.DecodeError, UnicodeDecodeError)

_decoder = msgspec.json.Decoder(_Event)
_tokens = msgspec.json.Decoder(list[Any])


def client(concurrency: int, api_key: str = "") -> aiohttp.ClientSession:
    """A connection for each request, with the key where there is one; ConfigurationError when aiohttp is not installed.

    Its parser is compiled: a token costs these clients about half of what it costs those of pure Python, and so takes
    the less from a server on the same processors. To be made in a coroutine.
    """
    if aiohttp is None:
        raise ConfigurationError("bench needs aiohttp: pip install 'neuronx-serve[bench]'")
    return aiohttp.ClientSession(
        headers={"authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S, sock_read=READ_S),
        # Some servers hang up behind a stream without a word: the next request on that connection would be lost.
        connector=aiohttp.TCPConnector(limit=concurrency, force_close=True),
    )


async def answer(http: aiohttp.ClientSession, url: str, route: Route, stream: Stream) -> Answer:
    """Ask and read to the end. What goes wrong is in `error`."""
    seen = Answer(time.monotonic())
    path, body = _request(route, stream)
    try:
        async with http.post(url.rstrip("/") + path, json=body, allow_redirects=False) as response:
            if response.status != 200:
                content = (await response.read()).decode("utf-8", "replace")
                seen.error = f"{path} answered {response.status}: {content[:200]}"
            else:
                whole = False
                async for event in _events(response.content):
                    whole = _note(seen, event) or whole
                if not whole and seen.token_at and not seen.error:
                    seen.error = f"{path} ended after {len(seen.token_at)} tokens, without its last event"
    except _UNREADABLE as error:
        seen.error = f"{path}: {_told(error)}"
    seen.ended_at = time.monotonic()
    seen.tokens = seen.tokens or len(seen.token_at)
    if not seen.error and not seen.token_at:
        seen.error = f"{path} sent no token"
    return seen


async def count_tokens(http: aiohttp.ClientSession, url: str, text: str) -> int:
    """Tokens of `text` by the server's own tokenizer, 0 when it does not say. RuntimeError: it cannot be reached."""
    try:
        body = {"inputs": text}
        async with http.post(url.rstrip("/") + "/tokenize", json=body, allow_redirects=False) as counted:
            return len(_tokens.decode(await counted.read())) if counted.status == 200 else 0
    except msgspec.DecodeError:  # a route of that name, of somebody else
        return 0
    except _BROKEN as error:
        raise RuntimeError(f"{url} cannot be reached: {_told(error)}") from error


async def metrics(http: aiohttp.ClientSession, url: str) -> str:
    """The server's page for Prometheus, empty when it has none."""
    try:
        async with http.get(url.rstrip("/") + "/metrics", allow_redirects=False) as answered:
            return (await answered.read()).decode("utf-8", "replace") if answered.status == 200 else ""
    except _BROKEN:
        return ""


def _told(error: Exception) -> str:
    if isinstance(error, aiohttp.ServerDisconnectedError):  # its text may be the repr of half an answer
        return "ServerDisconnectedError: the server closed the connection"
    return f"{type(error).__name__}: {error}"


def _request(route: Route, stream: Stream) -> tuple[str, dict[str, Any]]:
    if route == "tgi":
        parameters = {"max_new_tokens": stream.tokens, "details": True, **stream.parameters}
        return "/generate_stream", {"inputs": stream.prompt, "parameters": parameters}
    return "/v1/chat/completions", {
        "model": "tgi",
        "messages": [{"role": "user", "content": stream.prompt}],
        "max_tokens": stream.tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **stream.parameters,
    }


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The payload of each event, as soon as it is whole."""
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in whole:
            if block.startswith(b"data:") and (payload := block[5:].strip()) != b"[DONE]":
                yield payload


def _note(seen: Answer, payload: bytes) -> bool:
    """Whether it is an event that ends a stream."""
    event = _decoder.decode(payload)
    if event.error is not None:
        seen.error = f"the stream ended with an error: {event.error}"
    elif event.token is not None or any(choice.delta.content for choice in event.choices):
        seen.token_at.append(time.monotonic())
    if event.details is not None:
        seen.tokens, seen.prompt_tokens = event.details.generated_tokens, event.details.input_length
    if event.usage is not None:
        seen.tokens, seen.prompt_tokens = event.usage.completion_tokens, event.usage.prompt_tokens
    return event.details is not None or any(choice.finish_reason is not None for choice in event.choices)


async def answers(load: Load) -> Sequence[Answer]:
    """All streams at once."""
    async with client(len(load.streams)) as http:
        return await asyncio.gather(*(answer(http, load.url, load.route, stream) for stream in load.streams))


def main() -> int:
    """See the module."""
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    seen = asyncio.run(answers(load))
    for each in seen:
        if each.error:
            print(each.error, file=sys.stderr)
    sys.stdout.buffer.write(msgspec.json.encode(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
