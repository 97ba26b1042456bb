"""A worker's stderr: passed on as it comes, with its end kept for the moment at which the worker is lost.

The Neuron runtime writes what hangs or broke to its log, and may then abort the process: these lines are all there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

_KEPT_BYTES = 16 * 1024
_STDERR = 2


class WorkerLog(asyncio.Protocol):
    """Copies a pipe to this process's own stderr until its last writer has closed it.

    A pipe of its own, since asyncio does not call a process ended while anybody holds one of the pipes it made.
    """

    def __init__(self) -> None:
        self._kept = b""
        self._ended = asyncio.Event()
        self._transport: asyncio.BaseTransport | None = None

    @classmethod
    async def open(cls) -> tuple[WorkerLog, int]:
        """(the log, the file descriptor to write to); the caller closes the latter."""
        ours, theirs = os.pipe()
        _, log = await asyncio.get_running_loop().connect_read_pipe(cls, os.fdopen(ours, "rb", buffering=0))
        return log, theirs

    @property
    def tail(self) -> str:
        """The last 16 KiB."""
        return self._kept.decode("utf-8", "replace")

    async def settle(self, seconds: float) -> None:
        """Wait for its end, at most `seconds`: a process that the worker started may hold it open."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)

    def close(self) -> None:
        """Stop copying."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-_KEPT_BYTES:]
        with contextlib.suppress(OSError):  # nobody reads ours: the worker must not stall on its own for that
            os.write(_STDERR, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()
