"""The listening socket, the signals and the end of the process: runs an app until it is told to stop.

The socket listens before anything heavy is imported, so the first clients wait instead of being refused. SIGTERM and
SIGINT stop gracefully: the listener stays open (new work is answered with 503) until running work is done; after the
first one both signals have their default action, so a second ends the process at once, whatever it is doing. SIGHUP
reloads, unless it says that the terminal which the process was started from is gone: then it stops like the others.
Knows no models: what stopping means, and when there is no use in going on, is the caller's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import anyio.lowlevel
import uvicorn
from starlette.types import ASGIApp

from server.api.connection import Connection
from server.errors import ConfigurationError

try:
    import uvloop as loops
except ImportError:  # uvloop has no build for this platform
    import asyncio as loops  # type: ignore[no-redef]

logger = logging.getLogger(__name__)
T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
KEEP_ALIVE_S = 75  # longer than the 60 s after which load balancers drop idle connections: they must close first
PASSED_FD = 3  # SD_LISTEN_FDS_START
LAST_WRITES_S = 5  # for clients to take the ends of their answers, once all work is over


class CannotListen(OSError):
    """The address cannot be listened on."""


class Life(Protocol):
    """What the process does at the turning points of its life."""

    async def stop(self) -> None:
        """Refuse new work and let what runs end; returns when that is over."""

    async def reload(self) -> None:
        """Take up another configuration; raises nothing."""

    async def hopeless(self) -> None:
        """Returns when there is no use in serving, which may be never."""


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that accepts connections from now on; CannotListen when the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=host == "::")
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while ")[0]  # what follows repeats the address
        raise CannotListen(
            f"cannot listen on {host} port {port}: {reason}. Choose with --hostname and --port"
        ) from error


def passed_socket(environment: Mapping[str, str], pid: int) -> socket.socket | None:
    """The socket on which a service manager listens for the process `pid`: sd_listen_fds(3).

    None when there is none; ConfigurationError when there are several, or it is not one that accepts TCP connections.
    """
    if environment.get("LISTEN_PID") != str(pid):
        return None
    count = environment.get("LISTEN_FDS", "")
    if count != "1":
        raise ConfigurationError(
            f"environment variable LISTEN_FDS = {count!r}: allowed is '1', one address to listen on"
        )
    try:
        passed = socket.socket(fileno=PASSED_FD)
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigurationError(
            f"LISTEN_FDS = 1, but descriptor {PASSED_FD} is no socket: {error.strerror}"
        ) from error
    if not listens or passed.type != socket.SOCK_STREAM or passed.family not in (socket.AF_INET, socket.AF_INET6):
        passed.detach()
        raise ConfigurationError(f"descriptor {PASSED_FD}, by LISTEN_FDS: allowed is a socket that listens for TCP")
    passed.set_inheritable(False)
    return passed


def run(app: ASGIApp, listening: socket.socket, life: Life) -> bool:
    """Serve `app` until a signal, or until its life is hopeless, then until it has stopped. False when the app did not
    start."""
    server = Server(app)
    run_on_loop(_serve(server, listening, life))
    return server.started


def run_on_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on the event loop that the server uses."""
    result: T = loops.run(main)
    return result


class Server(uvicorn.Server):
    """uvicorn's server as this project runs it, with the signals left to us."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,
                log_config=None,
                lifespan="on",
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=LAST_WRITES_S,
                timeout_keep_alive=KEEP_ALIVE_S,
                ws="none",
                http=Connection,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections; what anyio would import for the first stream is imported by then."""
        await anyio.lowlevel.checkpoint()
        await super().startup(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(server: Server, listening: socket.socket, life: Life) -> None:
    signals = _Signals()
    hopeless = asyncio.create_task(life.hopeless())
    reloading = asyncio.create_task(_reload_when_told(signals.reload, life))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    host, port = listening.getsockname()[:2]
    logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    await asyncio.wait((signals.stop, hopeless, serving), return_when=asyncio.FIRST_COMPLETED)
    if signals.stop.done():
        logger.info("%s: running work is finished first; a second signal ends at once", signals.stop.result().name)
    hopeless.cancel()
    reloading.cancel()
    if not serving.done():
        try:
            await life.stop()
        finally:
            server.should_exit = True
    await serving


async def _reload_when_told(told: asyncio.Event, life: Life) -> None:
    while True:
        await told.wait()
        told.clear()
        await life.reload()


class _Signals:
    """`stop` is done with the first signal that asks for an end, `reload` is set by each SIGHUP that asks for that."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.stop: asyncio.Future[signal.Signals] = self._loop.create_future()
        self.reload = asyncio.Event()
        # What nohup starts is to outlive its terminal.
        self._of_a_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()
        for each in SIGNALS:
            self._loop.add_signal_handler(each, self._first, each)
        self._loop.add_signal_handler(signal.SIGHUP, self._hangup)

    def _first(self, number: signal.Signals) -> None:
        for each in SIGNALS:
            self._loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        if not self.stop.done():
            self.stop.set_result(number)

    def _hangup(self) -> None:
        if self._of_a_terminal and not _has_terminal():
            self._first(signal.SIGHUP)
        else:
            self.reload.set()


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
