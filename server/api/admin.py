"""The admin page: GET /admin with its two files, and GET /admin/logs (docs/architecture.md, Exchanging models).

The page is static, holds no secret and is for everyone; what it shows and does comes from the public API, where the
rule of the admin routes stands before activate, unload and the log lines.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.api.access import check_admin
from server.api.respond import json_response
from server.api.service import service_of

WEB = Path(__file__).resolve().parents[1] / "web"
_HEADERS = {
    # Nothing from elsewhere, nothing inline, and no other page may frame this one to borrow its clicks.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # a new release's page goes with its scripts
}


class LogLines(msgspec.Struct, frozen=True):
    """GET /admin/logs: the last lines of the log, oldest first, without prompts and tracebacks."""

    lines: list[str]


def routes() -> list[Route]:
    """The page at /admin, its files below."""
    return [
        _file("/admin", "admin.html", "text/html"),
        _file("/admin/admin.css", "admin.css", "text/css"),
        _file("/admin/admin.js", "admin.js", "text/javascript"),
        Route("/admin/logs", logs),
    ]


async def logs(request: Request) -> Response:
    """GET /admin/logs; Forbidden unless the caller may steer the server."""
    service = service_of(request)
    check_admin(request, service.settings.server.admin_key)
    return json_response(LogLines(service.recent.lines()), headers={"cache-control": "no-store"})


def _file(path: str, name: str, media_type: str) -> Route:
    content = (WEB / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=media_type)

    return Route(path, answer)
