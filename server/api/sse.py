"""Server-sent events, byte for byte as TGI frames them (wire contract, section 7).

The one subclass of sse-starlette's EventSourceResponse: its ping, its CRLF, its headers and its drain on SIGTERM are
replaced; ready bytes go in. Knows neither tokens nor JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Mapping

from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

log = logging.getLogger(__name__)

KEEPALIVE = b":\n\n"
DONE = b"data: [DONE]\n\n"

# By default sse-starlette ends every stream as soon as uvicorn is told to exit. Here streams are finished first:
# the server's own stop sequence decides when the rest is cut.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


def event(payload: bytes) -> bytes:
    """One event of compact JSON."""
    return b"data: " + payload + b"\n\n"


class Outbox:
    """What a stream still has to send: its events as they are produced, and a comment after a silence.

    The producer runs in a task of its own from the first read on, so it never waits for a slow reader.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], keepalive_s: float) -> None:
        self._events = events
        self._keepalive_s = keepalive_s
        self._unsent: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._producer: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0

    def __aiter__(self) -> Outbox:
        return self

    async def __anext__(self) -> bytes:
        if self._producer is None:
            self._producer = asyncio.create_task(self._produce())
            self._last = asyncio.get_running_loop().time()
            self._arm(self._keepalive_s)
        while not self._unsent:
            if self._producer.done():
                self._producer.result()
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._unsent.popleft()

    async def aclose(self) -> None:
        """Stop the producer, running its cleanup; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        if self._producer is not None:
            self._producer.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # __anext__ reports what it raised
                await self._producer
        await self._events.aclose()

    async def _produce(self) -> None:
        try:
            async for chunk in self._events:
                self._last = asyncio.get_running_loop().time()
                self._unsent.append(chunk)
                self._changed.set()
        finally:
            self._changed.set()

    def _arm(self, delay: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        """One timer a stream, however many events: it looks when the last one was, and sleeps for the rest."""
        now = asyncio.get_running_loop().time()
        due = self._last + self._keepalive_s
        if now >= due:
            if not self._unsent:
                self._unsent.append(KEEPALIVE)
                self._changed.set()
            self._last, due = now, now + self._keepalive_s
        self._arm(due - now)


class EventStream(EventSourceResponse):
    """200 and headers at once, then each chunk of `events` as it is produced, and the end of the body.

    `events` is closed when the stream ends, however it ends. A reader that takes nothing for `write_timeout_s`
    loses its connection.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        keepalive_s: float,
        write_timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._outbox = Outbox(events, keepalive_s)
        super().__init__(
            self._outbox,
            headers={"content-type": "text/event-stream", "cache-control": "no-cache", **(headers or {})},
            ping=0,
            sep="\n",
            send_timeout=write_timeout_s,
        )
        del self.headers["connection"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.get("extensions", {}).get("connection", {})["idle"] = KEEPALIVE
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.warning("a reader took nothing for %g s: its connection is closed", self.send_timeout or 0.0)
            connection = scope.get("extensions", {}).get("connection")
            if connection is not None:  # api/connection.py; under another server closing is all there is
                connection["abort"]()
                await receive()  # http.disconnect: the server knows, and misses no end of the body
        finally:
            await self._outbox.aclose()
