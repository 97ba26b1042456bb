"""The device and the models on it: staging a newcomer beside them, draining who leaves, handing over, keeping alive.

One change at a time; which and when is the registry's decision. States are written through the registry's callback.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.protocol import Progress, Remedy
from server.errors import GenerationError, Unavailable
from server.observe.metrics import Metrics
from server.settings import Settings
from server.supervisor import Supervisor
from server.swap.model import Model, State
from server.worker_process import WorkerLost

log = logging.getLogger(__name__)

DRAIN_POLL_S = 0.02
CANCEL_AGAIN_S = 0.5
INTERNAL_ERROR = "internal error: see the server's log"


class SetState(Protocol):
    """Writes a model's state, with the reason of a failure and what may help against it."""

    def __call__(self, model: Model, state: State, error: str | None, remedy: Remedy = "restart") -> None: ...


@dataclass(slots=True, eq=False)
class Settled:
    """A model on the device: its worker's supervisor, since when, how long its load took, and the task that replaces a
    lost worker."""

    model: Model
    supervisor: Supervisor
    since: float
    load_s: float
    keeper: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class Newcomer:
    """A model on its way to the device. `aborted`: somebody decided against it."""

    model: Model
    supervisor: Supervisor
    aborted: bool = field(default=False)


class Device:
    """Who is on the device. Empty before the first load, after an unload, and when nothing can be loaded."""

    def __init__(self, settings: Settings, metrics: Metrics, set_state: SetState) -> None:
        self._settings = settings
        self._metrics = metrics
        self._set_state = set_state
        self._residents: list[Settled] = []
        self._newcomer: Newcomer | None = None

    def reconfigure(self, settings: Settings) -> None:
        """Other times of an exchange from now on, and other deadlines for the workers to come."""
        self._settings = settings

    @property
    def residents(self) -> tuple[Settled, ...]:
        """In the order of their arrival."""
        return tuple(self._residents)

    @property
    def newcomer(self) -> Model | None:
        """The model that is on its way."""
        return self._newcomer.model if self._newcomer else None

    @property
    def empty(self) -> bool:
        """No model is there, and none on its way."""
        return not self._residents and self._newcomer is None

    def holds(self, model: Model) -> bool:
        return any(resident.model is model for resident in self._residents)

    async def bring(self, model: Model, leaving: Sequence[Model]) -> bool:
        """Stage `model` beside the residents, let those in `leaving` go, load it.

        False, with `model` failed or (aborted) unloaded, when it does not come. Whoever had not yet gone then stays.
        """
        newcomer = self._newcomer = Newcomer(model, self._supervise(model))
        began = time.monotonic()
        try:
            load_s = await self._stage_and_load(newcomer, leaving)
        except WorkerLost as lost:
            await self._refuse(newcomer, lost)
            return False
        except Exception:
            log.exception("bringing %s to the device failed", model.id)
            await self._refuse(newcomer, WorkerLost("internal", INTERNAL_ERROR))
            return False
        # A cancelled change leaves its newcomer for close() to end.
        self._newcomer = None
        self._settle(Settled(model, newcomer.supervisor, time.monotonic(), load_s))
        self._metrics.model_exchanged(model.id, time.monotonic() - began)
        return True

    def abort(self, model: Model) -> bool:
        """Cancel the staging or loading of `model`; False when it is doing neither."""
        newcomer = self._newcomer
        if newcomer is None or newcomer.model is not model:
            return False
        if not newcomer.aborted:
            log.info("%s is not wanted any more", model.id)
            newcomer.aborted = True
            newcomer.supervisor.abort("cancelled")
        return True

    async def release(self, model: Model) -> None:
        """Drain `model` and reap its worker; nothing happens when it is not on the device."""
        await self._vacate(model, None)

    async def close(self) -> None:
        """End every worker, whatever it is doing. No change may be under way."""
        supervisors = [resident.supervisor for resident in self._residents]
        if self._newcomer is not None:
            supervisors.append(self._newcomer.supervisor)
        await asyncio.gather(*(end_task(resident.keeper) for resident in self._residents))
        await asyncio.gather(*(supervisor.stop() for supervisor in supervisors))
        self._residents.clear()
        self._newcomer = None

    # --- coming

    async def _stage_and_load(self, newcomer: Newcomer, leaving: Sequence[Model]) -> float:
        model, supervisor = newcomer.model, newcomer.supervisor
        self._set_state(model, "staging", None)
        await _staged_and_readable(supervisor, model)
        for each in leaving:
            await self._vacate(each, supervisor)
        if not supervisor.lost:
            self._set_state(model, "loading", None)
        return await self._load(model, supervisor)

    async def _load(self, model: Model, supervisor: Supervisor) -> float:
        """The seconds it took."""
        began = time.monotonic()
        model.description = await supervisor.load()
        took = time.monotonic() - began
        for step in model.decode_steps():
            self._metrics.decode_step(model.id, step.bucket, step.measured_s, step.floor_s)
        log.info("%s is available after %.1f s (worker %s)", model.id, took, supervisor.pid)
        return took

    async def _refuse(self, newcomer: Newcomer, lost: WorkerLost) -> None:
        """The newcomer does not come. Requests for a model that fails are answered; an aborted one may come later."""
        model = newcomer.model
        await newcomer.supervisor.stop()
        self._newcomer = None
        if newcomer.aborted:
            self._set_state(model, "unloaded", None)
            return
        log.error("%s cannot be loaded: %s", model.id, lost)
        self._set_state(model, "failed", str(lost), lost.remedy)
        model.engine.fail_all(lambda: Unavailable(f"model {model.id!r} could not be loaded: {lost}"))

    # --- staying

    def _settle(self, resident: Settled) -> None:
        """`resident` has a loaded worker: it serves, and its worker is kept alive."""
        if resident not in self._residents:
            self._residents.append(resident)
        self._set_state(resident.model, "available", None)
        self._metrics.slots(sum(each.model.settings.device.slots for each in self._residents))
        resident.keeper = asyncio.create_task(self._keep(resident))

    async def _keep(self, resident: Settled) -> None:
        """Replace the worker of `resident` each time it is lost, until that is hopeless."""
        try:
            last = await self._replace_while_allowed(resident)
        except Exception:
            log.exception("keeping %s on the device failed", resident.model.id)
            last = WorkerLost("internal", INTERNAL_ERROR)
        try:
            await resident.supervisor.stop()
        finally:
            self._residents.remove(resident)
            self._set_state(resident.model, "failed", str(last), last.remedy)
            resident.model.engine.fail_all(lambda: GenerationError(str(last)))

    async def _replace_while_allowed(self, resident: Settled) -> WorkerLost:
        """How the last worker was lost, the one that got no replacement."""
        model, supervisor = resident.model, resident.supervisor
        lost = await supervisor.watch()
        while True:
            log.error("the device worker of %s is lost: %s", model.id, lost)
            self._set_state(model, "loading", str(lost))
            await supervisor.stop()
            if not supervisor.may_restart(lost):
                return lost
            try:
                await supervisor.stage()
                await self._load(model, supervisor)
                self._set_state(model, "available", None)
                lost = await supervisor.watch()
            except WorkerLost as again:
                lost = again

    # --- leaving

    async def _vacate(self, model: Model, newcomer: Supervisor | None) -> None:
        """Drain `model`, park what still runs, reap its worker. It stays when the newcomer is lost before that."""
        resident = next((each for each in self._residents if each.model is model), None)
        if resident is None or (newcomer is not None and newcomer.lost):
            return
        await end_task(resident.keeper)
        if resident not in self._residents:
            await resident.supervisor.stop()  # its keeper was giving it up
            return
        served = model.state == "available"
        self._set_state(model, "draining", None)
        model.engine.stop_admitting()
        await self._drain(resident, newcomer)
        if served and newcomer is not None and newcomer.lost:
            model.engine.admit_again()
            self._settle(resident)
            return
        await resident.supervisor.stop()
        self._residents.remove(resident)
        self._set_state(model, "unloaded", None)

    async def _drain(self, resident: Settled, newcomer: Supervisor | None) -> None:
        """Wait while sequences run, `swap.drain` seconds at most, and no longer than both workers live and get on."""
        if resident.supervisor.lost:
            return
        deadline = time.monotonic() + self._settings.swap.drain
        watching = asyncio.create_task(resident.supervisor.watch())
        try:
            while resident.model.engine.running and time.monotonic() < deadline:
                if watching.done() or (newcomer is not None and newcomer.lost):
                    return
                await asyncio.sleep(DRAIN_POLL_S)
        finally:
            await end_task(watching)

    def _supervise(self, model: Model) -> Supervisor:
        def on_progress(progress: Progress) -> None:
            model.note(progress)
            self._set_state(model, model.state, model.error)

        return Supervisor(
            model=model.id,
            directory=str(model.directory),
            options=model.settings.device,
            python=model.settings.python,
            settings=self._settings.worker,
            engine=model.engine,
            metrics=self._metrics,
            on_progress=on_progress,
        )


async def _staged_and_readable(supervisor: Supervisor, model: Model) -> None:
    """Stage, and read the tokenizer meanwhile: a model that cannot be spoken to is not worth loading."""
    staging = asyncio.create_task(supervisor.stage())
    try:
        await model.text()
        await staging
    except Unavailable as error:
        raise WorkerLost("configuration", error.text) from error
    finally:
        await end_task(staging)


async def end_task(task: asyncio.Task[Any] | None) -> None:
    """Cancel `task` and wait for its end. What it raised is known to whoever awaited it, or was logged by itself.

    More than once, if need be: up to Python 3.11 asyncio.wait_for swallows a cancel that meets its result.
    """
    if task is None:
        return
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)
    if not task.cancelled():
        task.exception()
