"""Who may call what: the API key of the generation routes, the rule of the admin routes (docs/architecture.md)."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.body import check_content_type
from server.errors import Forbidden

_HOST = re.compile(r"(\[(?P<v6>[^\]]*)\]|(?P<name>[^:\[\]]+))(:\d*)?")


class RequireKey:
    """Middleware of a route. A wrong key is 401 with an empty body, before the body is read; no key set, no check.

    `key` is asked at each request: a reload may change it.
    """

    def __init__(self, app: ASGIApp, key: Callable[[], str]) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = self._key()
        if key and not has_key(Headers(scope=scope), key):
            await Response(status_code=401)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def has_key(headers: Headers, key: str) -> bool:
    """Whether `Authorization: Bearer <key>` was sent; takes the same time for every wrong key of a length."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), key.encode())


def caller_of(headers: Headers) -> str:
    """A name for the key that a request brings, whether this server checks it or a proxy before it; "" without one."""
    given = headers.get("authorization", "")
    return hashlib.blake2b(given.encode("latin-1"), digest_size=16).hexdigest() if given else ""


def check_admin(request: Request, admin_key: str) -> None:
    """Forbidden unless the caller may steer the server; a POST must be JSON (UnsupportedMediaType).

    With an admin key, whoever has it. With none, only this machine: a loopback peer that no proxy speaks for, and no
    web page of another origin, also not one whose host name was made to point here.
    """
    if request.method == "POST":
        check_content_type(request.headers)
    if admin_key:
        if not has_key(request.headers, admin_key):
            raise Forbidden("This action needs the header `Authorization: Bearer <admin_key>`")
        return
    reason = _not_local(request)
    if reason:
        raise Forbidden(f"Without server.admin_key this action is allowed from this machine only: {reason}")


def _not_local(request: Request) -> str | None:
    headers = request.headers
    if request.client is None or not _is_loopback(request.client.host):
        return "the connection comes from elsewhere"
    if any(name == "forwarded" or name.startswith("x-forwarded-") for name in headers):
        return "a proxy forwarded it"
    host = headers.get("host", "")
    if not _is_loopback(_host_name(host)):
        return f"the Host is {host!r}"
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return f"the Origin is {origin!r}"
    return None


def _host_name(host: str) -> str:
    """The host of a Host header without its port; "" when it is malformed."""
    match = _HOST.fullmatch(host)
    return (match["v6"] or match["name"]) if match else ""


def _is_loopback(name: str) -> bool:
    if name.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
