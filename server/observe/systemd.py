"""What a service manager is told, and what it asks for: systemd's NOTIFY_SOCKET protocol, sd_notify(3).

One datagram a message, lines of KEY=VALUE. Without NOTIFY_SOCKET in the environment nothing is sent. Knows no server:
what is said, and when, is the caller's decision.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

from server.errors import ConfigurationError

log = logging.getLogger(__name__)
_US = 1_000_000


class Notifier:
    """The way to the service manager. Sending never waits: what a busy one does not take goes with the next message. Of
    each kind the last is kept, since it makes void what was said before it."""

    def __init__(self, address: str | bytes | None, watchdog_s: float = 0.0) -> None:
        """`address` None: there is nobody to tell. `watchdog_s`: within how many seconds it wants each watchdog message
        after the last; 0: it wants none."""
        self._address = address
        self._socket = None if address is None else socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if self._socket is not None:
            self._socket.setblocking(False)
        self._unsent: dict[str, bytes] = {}  # by the key of the first line
        self.watchdog_s = watchdog_s

    @classmethod
    def of(cls, environment: Mapping[str, str], pid: int) -> Notifier:
        """What NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID ask of the process `pid`; ConfigurationError when they
        make no sense."""
        name = environment.get("NOTIFY_SOCKET", "")
        if not name:
            return cls(None)
        if name[0] not in "/@":
            raise ConfigurationError(
                f"environment variable NOTIFY_SOCKET = {name!r}: allowed is an absolute path, or @ and an abstract name"
            )
        address = b"\0" + os.fsencode(name[1:]) if name[0] == "@" else name
        return cls(address, _watchdog_s(environment, pid))

    @property
    def wanted(self) -> bool:
        """Whether there is a service manager to tell."""
        return self._socket is not None

    @property
    def unsent(self) -> int:
        """Messages that the service manager has not taken yet, at most one of each kind."""
        return len(self._unsent)

    def ready(self, status: str) -> None:
        """The service serves; or it has reloaded."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """The service has begun to stop."""
        self._send("STOPPING=1", _status(status))

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(status))

    def alive(self) -> None:
        """What the watchdog waits for."""
        self._send("WATCHDOG=1")

    def more_time(self, seconds: float) -> None:
        """A start or a stop goes on: not to be given up before `seconds` from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * _US)}")

    def close(self) -> None:
        """Nothing is sent after this."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None or self._address is None:
            return
        kind = lines[0].partition("=")[0]
        self._unsent.pop(kind, None)  # the new one is the last in line
        self._unsent[kind] = "\n".join(lines).encode()
        while self._unsent:
            kind, message = next(iter(self._unsent.items()))
            try:
                self._socket.sendto(message, self._address)
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("the service manager cannot be told %s: %s", lines[0], error)
                self._unsent.clear()
                return
            del self._unsent[kind]


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())


def _watchdog_s(environment: Mapping[str, str], pid: int) -> float:
    """sd_watchdog_enabled(3): the watchdog may be meant for another process."""
    usec, meant = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not usec or (meant and meant != str(pid)):
        return 0.0
    if not usec.isascii() or not usec.isdigit() or int(usec) == 0:
        raise ConfigurationError(
            f"environment variable WATCHDOG_USEC = {usec!r}: allowed is a whole number of microseconds above 0"
        )
    return int(usec) / _US
