"""One spawned device worker: frames out, reports in, and the one moment at which it is lost.

What the Neuron runtime wrote last says more about a loss than the way the process ended, so it is looked at first.
Knows no model state and no restart: the supervisor decides what follows a loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import models
from models.neuron.status import diagnose_log
from models.protocol import HEADER_BYTES, Command, Fault, Remedy, Report, decode_report, encode, frame_length
from server.worker_log import WorkerLog

ENTRY = Path(models.__file__).parent / "__main__.py"
LossKind = Literal["configuration", "memory", "device", "internal", "exit", "timeout"]
# The log's last lines come through another pipe than the end itself.
LOG_GRACE_S = 0.1


class WorkerLost(Exception):
    """The worker is gone or must be given up.

    `kind` is its own Fault's kind, or how it ended without one. `remedy` says whether another worker would fare better;
    by default it would, unless the configuration is at fault.
    """

    def __init__(self, kind: LossKind, message: str, remedy: Remedy | None = None) -> None:
        super().__init__(message)
        self.kind: LossKind = kind
        self.remedy: Remedy = remedy or ("configuration" if kind == "configuration" else "restart")


class _Frames(asyncio.Protocol):
    """Cuts the byte stream into reports."""

    def __init__(self, on_report: Callable[[Report], None], on_end: Callable[[], None]) -> None:
        self._on_report = on_report
        self._on_end = on_end
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= HEADER_BYTES:
            end = HEADER_BYTES + frame_length(bytes(buffer[:HEADER_BYTES]))
            if len(buffer) < end:
                return
            body = bytes(buffer[HEADER_BYTES:end])
            del buffer[:end]
            self._on_report(decode_report(body))

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end()


class WorkerProcess:
    """A running worker. `lost` resolves once, with the reason, when it can no longer be used."""

    def __init__(
        self, process: asyncio.subprocess.Process, log: WorkerLog, on_report: Callable[[Report], None]
    ) -> None:
        self._process = process
        self._log = log
        self._on_report = on_report
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self._last_words: asyncio.Task[None] | None = None
        self.lost: asyncio.Future[WorkerLost] = asyncio.get_running_loop().create_future()
        self._reaper = asyncio.create_task(self._reap())

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def spawn(cls, python: str, on_report: Callable[[Report], None]) -> WorkerProcess:
        """Start an interpreter ("" = this one); WorkerLost (configuration) when it cannot be started."""
        ours, theirs = socket.socketpair()
        log, stderr = await WorkerLog.open()
        try:
            process = await asyncio.create_subprocess_exec(
                python or sys.executable,
                str(ENTRY),
                str(theirs.fileno()),
                str(os.getpid()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stderr=stderr,
            )
        except OSError as error:
            ours.close()
            log.close()
            raise WorkerLost("configuration", f"worker.python = {python!r} cannot be started: {error}") from error
        finally:
            theirs.close()
            os.close(stderr)
        worker = cls(process, log, on_report)
        await worker._connect(ours)
        return worker

    async def _connect(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(lambda: _Frames(self._received, self._ended), sock=stream)
        self._transport = transport

    def send(self, command: Command) -> None:
        """Queue one command; a lost worker takes it silently, since `lost` already tells."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(command))

    def give_up(self, kind: LossKind, message: str) -> None:
        """Kill it and report it as lost for this reason."""
        self._lose(WorkerLost(kind, message))
        self._kill()

    async def close(self, grace_s: float = 5.0) -> None:
        """End it in order: close the socket, wait `grace_s`, SIGKILL; returns when it is reaped."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()
        try:
            await asyncio.wait_for(asyncio.shield(self._reaper), grace_s)
        except asyncio.TimeoutError:  # not the builtin TimeoutError before Python 3.11
            self._kill()
            await self._reaper
        await self._log.settle(LOG_GRACE_S)
        self._log.close()
        if self._last_words is not None:
            await self._last_words

    def _received(self, report: Report) -> None:
        if isinstance(report, Fault):
            self._lose_after_log(WorkerLost(report.kind, report.message, report.remedy))
        elif not self.lost.done():
            self._on_report(report)

    def _ended(self) -> None:
        # The socket ends at once when the process dies; the exit code comes a moment later.
        if not self._closing:
            self._lose_after_log(None)

    async def _reap(self) -> None:
        await self._process.wait()
        # A process the worker started may hold the socket open: its exit alone ends it for us.
        if self._closing:
            self._lose(self._ending())
        else:
            self._lose_after_log(None)
        if self._transport is not None:
            self._transport.close()

    def _lose_after_log(self, fault: WorkerLost | None) -> None:
        if self._last_words is None and not self.lost.done():
            self._last_words = asyncio.create_task(self._explain(fault))

    async def _explain(self, fault: WorkerLost | None) -> None:
        """Lose the worker for its fault, or for the way it ended; the log may know of a graver one."""
        await self._log.settle(LOG_GRACE_S)
        if fault is None:
            await asyncio.wait([self._reaper], timeout=LOG_GRACE_S)
        reason = fault or self._ending()
        diagnosis = diagnose_log(self._log.tail) if reason.kind in ("exit", "device") else None
        if diagnosis is not None and diagnosis.advice not in str(reason):
            remedy = diagnosis.remedy if diagnosis.remedy in ("reboot", "replace") else reason.remedy
            reason = WorkerLost(reason.kind, f"{reason} (its log: {diagnosis.advice})", remedy)
        self._lose(reason)
        if fault is None:  # a worker that reported one gives the device back in order
            self._kill()

    def _ending(self) -> WorkerLost:
        code = self._process.returncode
        if code is None:
            how = "closed its connection"
        elif code < 0:
            how = f"was ended by signal {-code} ({signal.strsignal(-code)})"
        else:
            how = f"exited with code {code}"
        return WorkerLost("exit", f"the device worker {how}")

    def _lose(self, reason: WorkerLost) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    def _kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
