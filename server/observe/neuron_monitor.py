"""Runs AWS's neuron-monitor beside the server, where it is installed, and shows what it reports.

It is a matter of observation alone: it may be absent, print nonsense, hang or die, and the server goes on. It ends with
the server, whichever way that ends. Knows no figure of a report.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn

from server.observe.neuron_report import read_report
from server.observe.neuron_series import NeuronSeries

log = logging.getLogger(__name__)
NAME = "neuron-monitor"
INSTALLED = "/opt/aws/neuron/bin"  # where the package aws-neuronx-tools puts it, on nobody's PATH by default
_LONGEST_LINE = 16 * 1024 * 1024  # a report names every loaded graph
_EXIT_S = 0.5
# Runs a program that the kernel kills when this process dies; the wish outlives exec. Not preexec_fn, which runs Python
# in a fork of a process with threads.
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    try:
        os.execv(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"{sys.argv[2]} cannot be executed: {error}")
"""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: how long a report may be missing (they come every 5 s), and how long to wait before a new start, at
    first and at most."""

    patience_s: float = 30.0
    first_s: float = 1.0
    most_s: float = 300.0


def installed() -> str | None:
    """The program's path; None where it is not installed."""
    return shutil.which(NAME) or shutil.which(NAME, path=INSTALLED)


@asynccontextmanager
async def followed(series: NeuronSeries, program: str | None, pace: Pace = Pace()) -> AsyncIterator[None]:
    """Show `program`'s reports in `series` until the block ends; nothing happens when it is None."""
    if program is None:
        yield
        return
    following = asyncio.create_task(_follow(program, series, pace))
    try:
        yield
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def _follow(program: str, series: NeuronSeries, pace: Pace) -> NoReturn:
    """Start it again whenever it ends, later each time while it reports nothing."""
    wait_s = pace.first_s
    while True:
        run = _Run(program, series, pace.patience_s)
        ending = await run.to_its_end()
        series.missing()
        if run.reports:
            wait_s = pace.first_s
        log.warning("%s %s; it is started again in %g s", program, ending, wait_s)
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, pace.most_s)


class _Run:
    """One process of the program. `reports`: how many it has made."""

    def __init__(self, program: str, series: NeuronSeries, patience_s: float) -> None:
        self._program = program
        self._series = series
        self._patience_s = patience_s
        self._said: tuple[str, ...] = ()
        self.reports = 0

    async def to_its_end(self) -> str:
        """How it ended, as the rest of a sentence; it is gone when this returns or is cancelled."""
        reader = asyncio.StreamReader(limit=_LONGEST_LINE)
        # A pipe of its own: from Python 3.11 on asyncio does not call a process ended while one of its children holds
        # a pipe that asyncio made.
        ours, theirs = os.pipe()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", buffering=0)
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _WITH_PARENT, str(os.getpid()), self._program),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                start_new_session=True,  # so that what it starts ends with it
            )
        except OSError as error:
            transport.close()
            return f"cannot be started: {error}"
        finally:
            os.close(theirs)
        try:
            if not await self._show(reader):
                return f"has reported nothing for {self._patience_s:g} s"
            return await _ending(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            transport.close()
            await process.wait()

    async def _show(self, reader: asyncio.StreamReader) -> bool:
        """Show report after report; True at the end of the output, False when it has been silent for too long."""
        while True:
            reading = asyncio.ensure_future(reader.readline())
            try:
                await asyncio.wait([reading], timeout=self._patience_s)
            finally:
                reading.cancel()
            if not reading.done():
                return False
            try:
                line = reading.result()
                if not line:
                    return True
                self._take(line)
            except ValueError as error:  # a line beyond the reader's limit included
                log.warning("%s: a line that is no report is left out: %s", self._program, error)

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        report = read_report(line)
        self._series.show(report)
        self.reports += 1
        if self.reports == 1:
            log.info("%s reports", self._program)
        if (said := tuple(report.errors())) != self._said:
            self._said = said
            if said:
                log.warning("%s could not tell everything: %s", self._program, "; ".join(said))


async def _ending(process: asyncio.subprocess.Process) -> str:
    exited = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait([exited], timeout=_EXIT_S)
    finally:
        exited.cancel()
    code = process.returncode
    if code is None:
        return "closed its output"
    return f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"
