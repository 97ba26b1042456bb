"""`python -m server.bench.processes [DIRECTORY]`: how soon the API process answers, and how soon a worker is gone.

A checkpoint's DIRECTORY is loaded on the CPU backend, in its guaranteed mode; without one the device is simulated.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from models.protocol import CpuOptions, Load, Ready, Report, SimulatedOptions, Stage, Staged
from server.bench import table
from server.bench.device import write_text_files
from server.bench.timeline import percentile
from server.listener import run_on_loop
from server.worker_process import WorkerProcess

VOCAB = 49_152
START_S = 60.0
_CONFIGURATION = """
[server]
host = "127.0.0.1"
port = {port}
[[models]]
id = "simulated"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = {vocab}
"""


class ProcessFigures(msgspec.Struct, frozen=True):
    """Seconds, of `turns` processes each.

    `start`: from the call of `neuronx-serve serve` to an answer of /health, which may be that no model is loaded yet.
    `end`: from the close of a loaded, idle worker's socket to the moment when the process is gone.
    """

    turns: int
    start_s_p50: float
    start_s_max: float
    end_s_p50: float
    end_s_max: float


def measure(model: Path | None, turns: int) -> ProcessFigures:
    """RuntimeError when a process does not come up."""
    with TemporaryDirectory(prefix="neuronx-serve-bench-") as name:
        write_text_files(Path(name), VOCAB)
        starts = [start_s(Path(name)) for _ in range(turns)]
        options = SimulatedOptions(vocab_size=VOCAB) if model is None else CpuOptions()
        stage = Stage(model="model", directory=str(model or name), options=options)
        ends = [run_on_loop(end_s(stage)) for _ in range(turns)]
    return ProcessFigures(turns, percentile(starts, 50), max(starts), percentile(ends, 50), max(ends))


def start_s(directory: Path) -> float:
    """Of one server, which is ended afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    configuration = directory / "configuration.toml"
    configuration.write_text(_CONFIGURATION.format(port=port, directory=directory, vocab=VOCAB), "utf-8")
    began = time.monotonic()
    server = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "serve", "--config", str(configuration)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _answers(port):
            if server.poll() is not None or time.monotonic() > began + START_S:
                raise RuntimeError(f"neuronx-serve serve did not answer (exit code {server.poll()})")
            time.sleep(0.002)
        return time.monotonic() - began
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    try:
        connection.request("GET", "/health")
        connection.getresponse().read()
    except OSError:
        return False
    finally:
        connection.close()
    return True


async def end_s(stage: Stage) -> float:
    """Of one worker that has loaded its model."""
    reports: asyncio.Queue[Report] = asyncio.Queue()
    worker = await WorkerProcess.spawn("", reports.put_nowait)
    try:
        worker.send(stage)
        await _until(Staged, reports, worker)
        worker.send(Load())
        await _until(Ready, reports, worker)
        began = time.monotonic()
        closing = asyncio.create_task(worker.close(START_S))
        await worker.lost  # when it is reaped; close() also waits for its log
        ended = time.monotonic()
        await closing
        return ended - began
    finally:
        await worker.close()


async def _until(kind: type[Report], reports: asyncio.Queue[Report], worker: WorkerProcess) -> None:
    """Take reports up to the first of a kind. RuntimeError when the worker is lost before."""
    while True:
        report = asyncio.create_task(reports.get())
        either: set[asyncio.Future[Any]] = {report, worker.lost}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not report.done():
            report.cancel()
            raise RuntimeError(str(worker.lost.result()))
        if isinstance(report.result(), kind):
            return


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m server.bench.processes", description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", help="a checkpoint's directory, loaded by the worker")
    parser.add_argument("--turns", type=int, default=5, help="processes of each kind; default 5")
    args = parser.parse_args(arguments)
    if args.turns < 1:
        parser.error("--turns must be 1 or more")
    print(table.heading(ProcessFigures))
    print(table.line(measure(args.directory, args.turns)))


if __name__ == "__main__":
    main()
