"""Keys, loopback callers, and the one permit object that outlives an endpoint."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from server.api.access import check_admin, has_key
from server.api.body import ClientGone
from server.api.call import Held, unless_gone
from server.errors import Forbidden


@pytest.mark.parametrize(
    ("authorization", "right"),
    [
        ("Bearer key", True),
        ("bearer key", True),
        ("Bearer  key", True),
        ("Bearer KEY", False),
        ("Bearer key2", False),
        ("Bearer", False),
        ("key", False),
        ("Basic key", False),
        ("Bearer ключ", False),
    ],
)
def test_keys(authorization: str, right: bool) -> None:
    assert has_key(Headers({"authorization": authorization.encode().decode("latin-1")}), "key") is right


def test_no_header_is_no_key() -> None:
    assert has_key(Headers({}), "key") is False


def action(peer: str, headers: dict[str, str]) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in {"content-type": "application/json", **headers}.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw, "client": (peer, 5)})


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_this_machine_may(peer: str) -> None:
    check_admin(action(peer, {"host": "localhost:8080"}), admin_key="")


@pytest.mark.parametrize("peer", ["10.0.0.1", "192.168.1.5", "::ffff:10.0.0.1", "2001:db8::1"])
def test_another_machine_may_not_without_a_key_and_may_with_it(peer: str) -> None:
    with pytest.raises(Forbidden, match="the connection comes from elsewhere"):
        check_admin(action(peer, {"host": "localhost:8080"}), admin_key="")
    check_admin(action(peer, {"host": "example.org", "authorization": "Bearer k"}), admin_key="k")


@pytest.mark.parametrize("host", ["", "localhost.example", "127.0.0.1.example", "[::1].example:1", "8.8.8.8", "[::2]"])
def test_a_host_that_is_not_loopback_may_have_been_rebound(host: str) -> None:
    with pytest.raises(Forbidden, match="the Host is"):
        check_admin(action("127.0.0.1", {"host": host}), admin_key="")


def test_unless_gone_gives_the_result_or_cancels_the_work() -> None:
    async def scenario() -> None:
        gone, cancelled = asyncio.Event(), []

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def work() -> str:
            try:
                await asyncio.sleep(0.01 if not gone.is_set() else 60)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
            return "done"

        assert await unless_gone(receive, work()) == "done"
        gone.set()
        with pytest.raises(ClientGone):
            await unless_gone(receive, work())
        assert cancelled == [True]

    asyncio.run(scenario())


def test_what_is_held_is_released_after_the_last_byte() -> None:
    async def scenario() -> None:
        log: list[str] = []
        held = ExitStack()
        held.callback(log.append, "released")

        async def send(message: Any) -> None:
            log.append(message["type"])

        async def receive() -> Any:
            raise AssertionError("nothing is read")

        await Held(Response("x"), held)({"type": "http", "method": "GET"}, receive, send)
        assert log == ["http.response.start", "http.response.body", "released"]

    asyncio.run(scenario())
