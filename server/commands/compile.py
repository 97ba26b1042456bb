"""`neuronx-serve compile`: make the graphs of a Neuron model an artifact, ahead of serving it.

The work is a worker's, in the interpreter that serves the model; here it is started, shown and ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from models.neuron.artifacts import MANIFEST, store_of
from models.protocol import Compile, Compiled, NeuronOptions, Progress, Report
from server.commands import refuse
from server.commands.model import chosen_model
from server.commands.terminal import ProgressLine, duration, size
from server.errors import ConfigurationError
from server.settings import ModelSettings
from server.worker_process import WorkerLost, WorkerProcess

DESCRIPTION = (
    "Compile the graphs of a Neuron model for its slots and buckets, ahead of serving it. Needs free NeuronCores, or "
    "--cpu; graphs that an interrupted run has finished are kept."
)
PHASES = {
    "staging": "reading the model",
    "weights": "loading layers",
    "compile": "compiling graphs",
    "graphs": "loading graphs",
    "warm-up": "trying graphs",
}
_TICK_S = 1.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The model and where its artifact goes."""
    parser.add_argument("model", metavar="MODEL", help="a configured id, or a checkpoint directory")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="directory of artifacts (default: where `serve` looks for them)"
    )
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="compile without a Neuron device; holds all weights and caches in memory (64 GB for an 8B model)",
    )


def run(arguments: argparse.Namespace) -> int:
    """0 when the artifact is there, 1 when the device or the compiler failed, 78 when it cannot work, 130 if ended."""
    model, python = chosen_model(arguments.config, arguments.model, os.environ)
    command = Compile(
        model=model.id,
        directory=model.path,
        options=msgspec.structs.replace(_neuron_options(model), artifacts=""),
        store=str(_store(model, arguments.output)),
        place="host" if arguments.cpu else "device",
    )
    line = ProgressLine(sys.stderr)
    try:
        compiled = asyncio.run(_compile(python, command, line))
    except WorkerLost as lost:
        line.close()
        return refuse(lost, os.EX_CONFIG if lost.kind == "configuration" else 1)
    line.close()
    if compiled is None:
        print("interrupted: what is compiled is kept, the same command goes on from there", file=sys.stderr)
        return 128 + signal.SIGINT
    how = f"{compiled.compiled} of {compiled.graphs} graphs compiled in {duration(compiled.seconds)}"
    print(f"{compiled.directory}: {how if compiled.compiled else 'was there, and is whole'}, {size(compiled.size)}")
    return 0


def _neuron_options(model: ModelSettings) -> NeuronOptions:
    if isinstance(model.device, NeuronOptions):
        return model.device
    kind = model.device.__struct_config__.tag
    raise ConfigurationError(
        f"model {model.id!r} has device.kind = {kind!r}: only models of kind 'neuron' are compiled. "
        "Name the configuration that you serve with: --config FILE"
    )


def _store(model: ModelSettings, output: Path | None) -> Path:
    store = output.expanduser().absolute() if output else store_of(_neuron_options(model))
    if (store / MANIFEST).exists():
        raise ConfigurationError(f"{store} is one artifact, not a directory of artifacts: choose another with --output")
    return store


async def _compile(python: str, command: Compile, line: ProgressLine) -> Compiled | None:
    """Run the worker to its end; None when SIGINT or SIGTERM ended it. WorkerLost when it failed."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[Compiled | None] = loop.create_future()

    def end(result: Compiled | None) -> None:
        if not finished.done():
            finished.set_result(result)

    def received(report: Report) -> None:
        if isinstance(report, Progress):
            line.update(PHASES[report.phase], report.done, report.total)
        elif isinstance(report, Compiled):
            end(report)

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, end, None)
    worker = await WorkerProcess.spawn(python, received)
    worker.send(command)
    ticking = asyncio.create_task(_tick(line))
    either: list[asyncio.Future[Any]] = [finished, worker.lost]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking
        await worker.close()
    if finished.done():
        return finished.result()
    raise worker.lost.result()


async def _tick(line: ProgressLine) -> None:
    while True:
        await asyncio.sleep(_TICK_S)
        line.tick()
