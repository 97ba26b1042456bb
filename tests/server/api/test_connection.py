"""Readers that stall, leave or send no more, and requests read behind them, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.connection import Connection
from server.api.sse import EventStream

CHUNK = b"data: " + b"x" * 65_536 + b"\n\n"


def test_the_connection_of_a_stalled_reader_is_aborted(caplog: pytest.LogCaptureFixture) -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield CHUNK
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await EventStream(endless(), keepalive_s=15, write_timeout_s=0.2)(scope, receive, send)

    async def scenario() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, http=Connection, lifespan="off", log_config=None))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        reader, writer = await asyncio.open_connection(*listening.getsockname(), limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.wait_for(closed.wait(), 20)
        while server.server_state.connections:  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.01)
        received = await reader.read()
        assert not received.endswith(b"0\r\n\r\n"), "a cut answer does not look like a whole one"
        writer.close()
        server.should_exit = True
        await serving

    caplog.set_level("WARNING")
    asyncio.run(scenario())
    assert [record.message for record in caplog.records] == [
        "a reader took nothing for 0.2 s: its connection is closed"
    ]


@contextlib.asynccontextmanager
async def served(
    app: ASGIApp,
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter, uvicorn.Server], None]:
    """A connection to a server of `app`."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    reader, writer = await asyncio.open_connection(*listening.getsockname(), limit=1024)
    try:
        yield reader, writer, server
    finally:
        writer.close()
        server.should_exit = True
        await serving


def test_a_reader_that_stalls_behind_the_last_event_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """One event that fills all buffers is taken at once; the end of the body then has to wait."""
    ended = asyncio.Event()

    async def one() -> AsyncGenerator[bytes, None]:
        yield CHUNK * 300

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await EventStream(one(), keepalive_s=15, write_timeout_s=0.2)(scope, receive, send)
        ended.set()

    async def scenario() -> None:
        async with served(app) as (_, writer, _server):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await asyncio.wait_for(ended.wait(), 60)

    caplog.set_level("WARNING")
    asyncio.run(scenario())
    assert "a reader took nothing for 0.2 s" in caplog.text


class Slow:
    """/slow streams an event for each permission, any other path answers at once."""

    def __init__(self) -> None:
        self.permissions = asyncio.Semaphore(0)
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/slow":
            await Response("done")(scope, receive, send)
            return
        await EventStream(self._events(), keepalive_s=15, write_timeout_s=60)(scope, receive, send)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        try:
            for number in range(3):
                await self.permissions.acquire()
                yield b"data: %d\n\n" % number
        finally:
            self.left.set()


PIPELINED = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\nGET /ok HTTP/1.1\r\nhost: x\r\n\r\n"


def test_a_client_that_half_closes_behind_two_requests_reads_both_answers_whole() -> None:
    async def scenario() -> bytes:
        app = Slow()
        async with served(app) as (reader, writer, _):
            writer.write(PIPELINED)
            app.permissions.release()
            received = await asyncio.wait_for(reader.readuntil(b"data: 0\n\n\r\n"), 60)
            writer.write_eof()
            await asyncio.sleep(0)
            app.permissions.release()
            app.permissions.release()
            return received + await asyncio.wait_for(reader.read(), 60)

    first, second = asyncio.run(scenario()).split(b"0\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    frames = first.partition(b"\r\n\r\n")[2].replace(b"3\r\n:\n\n\r\n", b"")  # a comment asks whether it is there
    assert frames == b"".join(b"9\r\ndata: %d\n\n\r\n" % number for number in range(3))
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")
    assert second.endswith(b"done")


def test_a_client_that_leaves_behind_two_requests_is_noticed() -> None:
    async def scenario() -> None:
        app = Slow()
        async with served(app) as (reader, writer, _):
            writer.write(PIPELINED)
            app.permissions.release()
            await asyncio.wait_for(reader.readuntil(b"data: 0\n\n\r\n"), 60)
            writer.transport.abort()
            await asyncio.wait_for(app.left.wait(), 60)

    asyncio.run(scenario())


def test_a_client_of_http_1_0_that_expects_a_100_gets_bare_events() -> None:
    async def scenario() -> bytes:
        app = Slow()
        async with served(app) as (reader, writer, _):
            writer.write(b"POST /slow HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}")
            for _ in range(3):
                app.permissions.release()
            return await asyncio.wait_for(reader.read(), 60)

    head, _, body = asyncio.run(scenario()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"chunked" not in head
    assert body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
