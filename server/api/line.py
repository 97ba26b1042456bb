"""One log line and one span a request: what was asked, how it ended, what it cost. No prompts, nothing a token.

The middleware writes them when the last byte is sent or the client is gone; call.py's Account fills in what only
it learns. The fields of the line travel as the record's `extra` (observe/logs.py); the span goes to observe/tracing.py.
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
from server.observe.tracing import Attribute, Traces

log = logging.getLogger(__name__)

LONGEST_ID = 128
_TRACE_HEADERS = ("traceparent", "tracestate")
_OURS = ("generation", "incomplete", "incomplete_generation", "unavailable")  # what is not the client's doing


@dataclass(slots=True)
class Line:
    """What is known of a request. `finish` is a finish reason or an error type; token counts are of all sequences."""

    model: str = ""
    finish: str = ""
    sequences: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    timings: core.Timings | None = None
    time_per_token: float = 0.0  # seconds, of the last sequence

    def finished(self, finish: str, request: core.Request, timings: core.Timings, generated_tokens: int) -> None:
        """A sequence has its last token."""
        self.finish = finish
        self.sequences += 1
        self.prompt_tokens += len(request.prompt)
        self.generated_tokens += generated_tokens
        self.timings = timings
        self.time_per_token = (timings.ended - timings.started) / generated_tokens

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

    def attributes(self) -> dict[str, Attribute]:
        """The same for a span: OpenTelemetry's names, then TGI's; times in seconds, of the last sequence."""
        known: dict[str, Attribute] = {"gen_ai.request.model": self.model, "finish_reason": self.finish}
        if self.sequences:
            known["sequences"] = self.sequences
            known["gen_ai.usage.input_tokens"] = self.prompt_tokens
            known["gen_ai.usage.output_tokens"] = self.generated_tokens
        if self.timings is not None:
            times = self.timings
            known |= {
                "validation_time": times.validated - times.arrived,
                "queue_time": times.started - times.validated,
                "prefill_time": times.first_token - times.started,
                "decode_time": times.ended - times.first_token,
                "inference_time": times.ended - times.started,
                "total_time": times.ended - times.arrived,
                "time_per_token": self.time_per_token,
            }
        return {name: value for name, value in known.items() if value != ""}


class LogRequests:
    """Middleware of a route: gives the request its Line, logs it at the end, and hands its span over."""

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
            self._write(scope, line, status, time.monotonic() - began)

    def _write(self, scope: Scope, line: Line, status: int, seconds: float) -> None:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        fields = {"status": status, "total_ms": _milliseconds(seconds), **line.fields()}
        request_id = headers.get("x-request-id")
        if request_id:
            fields["request_id"] = _printable(request_id)
        log.info("%s %s", method, path, extra=fields)
        traces: Traces = scope["app"].state.service.traces
        traces.ended(
            f"{method} {path}",
            seconds,
            {"http.request.method": method, "url.path": path, "http.response.status_code": status, **line.attributes()},
            parent={name: headers[name] for name in _TRACE_HEADERS if name in headers},
            failed=status >= 500 or line.finish in _OURS,
        )


def line_of(request: Request) -> Line:
    """The request's line; one that nobody writes where the route has no log."""
    return cast(Line, request.scope.setdefault("line", Line()))


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _printable(text: str) -> str:
    """A client's text, safe and short enough for a line."""
    return "".join(c if " " < c <= "~" else "?" for c in text[:LONGEST_ID])
