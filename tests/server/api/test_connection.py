"""A reader that stalls loses its connection at once, over a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

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
