"""Keeps one model on its device: spawn, stage, load, watch, replace.

A worker that dies, hangs or reports a fault is replaced within the restart budget, and its engine replays what was
running. Knows nothing of other models: when a model may have the device is the registry's decision.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from models.protocol import Description, DeviceOptions, Load, Progress, Ready, Report, Stage, Staged, Stepped
from server.deadlines import StepWatch, step_deadline, step_name
from server.engine.loop import Engine
from server.engine.scheduler import Plan
from server.observe.metrics import Metrics
from server.settings import WorkerSettings
from server.worker_process import WorkerLost, WorkerProcess

_T = TypeVar("_T")
WATCH_INTERVAL_S = 0.25


class RestartBudget:
    """At most `restarts` replacements within any `window` seconds. Pure: the clock is given."""

    def __init__(self, restarts: int, window: float) -> None:
        self._restarts = restarts
        self._window = window
        self._spent: deque[float] = deque()

    def spend(self, now: float) -> bool:
        """Take one replacement at time `now`; False when none is left."""
        while self._spent and now - self._spent[0] >= self._window:
            self._spent.popleft()
        if len(self._spent) >= self._restarts:
            return False
        self._spent.append(now)
        return True


class Supervisor:
    """The worker of one model, from its spawn to its reaping, with its replacements in between."""

    def __init__(
        self,
        *,
        model: str,
        directory: str,
        options: DeviceOptions,
        python: str,
        settings: WorkerSettings,
        engine: Engine,
        metrics: Metrics,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._stage = Stage(model=model, directory=directory, options=options)
        self._python = python or settings.python
        self._settings = settings
        self._engine = engine
        self._metrics = metrics
        self._on_progress = on_progress
        self._budget = RestartBudget(settings.restarts, settings.restart_window)
        self._spawning: asyncio.Task[WorkerProcess] | None = None
        self._worker: WorkerProcess | None = None
        self._aborted: str | None = None
        self._staged: asyncio.Future[None] | None = None
        self._ready: asyncio.Future[Description] | None = None
        self.description: Description | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the worker, for the operator."""
        return self._worker.pid if self._worker else None

    @property
    def lost(self) -> bool:
        """Whether there is no worker that can still run a step."""
        return self._worker is None or self._worker.lost.done()

    def abort(self, reason: str) -> None:
        """Kill the worker that is staging or loading; `stage` or `load` raises WorkerLost."""
        self._aborted = reason
        if self._worker is not None:
            self._worker.give_up("exit", reason)

    async def stage(self) -> None:
        """Spawn a worker and let it do the host's share of loading; WorkerLost when it cannot."""
        loop = asyncio.get_running_loop()
        self._staged, self._ready = loop.create_future(), loop.create_future()
        # Shielded: whoever is cancelled here leaves a process that `stop` must know of.
        self._spawning = asyncio.create_task(WorkerProcess.spawn(self._python, self._received))
        self._worker = await asyncio.shield(self._spawning)
        if self._aborted is not None:
            self._worker.give_up("exit", self._aborted)
        self._worker.send(self._stage)
        await self._expect(self._staged, self._settings.stage_timeout, "worker.stage_timeout")

    async def load(self) -> Description:
        """The device is free: load and attach the engine; WorkerLost when it cannot."""
        assert self._worker is not None, "load() follows stage()"
        assert self._ready is not None
        self._worker.send(Load())
        self.description = await self._expect(self._ready, self._settings.load_timeout, "worker.load_timeout")
        self._engine.attach(self._worker, self.description)
        return self.description

    async def watch(self) -> WorkerLost:
        """Wait until the attached worker is lost, killing it when a step takes too long; the engine is detached."""
        assert self._worker is not None, "watch() follows load()"
        worker, watch = self._worker, StepWatch(most=2 * WATCH_INTERVAL_S)
        while not worker.lost.done():
            await asyncio.wait([worker.lost], timeout=WATCH_INTERVAL_S)
            plan = self._engine.in_flight
            age = watch.look(plan.step if plan else None, time.monotonic())
            if plan is not None and age > (limit := self._deadline(plan)):
                worker.give_up("timeout", f"a {step_name(plan)} took longer than its deadline of {limit:g} s")
        self._engine.detach()
        return worker.lost.result()

    def may_restart(self, lost: WorkerLost) -> bool:
        """Whether a lost worker is worth and allowed a replacement; takes it from the budget."""
        if lost.remedy != "restart" or not self._budget.spend(time.monotonic()):
            return False
        self._metrics.worker_restarted()
        return True

    async def stop(self) -> None:
        """End the worker and reap it: the device is free when this returns. The engine keeps its sequences."""
        self._engine.detach()
        if self._spawning is not None:
            await asyncio.wait([self._spawning])
            if self._spawning.exception() is None:
                await self._spawning.result().close()
        self._spawning = self._worker = None

    def _deadline(self, plan: Plan) -> float:
        assert self.description is not None
        return step_deadline(plan, self.description, self._stage.options, self._settings)

    async def _expect(self, wanted: asyncio.Future[_T], timeout: float, key: str) -> _T:
        assert self._worker is not None
        worker = self._worker
        either: list[asyncio.Future[Any]] = [wanted, worker.lost]
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if worker.lost.done():
            raise worker.lost.result()
        if not wanted.done():
            worker.give_up("timeout", f"no answer within {key} = {timeout:g} s")
            raise worker.lost.result()
        return wanted.result()

    def _received(self, report: Report) -> None:
        if isinstance(report, Stepped):
            self._engine.stepped(report)
        elif isinstance(report, Progress):
            self._on_progress(report)
        elif isinstance(report, Staged) and self._staged is not None and not self._staged.done():
            self._staged.set_result(None)
        elif isinstance(report, Ready) and self._ready is not None and not self._ready.done():
            self._ready.set_result(report.description)
