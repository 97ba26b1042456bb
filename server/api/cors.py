"""Cross-origin requests as TGI answers them: always on, preflights answered before anything else (wire contract, 1).

Admin routes are left out: a page of another origin has no business there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VARY = "origin, access-control-request-method, access-control-request-headers"


class Cors:
    """Middleware. `origins`: those allowed, or ("*",). `closed`: says of a path that it takes no part."""

    def __init__(self, app: ASGIApp, origins: Sequence[str], closed: Callable[[str], bool]) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._closed(scope["path"]):
            await self._app(scope, receive, send)
            return
        allowed = self._allowed_origin(Headers(scope=scope).get("origin"))
        if scope["method"] == "OPTIONS":
            await _preflight(allowed)(scope, receive, send)
            return

        async def send_with_origin(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("vary", VARY)
                if allowed:
                    headers["access-control-allow-origin"] = allowed
            await send(message)

        await self._app(scope, receive, send_with_origin)

    def _allowed_origin(self, origin: str | None) -> str | None:
        if "*" in self._origins:
            return "*"
        return origin if origin in self._origins else None


def _preflight(allowed: str | None) -> Response:
    headers = {
        "access-control-allow-methods": "GET,POST",
        "access-control-allow-headers": "content-type,authorization",
        "vary": VARY,
    }
    if allowed:
        headers["access-control-allow-origin"] = allowed
    return Response(status_code=200, headers=headers)
