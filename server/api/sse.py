"""Server-sent events, byte for byte as TGI frames them (wire contract, section 7).

The one subclass of sse-starlette's EventSourceResponse: its ping, its CRLF, its headers and its drain on SIGTERM are
replaced; ready bytes go in. Knows neither tokens nor JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping

from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

log = logging.getLogger(__name__)

KEEPALIVE = b":\n\n"
DONE = b"data: [DONE]\n\n"

# By default sse-starlette ends every stream as soon as uvicorn is told to exit. Here streams are finished first:
# the server's own stop sequence decides when the rest is cut.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


def event(payload: bytes) -> bytes:
    """One event of compact JSON."""
    return b"data: " + payload + b"\n\n"


class EventStream(EventSourceResponse):
    """200 and headers at once, then each chunk of `events` as it is produced, and the end of the body.

    After `keepalive_s` without an event comes a comment. `events` is closed when the stream ends, however it ends. A
    reader that takes nothing for `write_timeout_s` loses its connection; what waits for it meanwhile must be kept by
    whoever makes the events, as the queue of a generation does.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        keepalive_s: float,
        write_timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._events = events
        self._keepalive_s = keepalive_s
        self._congested: Callable[[], bool] = lambda: True
        self._send_body: Send | None = None
        self._sending = False
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None
        super().__init__(
            events,
            headers={"content-type": "text/event-stream", "cache-control": "no-cache", **(headers or {})},
            ping=0,
            sep="\n",
            send_timeout=write_timeout_s,
        )
        del self.headers["connection"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        extension = scope.get("extensions", {}).get("connection", {})
        extension["idle"] = KEEPALIVE
        self._congested = extension.get("congested", self._congested)
        self._send_body = extension.get("send")
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.warning("a reader took nothing for %g s: its connection is closed", self.send_timeout or 0.0)
            if "abort" in extension:  # api/connection.py; under another server closing is all there is
                extension["abort"]()
                await receive()  # http.disconnect: the server knows, and misses no end of the body
        finally:
            await self._events.aclose()

    async def _stream_response(self, send: Send) -> None:
        """Send all events; comments go in between from a timer while there is none."""
        self._last = asyncio.get_running_loop().time()
        self._arm(send, self._keepalive_s)
        in_time = super()._send_with_timeout

        async def bounded(message: Message) -> None:
            """The head and the end may meet a reader that has stalled as well."""
            await (in_time(send, message) if self._congested() else send(message))

        try:
            await super()._stream_response(bounded)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._comment is not None:
                self._comment.cancel()

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """A timeout costs as much as all the rest of a send, and so does the way through the middleware, which has seen
        the head and looks at nothing else: none is set up where the send cannot wait, and a chunk goes by none."""
        self._sending = True
        if self._congested():
            await super()._send_with_timeout(self._send_body or send, message)
        else:
            await (self._send_body or send)(message)
        self._sending = False
        self._last = asyncio.get_running_loop().time()

    def _arm(self, send: Send, delay: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick, send)

    def _tick(self, send: Send) -> None:
        """One timer a stream, however many events: it looks when the last one was sent, and sleeps for the rest.

        A reader that takes nothing gets no comments on top.
        """
        now = asyncio.get_running_loop().time()
        due = self._last + self._keepalive_s
        if now >= due:
            if not self._sending and (self._comment is None or self._comment.done()):
                self._comment = asyncio.create_task(_send_comment(send))
            self._last, due = now, now + self._keepalive_s
        self._arm(send, due - now)


async def _send_comment(send: Send) -> None:
    with contextlib.suppress(OSError):  # the client has left: the stream's own task is told so
        await send({"type": "http.response.body", "body": KEEPALIVE, "more_body": True})
