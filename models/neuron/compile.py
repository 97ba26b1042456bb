"""The worker's half of `neuronx-serve compile`: from a checkpoint to an artifact in the store.

Knows neither the terminal nor what an artifact looks like.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Literal

from models.backend import ConfigurationError, ProgressCallback
from models.neuron import faults, tnx
from models.neuron.artifacts import ArtifactError, read_manifest
from models.neuron.graphs import GraphRequest, graphs_into_store
from models.protocol import Compile, Compiled

PR_SET_PDEATHSIG = 1


def compile_model(command: Compile, progress: ProgressCallback) -> Compiled:
    """Compile every graph of the command's model, or find that it is done.

    BackendError when it cannot be done: what was compiled until then is kept for the next attempt.
    """
    started = perf_counter()
    backend = CompilingBackend(Path(command.directory), command.options)
    backend.stage(progress)
    directory, compiled = backend.compile(command.model, Path(command.store), command.place, progress)
    manifest = read_manifest(directory)
    return Compiled(
        directory=str(directory),
        graphs=len(manifest.files),
        compiled=compiled,
        size=manifest.size,
        seconds=perf_counter() - started,
    )


class CompilingBackend(tnx.NeuronBackend):
    """A Neuron backend that makes graphs instead of running steps."""

    def _check_graphs(self, request: GraphRequest) -> None:
        """None need be there: they are made here."""

    def compile(
        self, model: str, store: Path, place: Literal["device", "host"], progress: ProgressCallback
    ) -> tuple[Path, int]:
        """(artifact, number of graphs that were compiled now). On the device every graph is run once as well."""
        if self._request is None:
            raise ConfigurationError("compile before stage: there is no model yet")
        request = replace(self._request, model=model, store=store)
        try:
            return request.artifact(), 0
        except ArtifactError:
            pass
        with graphs_into_store(self._model, request, progress) as outcome:
            try:
                with tnx.reporting(self._model, progress):
                    self._model.cpu_compile() if place == "host" else self._model.to_neuron()
            except Exception as error:
                raise faults.load_error(error) from error
            if place == "device":
                self._warm_up(progress)
        return outcome.artifact, outcome.compiled


def end_with(wait_for_end: Callable[[], object]) -> None:
    """End this process and the compilers that it started once `wait_for_end` returns: when the parent is gone.

    The kernel's own signal on the parent's death (models/worker.py) would end this process alone, and leave compilers
    behind that take the machine's memory for an hour.
    """
    os.setpgid(0, 0)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, 0)

    def watch() -> None:
        wait_for_end()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
