"""Clients of servers that answer in odd ways: each answer ends once, with what was wrong. Real sockets."""

from __future__ import annotations

import asyncio

import pytest

from server.bench import streams
from server.bench.streams import Answer, Stream, answer, client, count_tokens, metrics

STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


TOKEN = chunk(b'data: {"token":{"id":1,"text":"a"}}\n\n')
LAST = chunk(b'data: {"details":{"generated_tokens":1,"input_length":5}}\n\n') + chunk(b"")
MOVED = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:%d/there\r\ncontent-length: 5\r\n\r\nmoved"


class Server:
    """Answers every request with the same bytes, in which %d is its port, and hangs up."""

    def __init__(self, answered: bytes) -> None:
        self._answered = answered
        self.paths: list[str] = []

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1")
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        self.paths.append(head.split()[1])
        if "content-length: " in head:
            await reader.readexactly(int(head.split("content-length: ")[1].split()[0]))
        writer.write(self._answered.replace(b"%d", b"%d" % self._port))
        await writer.drain()
        writer.close()


async def ask(answered: bytes) -> tuple[Answer, list[str]]:
    async with Server(answered) as server, client(1) as http:
        seen = await asyncio.wait_for(answer(http, server.url, "tgi", Stream("Hello", 4)), 60)
        return seen, server.paths


@pytest.mark.parametrize(
    ("answered", "error", "tokens"),
    [
        (STREAM + TOKEN, "ClientPayloadError", 1),
        (STREAM + TOKEN + chunk(b""), "ended after 1 tokens, without its last event", 1),
        (STREAM + chunk(b""), "sent no token", 0),
        (STREAM + chunk(b'data: {"error":"\xff"}\n\n'), "UnicodeDecodeError", 0),
        (STREAM + chunk(b'data: "a"\n\n'), "ValidationError", 0),
        (MOVED, "/generate_stream answered 307: moved", 0),
        (b"HTTP/1.1 200 OK\r\nx", "ServerDisconnectedError: the server closed the connection", 0),
        (b"no HTTP\r\n\r\n", "ClientResponseError", 0),
        (b"HTTP/1.1 429 Too Many\r\ncontent-length: 4\r\n\r\nwait", "/generate_stream answered 429: wait", 0),
    ],
)
def test_what_is_wrong_is_told(answered: bytes, error: str, tokens: int) -> None:
    seen, paths = asyncio.run(ask(answered))
    assert error in seen.error
    assert (len(seen.token_at), paths) == (tokens, ["/generate_stream"])
    assert seen.ended_at >= seen.asked_at


def test_a_server_may_hang_up_behind_each_answer() -> None:
    async def run() -> list[Answer]:
        async with Server(STREAM + TOKEN + LAST) as server, client(1) as http:
            return [await answer(http, server.url, "tgi", Stream("Hello", 1)) for _ in range(20)]

    assert [(seen.error, seen.tokens) for seen in asyncio.run(run())] == [("", 1)] * 20


def test_a_chunk_that_cannot_be_read_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ANSWER_S", 0.5)
    seen, _ = asyncio.run(ask(STREAM + TOKEN + b"zz\r\n"))
    assert "Error" in seen.error
    assert len(seen.token_at) <= 1


def test_pages_of_somebody_else_tell_nothing_and_are_no_error() -> None:
    async def run(answered: bytes) -> tuple[int, str]:
        async with Server(answered) as server, client(1) as http:
            return await count_tokens(http, server.url, "Hello"), await metrics(http, server.url)

    page = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n\xffab"
    assert asyncio.run(run(page)) == (0, "\ufffdab")
    assert asyncio.run(run(MOVED)) == (0, "")
