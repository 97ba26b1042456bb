"""The models of this server: the facade the API talks to, and the one writer of model states.

One task, woken by every event, looks at what changed and begins what follows: an exchange, an unload, a cancel. One
change is under way at a time, in a task of its own; which exchange comes next is the policy's decision.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from functools import partial

from models.host import available_bytes
from models.protocol import Remedy
from server.admission import Admission
from server.core import Request, Timings
from server.engine.generation import Generation
from server.errors import CutByStop, Unavailable
from server.observe.metrics import Metrics
from server.settings import Settings
from server.swap.changes import Changes
from server.swap.device import INTERNAL_ERROR, Device, end_task
from server.swap.model import Model, ModelEntry, State
from server.swap.policy import Turn
from server.swap.residents import check_fit
from server.swap.roster import Roster
from server.swap.turns import choose_turn, may_retry, retry_after_s
from server.swap.wanted import Wanted

log = logging.getLogger(__name__)
TICK_S = 1.0
STOP_POLL_S = 0.05


class Registry:
    """All configured models; the first is the default one."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """ConfigurationError when a model does not fit, or swap.residents of them beside each other."""
        self._host_free = available_bytes()
        check_fit(settings, self._host_free)
        self._settings = settings
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._roster = Roster(settings, lambda model, whole: Model(model, whole, metrics, self._wake.set))
        self._admission = Admission(settings.limits.max_concurrent_requests)
        self._device = Device(settings, metrics, self._set_state)
        self._wanted = Wanted(self.default)
        self._in_exchange = False  # a model served when it began: planned, so /health stays 200
        self._turn: Turn | None = None  # the exchange under way
        self._change: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._changes = Changes()
        self._observers: list[Callable[[], None]] = []
        self.stopping = False

    # --- what there is

    @property
    def models(self) -> tuple[Model, ...]:
        """The configured ones, then those that have left the configuration and not yet the device."""
        return self._roster.models

    @property
    def default(self) -> Model:
        return self.models[0]

    @property
    def active(self) -> Model:
        """Where bare requests go: the model on the device, during an exchange the incoming one."""
        return self._wanted.active

    @property
    def queued(self) -> int:
        """Sequences without a slot, over all models."""
        return sum(model.engine.waiting + model.engine.parked for model in self.models)

    @property
    def running(self) -> int:
        """Sequences in a slot, over all models."""
        return sum(model.engine.running for model in self.models)

    @property
    def stalled(self) -> bool:
        """Whether a model's sequences wait for an event that will never come."""
        return any(model.engine.stalled for model in self.models)

    @property
    def batch_tokens(self) -> tuple[int, int]:
        """Tokens that the running sequences may come to hold, and what all slots on the device hold together."""
        held = sum(model.engine.tokens_held for model in self.models)
        on_device = [model.description for model in self.models if model.state == "available" and model.description]
        return held, sum(each.slots * each.n_positions for each in on_device)

    def find(self, name: str) -> Model | None:
        """The model of exactly this id."""
        return self._roster.find(name)

    def route(self, path: str) -> tuple[Model, str] | None:
        """Split "<id>/<rest>" (or "<id>") at the longest configured id; ids contain slashes themselves."""
        return self._roster.route(path)

    def entry(self, model: Model) -> ModelEntry:
        """A snapshot of one model for clients."""
        return model.entry(active=model is self.active)

    def unhealthy(self, named: Model | None = None) -> str | None:
        """Why /health is not 200 now, None when it is; of the server, or of a `named` model: whether requests for it
        are served, which one that is not loaded answers by coming."""
        if self.stopping:
            return "stopping"
        if named is not None and not self._comes_by_itself(named):
            return _condition(named)
        if named is not None and named.state == "unloaded" and self._is_idle():
            return None
        if self._in_exchange or any(model.state in ("available", "draining") for model in self.models):
            return None
        return _condition(self.active)

    def _is_idle(self) -> bool:
        """Whether the device is empty and stays so until somebody is asked for, or until a failed load is retried."""
        home = self._wanted.home
        return self._device.empty and (home is None or home.state == "failed")

    def _comes_by_itself(self, model: Model) -> bool:
        if model.state == "unloaded":
            return self._settings.swap.on_request or self._device.empty
        return model.state != "failed"

    # --- requests

    def permit(self, count: int = 1) -> AbstractContextManager[None]:
        """`count` permits of MAX_CONCURRENT_REQUESTS, one a sequence; Overloaded when not all of them are free."""
        return self._admission.permit(count)

    def check(self, model: Model) -> None:
        """Unavailable when a request for `model` could not be served: stopping, or a load that failed a moment ago, or
        a reload that took the model away."""
        self._check_open(model)
        if not may_retry(model, time.monotonic()):
            raise Unavailable(f"model {model.id!r} failed: {model.error}", retry_after_s=retry_after_s(model))

    async def submit(self, model: Model, request: Request, timings: Timings) -> Generation:
        """Queue a request; it waits for a slot, and for its model if that is not on the device."""
        self.check(model)
        text = await model.text()
        self.check(model)
        generation = model.engine.submit(request, text.tokenizer, timings)
        model.used = time.monotonic()
        self._wake.set()
        return generation

    # --- states

    def activate(self, model: Model) -> None:
        """Ask for the device; returns at once. The last one who asks decides."""
        self._check_open(model)
        outdone = self._wanted.ask(model)
        if self._fulfil() and self._leaves_needlessly(model):
            self._wanted.call_off()
        if outdone is not None:
            self._publish(outdone)
        self._wake.set()

    async def settled(self, model: Model) -> None:
        """Wait until `model` is neither asked for nor on its way."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                if model is not self._wanted.asked and model.state in ("available", "failed", "unloaded"):
                    return

    def unload(self, model: Model) -> None:
        """Take it off the device, or cancel its staging or loading; returns at once.

        Its running requests may finish within swap.drain; the others are ended, or they would bring it back.
        """
        self._wanted.withdraw(model)
        self._leave(model)

    def _leave(self, model: Model) -> None:
        self._device.abort(model)
        self._publish(model)
        self._wake.set()

    def events(self) -> AsyncGenerator[ModelEntry, None]:
        """Every model once, then every change of state and progress, until the server stops."""
        return self._changes.subscribe(self.entry(model) for model in self.models)

    def observe_turns(self, observer: Callable[[], None]) -> None:
        """Call `observer` in every turn: at each change of a state, and once a second at least while all is well."""
        self._observers.append(observer)

    # --- another configuration

    def reconfigure(self, settings: Settings) -> tuple[Model, ...]:
        """Put other settings into force; ConfigurationError, with nothing changed, when their models do not fit.

        Returns the models in use that are now configured otherwise, or not at all. The latter are unloaded; the former
        keep their settings until they are off the device and have no requests.
        """
        check_fit(settings, self._host_free)
        self._settings = settings
        self._admission.limit = settings.limits.max_concurrent_requests
        self._device.reconfigure(settings)
        self._roster.adopt(settings)
        self._renew()
        for model in [model for model in self.models if not self._roster.configured(model)]:
            self._wanted.dismiss(model, self.default)
            self._leave(model)
        self._wake.set()
        return self._roster.outdated

    def _renew(self) -> None:
        """Models that are not in use give way to their successors."""
        if gave_way := self._roster.renew(self._in_use):
            self._wanted.renew(gave_way, self.default)

    def _in_use(self, model: Model) -> bool:
        """While a change is under way, all of them: it may end with any of them."""
        under_way = self._change is not None and not self._change.done()
        return under_way or self._device.holds(model) or not model.engine.empty

    def _check_open(self, model: Model) -> None:
        """Unavailable when the server is stopping, or for a model that is leaving, or has given way since the caller
        found it."""
        if self.stopping:
            raise Unavailable("the server is stopping")
        if not self._roster.configured(model):
            raise Unavailable(f"model {model.id!r} is not configured any more")
        if self._roster.find(model.id) is not model:
            raise Unavailable(f"model {model.id!r} has just been configured anew: ask again", retry_after_s=1)

    # --- life

    async def start(self) -> None:
        """Begin to load the default model; returns at once."""
        self._task = asyncio.create_task(self._run())

    async def stop_gracefully(self) -> None:
        """Refuse new work, let the active model's work finish until the deadline, end the rest with errors."""
        self.stopping = True
        deadline = time.monotonic() + self._settings.server.stop_deadline
        newcomer = self._device.newcomer
        if newcomer is not None and self._device.residents:
            self._device.abort(newcomer)
        while True:
            if self._finished() or time.monotonic() >= deadline:
                break
            await asyncio.sleep(STOP_POLL_S)
        self._end_everything()

    def _finished(self) -> bool:
        """End the requests of the models that are not on the device; whether the others have none left.

        Asked again and again, since a model may still leave: one whose worker is being reaped, or is lost for good.
        """
        finishing = [resident.model for resident in self._device.residents]
        if not finishing and self._device.newcomer is not None:
            finishing = [self._device.newcomer]
        for model in self.models:
            if model not in finishing:
                model.engine.fail_all(lambda: Unavailable("the server is stopping"))
        return all(model.engine.empty for model in finishing)

    async def close(self) -> None:
        """End the task, what it began, every worker and every request."""
        self.stopping = True
        await end_task(self._task)
        await end_task(self._change)
        await self._device.close()
        self._end_everything()

    def _end_everything(self) -> None:
        for model in self.models:
            model.engine.fail_all(CutByStop)
        self._changes.end()

    # --- changes

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            for act in (self._look, *self._observers):
                try:
                    act()
                except Exception:
                    log.exception("a turn of the registry failed")
            tick = asyncio.get_running_loop().call_later(TICK_S, self._wake.set)
            await self._wake.wait()
            tick.cancel()

    def _look(self) -> None:
        """What follows from all that happened since the last look."""
        if self.stopping:
            return
        self._end_hopeless()
        self._fulfil()
        if self._change is not None and not self._change.done():
            newcomer = self._device.newcomer
            if newcomer is not None and not self._wanted.needs(newcomer):
                self._device.abort(newcomer)
            return
        self._turn = None
        self._renew()
        if (model := self._wanted.next_unload()) is not None:
            self._begin(model, partial(self._unload, model))
        elif (turn := self._next_turn()) is not None:
            self._turn = turn
            newcomer = self._named(turn.model)
            self._wanted.expect(newcomer)
            self._begin(newcomer, partial(self._exchange, newcomer, [self._named(name) for name in turn.leaving]))
        else:
            self._in_exchange = False
            self._settle_active()

    def _begin(self, model: Model, change: Callable[[], Awaitable[None]]) -> None:
        self._change = asyncio.create_task(self._guarded(model, change))
        self._change.add_done_callback(lambda _: self._wake.set())

    async def _guarded(self, model: Model, change: Callable[[], Awaitable[None]]) -> None:
        try:
            await change()
        except Exception:
            log.exception("the change of %s failed", model.id)
            self._set_state(model, "failed", INTERNAL_ERROR)
            self._wanted.give_up(model)

    async def _exchange(self, newcomer: Model, leaving: list[Model]) -> None:
        if self.stopping:  # since the turn was chosen
            return
        self._in_exchange |= any(model.state == "available" for model in self.models)
        came = await self._device.bring(newcomer, leaving)
        self._wanted.exchanged(newcomer, leaving, came)
        self._settle_active()
        self._publish(newcomer)

    async def _unload(self, model: Model) -> None:
        await self._device.release(model)
        model.engine.fail_all(lambda: Unavailable(f"model {model.id!r} was unloaded"))
        if model.state == "failed":
            self._set_state(model, "unloaded", None)

    def _fulfil(self) -> bool:
        """An activate of a model that is on the device costs nothing; whether there was one."""
        asked = self._wanted.asked
        if asked is None or asked.state != "available" or not self._device.holds(asked):
            return False
        self._wanted.fulfil(asked)
        self._publish(asked)
        return True

    def _leaves_needlessly(self, resident: Model) -> bool:
        """Whether it must leave for an exchange under way that would not be begun now."""
        turn = self._turn
        if turn is None or resident.id not in turn.leaving:
            return False
        now = self._next_turn()
        return now is None or now.model != turn.model

    def _settle_active(self) -> None:
        there = [each.model for each in self._device.residents]
        self._wanted.settle([model for model in there if self._roster.configured(model)])

    def _next_turn(self) -> Turn | None:
        return choose_turn(
            self.models,
            self._device.residents,
            asked=self._wanted.asked,
            home=self._wanted.home,
            now=time.monotonic(),
            swap=self._settings.swap,
        )

    def _named(self, name: str) -> Model:
        model = self._roster.find(name)
        assert model is not None, f"{name} is in use, or the policy would not have seen it"
        return model

    def _end_hopeless(self) -> None:
        """End the requests that nobody could serve within swap.give_up."""
        limit = self._settings.swap.give_up
        for model in self.models:
            if not self._device.holds(model):
                model.engine.fail_waiting_since(
                    time.monotonic() - limit,
                    lambda: Unavailable(f"no turn for this model within swap.give_up = {limit:g} s", retry_after_s=60),
                )

    def _set_state(self, model: Model, state: State, error: str | None, remedy: Remedy = "restart") -> None:
        if state != model.state or state not in ("staging", "loading"):
            model.progress = None
        if state == "failed":
            model.failed_at, model.remedy = time.monotonic(), remedy
        if state != model.state:
            log.info("%s: %s -> %s%s", model.id, model.state, state, f" ({error})" if error else "")
            self._wake.set()
        model.state, model.error = state, error
        self._publish(model)

    def _publish(self, model: Model) -> None:
        self._changes.publish(self.entry(model))


def _condition(model: Model) -> str:
    return f"{model.id} is {model.state}" + (f": {model.error}" if model.error else "")
