"""Framing of server-sent events, on the ASGI messages themselves (wire contract, section 7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from sse_starlette.sse import AppStatus

from server.api.sse import DONE, KEEPALIVE, EventStream, event


async def chunks(*items: bytes, pause: float = 0.0) -> AsyncGenerator[bytes, None]:
    for item in items:
        await asyncio.sleep(pause)
        yield item


class Client:
    """The ASGI server's side of one connection."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.stalled = asyncio.Event()
        self.answered = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self.answered.set()
        if self.stalled.is_set() and message.get("body"):
            await asyncio.Event().wait()

    @property
    def body(self) -> list[bytes]:
        return [m["body"] for m in self.messages if m["type"] == "http.response.body"]


def stream(
    events: AsyncGenerator[bytes, None], keepalive_s: float = 15.0, write_timeout_s: float = 60.0
) -> EventStream:
    return EventStream(events, keepalive_s=keepalive_s, write_timeout_s=write_timeout_s)


async def run(response: EventStream, client: Client, scope: dict[str, Any] | None = None) -> None:
    await response({"type": "http", "method": "POST", **(scope or {})}, client.receive, client.send)  # type: ignore[arg-type]


def test_an_event_is_data_space_json_and_two_line_feeds() -> None:
    assert event('{"text":"计"}'.encode()) == 'data: {"text":"计"}\n\n'.encode()
    assert DONE == b"data: [DONE]\n\n"
    assert KEEPALIVE == b":\n\n"


def test_every_chunk_is_sent_by_itself_and_the_body_is_closed() -> None:
    client = Client()
    asyncio.run(run(stream(chunks(b"data: 1\n\n", b"data: 2\n\n")), client))
    assert client.body == [b"data: 1\n\n", b"data: 2\n\n", b""]
    assert client.messages[-1]["more_body"] is False


def test_the_headers_are_exactly_these() -> None:
    client = Client()
    asyncio.run(run(stream(chunks()), client))
    assert client.messages[0]["status"] == 200
    assert dict(client.messages[0]["headers"]) == {
        b"content-type": b"text/event-stream",
        b"cache-control": b"no-cache",
        b"x-accel-buffering": b"no",
    }


def test_headers_are_sent_before_the_first_event_exists() -> None:
    async def scenario() -> None:
        client, release = Client(), asyncio.Event()

        async def late() -> AsyncGenerator[bytes, None]:
            await release.wait()
            yield b"data: 1\n\n"

        task = asyncio.create_task(run(stream(late()), client))
        await client.answered.wait()
        assert client.messages[0]["type"] == "http.response.start"
        assert client.body == []
        release.set()
        await task

    asyncio.run(scenario())


def test_a_silence_is_filled_with_comments_also_before_the_first_event() -> None:
    client = Client()
    asyncio.run(run(stream(chunks(b"data: 1\n\n", b"data: 2\n\n", pause=0.25), keepalive_s=0.1), client))
    assert client.body[:2] == [KEEPALIVE, KEEPALIVE]
    assert [chunk for chunk in client.body if chunk != KEEPALIVE] == [b"data: 1\n\n", b"data: 2\n\n", b""]
    assert KEEPALIVE in client.body[client.body.index(b"data: 1\n\n") : client.body.index(b"data: 2\n\n")]


def test_the_silence_is_counted_from_the_last_event() -> None:
    client = Client()
    events = [f"data: {n}\n\n".encode() for n in range(20)]
    asyncio.run(run(stream(chunks(*events, pause=0.03), keepalive_s=0.3), client))
    assert client.body == [*events, b""]


def test_a_disconnect_closes_the_events() -> None:
    async def scenario() -> list[str]:
        client, seen = Client(), []

        async def endless() -> AsyncGenerator[bytes, None]:
            try:
                yield b"data: 1\n\n"
                client.gone.set()
                await asyncio.Event().wait()
            finally:
                seen.append("closed")

        await run(stream(endless()), client)
        return seen

    assert asyncio.run(scenario()) == ["closed"]


def test_a_reader_that_stalls_loses_its_connection_in_the_end() -> None:
    async def scenario() -> None:
        client, closed = Client(), []
        client.stalled.set()

        async def endless() -> AsyncGenerator[bytes, None]:
            try:
                while True:
                    yield b"data: 1\n\n"
                    await asyncio.sleep(0)
            finally:
                closed.append(True)

        scope = {"extensions": {"connection": {"abort": client.gone.set}}}
        await run(stream(endless(), write_timeout_s=0.1), client, scope)
        assert client.body == [b"data: 1\n\n"]
        assert closed == [True]
        assert client.gone.is_set()

    asyncio.run(scenario())


def test_a_stalled_reader_gets_no_comments_on_top() -> None:
    async def scenario() -> None:
        client = Client()
        client.stalled.set()
        scope = {"extensions": {"connection": {"abort": client.gone.set}}}
        await run(stream(chunks(b"data: 1\n\n", b"data: 2\n\n"), 0.02, write_timeout_s=0.2), client, scope)
        assert client.body == [b"data: 1\n\n"]

    asyncio.run(scenario())


@pytest.mark.parametrize("congested", [False, True])
def test_a_send_that_cannot_wait_has_no_timeout_and_one_that_can_has(congested: bool) -> None:
    async def scenario() -> list[bytes]:
        client = Client()
        scope = {"extensions": {"connection": {"abort": client.gone.set, "congested": lambda: congested}}}
        await run(stream(chunks(b"data: 1\n\n", b"data: 2\n\n")), client, scope)
        return client.body

    assert asyncio.run(scenario()) == [b"data: 1\n\n", b"data: 2\n\n", b""]


def test_chunks_go_past_the_middleware_that_has_seen_the_head() -> None:
    async def scenario() -> tuple[Client, Client]:
        through, past = Client(), Client()
        scope = {"extensions": {"connection": {"congested": lambda: False, "send": past.send}}}
        await run(stream(chunks(b"data: 1\n\n", b"data: 2\n\n")), through, scope)
        return through, past

    through, past = asyncio.run(scenario())
    assert [message["type"] for message in through.messages] == ["http.response.start", "http.response.body"]
    assert past.body == [b"data: 1\n\n", b"data: 2\n\n"]


def test_a_bug_in_the_events_is_not_swallowed() -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run(stream(broken()), Client()))


def test_streams_outlive_the_signal_that_stops_the_server() -> None:
    assert AppStatus.enable_automatic_graceful_drain is False
