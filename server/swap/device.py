"""The device and the model that holds it: staging a newcomer beside it, draining, handing over, coming back.

One exchange at a time; which and when is the policy's decision. States are written through the registry's callback.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from models.protocol import Progress
from server.errors import GenerationError, Unavailable
from server.observe.metrics import Metrics
from server.settings import Settings
from server.supervisor import Supervisor
from server.swap.model import Model, State
from server.worker_process import WorkerLost

log = logging.getLogger(__name__)

SetState = Callable[[Model, State, "str | None"], None]
DRAIN_POLL_S = 0.02


async def _readable(model: Model) -> None:
    """Read the tokenizer while the worker stages: a model that cannot be spoken to is not worth loading."""
    try:
        await model.text()
    except Unavailable as error:
        raise WorkerLost("configuration", error.text) from error


class Device:
    """Who holds the device. `holder` is None before the first load, after an unload, and when nothing can be loaded."""

    def __init__(self, settings: Settings, metrics: Metrics, set_state: SetState) -> None:
        self._settings = settings
        self._metrics = metrics
        self._set_state = set_state
        self.holder: Model | None = None
        self.holder_since = 0.0
        self.exchanging = False
        self._supervisor: Supervisor | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._newcomer: tuple[Model, Supervisor] | None = None
        self._aborted: Model | None = None

    async def give_to(self, target: Model) -> None:
        """Exchange the holder for `target`; when that cannot be loaded, the holder comes back."""
        self.exchanging = self.holder is not None and self.holder.state == "available"
        previous = self.holder
        try:
            if await self._bring(target) or previous is None or self.holder is previous:
                return
            log.warning("bringing %s back", previous.id)
            await self._bring(previous)
        finally:
            self.exchanging = False

    def abort(self, model: Model) -> bool:
        """Cancel the staging or loading of `model`; False when it is doing neither."""
        if self._newcomer is None or self._newcomer[0] is not model:
            return False
        self._aborted = model
        self._newcomer[1].abort("cancelled by unload")
        return True

    async def release(self, *, drain: bool) -> None:
        """Take the model off the device and reap its worker; nothing happens when nobody holds it."""
        holder, supervisor = self.holder, self._supervisor
        if holder is None or supervisor is None:
            return
        await self._cancel_keeper()
        self._set_state(holder, "draining", None)
        holder.engine.stop_admitting()
        if drain:
            await self._drain(holder)
        await supervisor.stop()
        self.holder = self._supervisor = None
        self._set_state(holder, "unloaded", None)

    async def close(self) -> None:
        """End every worker, whatever it is doing."""
        await self._cancel_keeper()
        for supervisor in (self._newcomer and self._newcomer[1], self._supervisor):
            if supervisor is not None:
                await supervisor.stop()
        self._supervisor = self._newcomer = self.holder = None

    async def _bring(self, model: Model) -> bool:
        """Stage beside the holder, release the device, load. False, with `model` failed or unloaded, when it cannot."""
        supervisor = self._supervise(model)
        self._newcomer = (model, supervisor)
        self._aborted = None
        began = time.monotonic()
        try:
            self._set_state(model, "staging", None)
            await asyncio.gather(supervisor.stage(), _readable(model))
            await self.release(drain=True)
            self._set_state(model, "loading", None)
            await self._load(model, supervisor)
        except WorkerLost as lost:
            await supervisor.stop()
            self._failed(model, lost)
            return False
        finally:
            self._newcomer = None
        self.holder, self._supervisor, self.holder_since = model, supervisor, time.monotonic()
        self._set_state(model, "available", None)
        self._metrics.model_exchanged(model.id, self.holder_since - began)
        self._metrics.slots(model.settings.device.slots)
        self._keeper = asyncio.create_task(self._keep(model, supervisor))
        return True

    async def _load(self, model: Model, supervisor: Supervisor) -> None:
        began = time.monotonic()
        model.description = await supervisor.load()
        log.info("%s is available after %.1f s (worker %s)", model.id, time.monotonic() - began, supervisor.pid)

    async def _keep(self, model: Model, supervisor: Supervisor) -> None:
        """Replace the holder's worker each time it is lost, until the restart budget is spent."""
        while True:
            lost = await supervisor.watch()
            while True:
                log.error("the device worker of %s is lost: %s", model.id, lost)
                self._set_state(model, "loading", str(lost))
                await supervisor.stop()
                if not supervisor.may_restart(lost):
                    self.holder = self._supervisor = None
                    self._set_state(model, "failed", str(lost))
                    model.engine.fail_all(lambda reason=str(lost): GenerationError(reason))  # type: ignore[misc]
                    return
                try:
                    await supervisor.stage()
                    await self._load(model, supervisor)
                    break
                except WorkerLost as again:
                    lost = again
            self._set_state(model, "available", None)

    async def _drain(self, model: Model) -> None:
        """Let running sequences finish for `swap.drain` seconds; the rest is parked by the detach that follows."""
        deadline = time.monotonic() + self._settings.swap.drain
        while model.engine.running and time.monotonic() < deadline:
            if self._supervisor is not None and self._supervisor.lost:
                return
            await asyncio.sleep(DRAIN_POLL_S)

    def _failed(self, model: Model, lost: WorkerLost) -> None:
        if self._aborted is model:
            self._set_state(model, "unloaded", None)
        else:
            log.error("%s cannot be loaded: %s", model.id, lost)
            self._set_state(model, "failed", str(lost))
        reason = f"model {model.id!r} could not be loaded: {lost}"
        model.engine.fail_all(lambda: Unavailable(reason))

    async def _cancel_keeper(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

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
