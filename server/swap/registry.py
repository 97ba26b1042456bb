"""The models of this server: the facade the API talks to, and the one writer of model states.

One task, woken by every event, asks the policy which model gets the device next and lets the Device hand it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

from server.admission import Admission
from server.core import Request, Timings
from server.engine.generation import Generation
from server.errors import IncompleteGeneration, Unavailable
from server.observe.metrics import Metrics
from server.settings import Settings
from server.swap.device import Device
from server.swap.model import Model, ModelEntry, State
from server.swap.policy import Candidate, Holder, next_model

log = logging.getLogger(__name__)
TICK_S = 1.0
RETRY_FAILED_S = 60.0
STOP_POLL_S = 0.05


class Registry:
    """All configured models; the first is the default one."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._wake = asyncio.Event()
        self.models = tuple(Model(model, settings, metrics, self._wake.set) for model in settings.models)
        self._by_id = {model.id: model for model in self.models}
        self._admission = Admission(settings.limits.max_concurrent_requests)
        self._device = Device(settings, metrics, self._set_state)
        self._active = self.default
        self._asked: list[Model] = [self.default]
        self._subscribers: set[asyncio.Queue[ModelEntry | None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.stopping = False

    # --- what there is

    @property
    def default(self) -> Model:
        return self.models[0]

    @property
    def active(self) -> Model:
        """Where bare requests go: the model on the device, during an exchange the incoming one."""
        return self._active

    @property
    def queued(self) -> int:
        """Sequences without a slot, over all models."""
        return sum(model.engine.waiting + model.engine.parked for model in self.models)

    @property
    def running(self) -> int:
        """Sequences in a slot, over all models."""
        return sum(model.engine.running for model in self.models)

    @property
    def batch_tokens(self) -> tuple[int, int]:
        """Tokens that the running sequences may come to hold, and what all slots on the device hold together."""
        held = sum(model.engine.tokens_held for model in self.models)
        on_device = [model.description for model in self.models if model.state == "available" and model.description]
        return held, sum(each.slots * each.n_positions for each in on_device)

    def find(self, name: str) -> Model | None:
        """The model of exactly this id."""
        return self._by_id.get(name)

    def route(self, path: str) -> tuple[Model, str] | None:
        """Split "<id>/<rest>" (or "<id>") at the longest configured id; ids contain slashes themselves."""
        fitting = [model for model in self.models if path == model.id or path.startswith(model.id + "/")]
        if not fitting:
            return None
        model = max(fitting, key=lambda each: len(each.id))
        return model, path[len(model.id) + 1 :]

    def entry(self, model: Model) -> ModelEntry:
        """A snapshot of one model for clients."""
        return model.entry(active=model is self._active)

    def unhealthy(self) -> str | None:
        """Why /health is not 200 now; None when it is."""
        if self.stopping:
            return "stopping"
        if self._device.exchanging or any(model.state in ("available", "draining") for model in self.models):
            return None
        active = self._active
        return f"{active.id} is {active.state}" + (f": {active.error}" if active.error else "")

    # --- requests

    def permit(self) -> AbstractContextManager[None]:
        """One permit of MAX_CONCURRENT_REQUESTS; Overloaded when none is free."""
        return self._admission.permit()

    def check(self, model: Model) -> None:
        """Unavailable when a request for `model` could not be served: stopping, or a load that failed a moment ago."""
        if self.stopping:
            raise Unavailable("the server is stopping")
        if model.state == "failed" and not self._may_retry(model):
            raise Unavailable(f"model {model.id!r} failed: {model.error}", retry_after_s=int(RETRY_FAILED_S))

    async def submit(self, model: Model, request: Request, timings: Timings) -> Generation:
        """Queue a request; it waits for a slot, and for its model if that does not hold the device."""
        self.check(model)
        text = await model.text()
        generation = model.engine.submit(request, text.tokenizer, timings)
        self._wake.set()
        return generation

    # --- states

    def activate(self, model: Model) -> None:
        """Ask for the device; returns at once."""
        if model not in self._asked and not (model is self._device.holder and model.state == "available"):
            self._asked.append(model)
        self._wake.set()

    async def settled(self, model: Model) -> None:
        """Wait until `model` is neither asked for nor on its way."""
        async for _ in self.events():
            if model not in self._asked and model.state in ("available", "failed", "unloaded"):
                return

    async def unload(self, model: Model) -> None:
        """Drain and take it off the device, or cancel its staging or loading."""
        if model in self._asked:
            self._asked.remove(model)
        if not self._device.abort(model) and self._device.holder is model:
            await self._device.release(drain=True)
        self._wake.set()

    async def events(self) -> AsyncIterator[ModelEntry]:
        """Every model once, then every change of state and progress, until the server stops."""
        queue: asyncio.Queue[ModelEntry | None] = asyncio.Queue()
        for model in self.models:
            queue.put_nowait(self.entry(model))
        self._subscribers.add(queue)
        try:
            while (entry := await queue.get()) is not None:
                yield entry
        finally:
            self._subscribers.discard(queue)

    # --- life

    async def start(self) -> None:
        """Begin to load the default model; returns at once."""
        self._task = asyncio.create_task(self._run())

    async def stop_gracefully(self) -> None:
        """Refuse new work, let the active model's work finish until the deadline, end the rest with errors."""
        self.stopping = True
        deadline = time.monotonic() + self._settings.server.stop_deadline
        for model in self.models:
            if model is not self._device.holder:
                model.engine.fail_all(lambda: Unavailable("the server is stopping"))
        holder = self._device.holder
        while holder is not None and not holder.engine.empty and time.monotonic() < deadline:
            await asyncio.sleep(STOP_POLL_S)
            holder = self._device.holder
        for model in self.models:
            model.engine.fail_all(IncompleteGeneration)
        for queue in self._subscribers:
            queue.put_nowait(None)

    async def close(self) -> None:
        """End the task and every worker."""
        self.stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._device.close()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            if not self.stopping:
                self._end_hopeless()
                target = self._choose()
                if target is not None:
                    await self._exchange(target)
                    continue
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK_S)

    async def _exchange(self, target: Model) -> None:
        self._active = target
        try:
            await self._device.give_to(target)
        except Exception:
            log.exception("the exchange to %s failed", target.id)
            self._set_state(target, "failed", "internal error, see the log")
        finally:
            if target in self._asked:
                self._asked.remove(target)
            if self._device.holder is not None:
                self._active = self._device.holder
            self._publish(target)

    def _choose(self) -> Model | None:
        holder = self._device.holder
        snapshot = Holder(self._device.holder_since, not holder.engine.empty) if holder else None
        candidates = [
            Candidate(
                model.id,
                waiting_since=model.engine.waiting_since if self._settings.swap.on_request or not holder else None,
                asked=model in self._asked,
                may_load=self._may_retry(model),
            )
            for model in self.models
            if model is not holder
        ]
        chosen = next_model(snapshot, candidates, time.monotonic(), self._settings.swap)
        return self._by_id[chosen] if chosen else None

    def _may_retry(self, model: Model) -> bool:
        return model.state != "failed" or time.monotonic() - model.failed_at >= RETRY_FAILED_S

    def _end_hopeless(self) -> None:
        """End the requests that nobody could serve within swap.give_up."""
        limit = self._settings.swap.give_up
        for model in self.models:
            if model is not self._device.holder:
                model.engine.fail_older_than(
                    time.monotonic() - limit,
                    lambda: Unavailable(f"no turn for this model within swap.give_up = {limit:g} s", retry_after_s=60),
                )

    def _set_state(self, model: Model, state: State, error: str | None) -> None:
        if state not in ("staging", "loading"):
            model.progress = None
        if state == "failed":
            model.failed_at = time.monotonic()
        if state != model.state:
            log.info("%s: %s -> %s%s", model.id, model.state, state, f" ({error})" if error else "")
        model.state, model.error = state, error
        self._publish(model)

    def _publish(self, model: Model) -> None:
        for queue in self._subscribers:
            queue.put_nowait(self.entry(model))
