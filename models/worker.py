"""The device worker: one process, one model. Stages, loads, then runs steps until its socket closes.

It ignores SIGINT and SIGTERM (its parent decides when it ends) and dies with its parent, so a killed API process
never leaves the device held. Whatever goes wrong leaves as one typed Fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time
import traceback
from pathlib import Path
from typing import Literal

import msgspec

from models.backend import Backend, BackendError, ConfigurationError, DeviceError, OutOfMemoryError
from models.link import Link
from models.matcher import Vocabulary
from models.protocol import Compile, CpuOptions, Decode, Fault, Feed, Load, NeuronOptions, Ready, Stage, Staged
from models.steps import Steps

PR_SET_PDEATHSIG = 1


def create_backend(stage: Stage) -> Backend:
    """The backend that the options ask for; each imports its own packages only when it stages."""
    directory = Path(stage.directory)
    if isinstance(stage.options, CpuOptions):
        from models.cpu.backend import CpuBackend

        return CpuBackend(directory, stage.options)
    if isinstance(stage.options, NeuronOptions):
        from models.neuron.tnx import NeuronBackend

        return NeuronBackend(directory, stage.options)
    from models.simulated import SimulatedBackend

    return SimulatedBackend(directory, stage.options)


def main(fd: int, parent: int) -> int:
    """Serve the socket `fd` until it closes; the exit code is 0 then, 1 after a fault."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link = Link(socket.socket(fileno=fd))
    try:
        serve(link)
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except Exception as error:
        if not isinstance(error, BackendError):
            traceback.print_exc()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # nobody is left to be told
            link.send(_fault(error))
        return 1
    return 0


def serve(link: Link) -> None:
    """Stage, Load, then steps in the order they come, until the API process closes its end; or one Compile."""
    stage = link.receive()
    if stage is None:
        return
    if isinstance(stage, Compile):
        _compile(link, stage)
        return
    if not isinstance(stage, Stage):
        raise ConfigurationError(f"the first command must be Stage or Compile, not {type(stage).__name__}")
    backend = create_backend(stage)
    vocabulary = Vocabulary(Path(stage.directory))
    try:
        backend.stage(link.progress)
        vocabulary.begin()
        link.send(Staged())
        if isinstance(link.receive(), Load):
            link.send(Ready(backend.load(link.progress)))
            _run_steps(link, Steps(backend, vocabulary))
    finally:
        backend.close()


def _compile(link: Link, command: Compile) -> None:
    from models.neuron.compile import compile_model, end_with

    end_with(link.receive)  # nothing more is sent: it returns when the socket closes
    link.send(compile_model(command, link.progress))


def _run_steps(link: Link, steps: Steps) -> None:
    ended = time.perf_counter()
    while (command := link.receive()) is not None:
        if not isinstance(command, Feed | Decode):
            raise ConfigurationError(f"a loaded worker takes Feed and Decode, not {type(command).__name__}")
        began = time.perf_counter()
        stepped = msgspec.structs.replace(steps.run(command), idle_s=began - ended)
        ended = time.perf_counter()
        link.post(stepped)


def _fault(error: Exception) -> Fault:
    remedy = error.remedy if isinstance(error, BackendError) else "restart"
    return Fault(kind=_kind(error), message=str(error) or type(error).__name__, remedy=remedy)


def _kind(error: Exception) -> Literal["configuration", "memory", "device", "internal"]:
    if isinstance(error, ConfigurationError):
        return "configuration"
    if isinstance(error, OutOfMemoryError | MemoryError):
        return "memory"
    return "device" if isinstance(error, DeviceError) else "internal"


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies; leave at once if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(f"the parent process {parent} is gone")
