"""uvicorn's HTTP protocol with three more promises.

An app can drop a connection whose reader has stalled: closing it politely waits for the reader,
scope["extensions"]["connection"]["abort"] does not. ["congested"] says whether the next send would wait for the reader.
["send"] takes the body of an answer past the middleware, which looks at its head alone.

A client that half-closes, as `nc -N` does, still gets its answer, and one that is gone is still noticed at once. Both
look the same until something is sent: so the next bytes of the answer that are certain are sent early (the first of
the status line, or of a stream the comment in ["idle"]), and a client that is gone refuses them.

A client of HTTP/1.0 knows no chunks: a stream to it is the bare events, and ends with the connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

STATUS_LINE = b"HTTP/1.1 "
FIRST_LOOK_S = 0.02
NEXT_LOOK_S = 0.5
_TCP_INFO = getattr(socket, "TCP_INFO", None)  # Linux; elsewhere a half-closed connection is closed
_TCP_CLOSE = 7


class Connection(HttpToolsProtocol):
    """To be given to uvicorn.Config as `http`."""

    _half_closed = False
    _answered: RequestResponseCycle | None = None  # its answer is under way; `cycle` is the request read last

    def on_message_begin(self) -> None:
        """A request begins: its scope learns to drop the connection, and may say what a silent stream sends."""
        super().on_message_begin()
        self.scope["extensions"] = {"connection": {"abort": self.transport.abort, "congested": self._congested}}

    def on_headers_complete(self) -> None:
        """A request's head is read; nothing of its answer was written yet."""
        before = self.cycle
        super().on_headers_complete()
        if before is None or before.response_complete:
            self._answered = self.cycle
        self.scope["extensions"]["connection"]["send"] = self.cycle.send
        if self.parser.get_http_version() == "1.0":
            self.cycle.transport = _Unchunked(self.transport)  # type: ignore[assignment]
            self.cycle.waiting_for_100_continue = False  # RFC 9110, 10.1.1: HTTP/1.0 knows no such expectation

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more. True keeps the connection open for the answer that is under way."""
        cycle = self._answered
        if _TCP_INFO is None or cycle is None or cycle.response_complete or cycle.more_body:
            return None
        self._half_closed = True
        if not cycle.response_started:
            self.transport.write(STATUS_LINE)
            cycle.transport = _Begun(cycle.transport)  # type: ignore[assignment]
        elif cycle.chunked_encoding:
            extensions: dict[str, Any] = cycle.scope["extensions"]
            idle: bytes = extensions["connection"].get("idle", b"")
            if idle:
                cycle.transport.write(b"%x\r\n%b\r\n" % (len(idle), idle))
        asyncio.get_running_loop().call_later(FIRST_LOOK_S, self._look)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: the answer under way ends, also where requests were read behind it."""
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """An answer is sent; behind the last one to a client that sends no more, the connection is closed."""
        following = self.pipeline[-1][0] if self.pipeline else self._answered
        super().on_response_complete()
        self._answered = following
        if self._half_closed and self.cycle.response_complete and not self.pipeline:
            self.transport.close()

    def _congested(self) -> bool:
        return self.flow.write_paused

    def _look(self) -> None:
        """Drop the connection if the client has refused what was sent, else look again later."""
        if self.transport.is_closing():
            return
        peer = self.transport.get_extra_info("socket")
        if peer.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] == _TCP_CLOSE:
            self.transport.abort()
        else:
            asyncio.get_running_loop().call_later(NEXT_LOOK_S, self._look)


class _Begun:
    """A transport on which the first bytes of the next write were sent already."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._sent = STATUS_LINE

    def write(self, data: bytes) -> None:
        """Write what of `data` is not sent yet."""
        assert data.startswith(self._sent), "every answer of uvicorn begins with the same status line"
        data, self._sent = data[len(self._sent) :], b""
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Unchunked:
    """A transport that takes the frames off a chunked answer. uvicorn writes whole frames, behind a whole head."""

    _CHUNKED = b"transfer-encoding: chunked\r\n"

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._chunked: bool | None = None  # None until the head is written

    def write(self, data: bytes) -> None:
        """Write what `data` carries."""
        if self._chunked is None:
            self._chunked = self._CHUNKED in data
            data = data.replace(self._CHUNKED, b"", 1)
        elif self._chunked:
            data = b"".join(_unframed(data))
        if data:
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _unframed(frames: bytes) -> Iterator[bytes]:
    while frames:
        size, _, rest = frames.partition(b"\r\n")
        length = int(size, 16)
        yield rest[:length]
        frames = rest[length + 2 :]
