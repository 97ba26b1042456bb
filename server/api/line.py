"""One log line a request: what was asked, how it ended, what it cost. Never a prompt, never a line a token.

The middleware writes the line when the last byte is sent or the client is gone; call.py's Account fills in what only
it learns. The fields travel as the record's `extra` (observe/logs.py).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import cast

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import core

log = logging.getLogger(__name__)

LONGEST_ID = 128


@dataclass(slots=True)
class Line:
    """What is known of a request. `finish` is a finish reason or an error type; token counts are of all sequences."""

    model: str = ""
    finish: str = ""
    sequences: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    timings: core.Timings | None = None

    def finished(self, finish: str, request: core.Request, timings: core.Timings, generated_tokens: int) -> None:
        """A sequence has its last token."""
        self.finish = finish
        self.sequences += 1
        self.prompt_tokens += len(request.prompt)
        self.generated_tokens += generated_tokens
        self.timings = timings

    def fields(self) -> dict[str, object]:
        """Milliseconds of the last sequence, and the rest; nothing that is not known."""
        known: dict[str, object] = {"model": self.model, "finish": self.finish}
        if self.sequences:
            known |= {"prompt_tokens": self.prompt_tokens, "generated_tokens": self.generated_tokens}
        if self.sequences > 1:
            known["sequences"] = self.sequences
        if self.timings is not None:
            times = self.timings
            known |= {
                "validation_ms": _milliseconds(times.validated - times.arrived),
                "queue_ms": _milliseconds(times.started - times.validated),
                "first_token_ms": _milliseconds(times.first_token - times.arrived),
                "inference_ms": _milliseconds(times.ended - times.started),
            }
        return {name: value for name, value in known.items() if value != ""}


class LogRequests:
    """Middleware of a route: gives the request its Line, and logs it at the end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        line = scope["line"] = Line()
        status = 0

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            fields = {"status": status, "total_ms": _milliseconds(time.monotonic() - began), **line.fields()}
            request_id = Headers(scope=scope).get("x-request-id")
            if request_id:
                fields["request_id"] = _printable(request_id)
            log.info("%s %s", scope["method"], scope["path"], extra=fields)


def line_of(request: Request) -> Line:
    """The request's line; one that nobody writes where the route has no log."""
    return cast(Line, request.scope.setdefault("line", Line()))


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _printable(text: str) -> str:
    """A client's text, safe and short enough for a line."""
    return "".join(c if " " < c <= "~" else "?" for c in text[:LONGEST_ID])
