"""The life of a serving process: started once a model serves, or never; reloading; stopping; told to its manager.

It acts in the turns of the registry and has no timer of its own, so that a process whose loop hangs falls silent and is
restarted. Without a service manager nobody waits for a start: a first load that failed is told by /health alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence

from server.errors import ConfigurationError
from server.observe.systemd import Notifier
from server.swap.model import Model
from server.swap.registry import Registry

log = logging.getLogger(__name__)
# Long enough for a turn that comes late, short enough that a loop which hangs while loading is soon given up.
EXTENSION_S = 30.0
EXTEND_EVERY_S = 5.0
FEEDS_PER_WATCHDOG = 4


class Lifecycle:
    """What follows, outside the process, from the states of the models."""

    def __init__(self, registry: Registry, notifier: Notifier, reload: Callable[[], Awaitable[None]]) -> None:
        """`reload` puts another configuration into force, or raises ConfigurationError."""
        self._registry = registry
        self._notifier = notifier
        self._put_into_force = reload
        self._not_reloaded = ""
        self._started = False
        self._hopeless = asyncio.Event()
        self._status = ""
        self._fed_at = self._extended_at = -math.inf
        self.exit_code = 0
        if notifier.wanted:
            registry.observe_turns(self.turn)

    async def hopeless(self) -> None:
        """Returns when the first load has failed and a service manager waits for it: `exit_code` is the reason."""
        await self._hopeless.wait()

    async def reload(self) -> None:
        """Put the configuration into force as it is now; the old one stays when it cannot work."""
        if self._started:
            self._notifier.reloading()
        try:
            await self._put_into_force()
            self._not_reloaded = ""
        except ConfigurationError as error:
            log.error("the configuration was not reloaded, the old one stays in force: %s", error)
            self._not_reloaded = f"; not reloaded: {error}"
        except Exception:
            log.exception("the configuration was not reloaded")
            self._not_reloaded = "; not reloaded: see the server's log"
        self._status = self._line()
        if self._started:
            self._notifier.ready(self._status)

    async def stop(self) -> None:
        """Let the work that runs end; the service manager is told so first."""
        self._notifier.stopping(status_line(self._registry.models, stopping=True))
        await self._registry.stop_gracefully()

    def close(self) -> None:
        """Nothing is told after this."""
        self._notifier.close()

    def turn(self) -> None:
        """A turn of the registry: tell what is new, and that the loop is alive unless an engine is stalled."""
        self._tell(self._line())
        now = time.monotonic()
        if self._notifier.watchdog_s and not self._registry.stalled:
            self._feed(now)
        if (not self._started or self._registry.stopping) and now - self._extended_at >= EXTEND_EVERY_S:
            self._extended_at = now
            self._notifier.more_time(EXTENSION_S)

    def _line(self) -> str:
        return status_line(self._registry.models, self._registry.stopping) + self._not_reloaded

    def _tell(self, status: str) -> None:
        changed, self._status = status != self._status, status
        if not self._started and self._first_load_ended():
            self._notifier.ready(status)
        elif changed:
            self._notifier.status(status)

    def _first_load_ended(self) -> bool:
        """True when it serves; a failure is the end. The first model that comes or fails decides."""
        models = self._registry.models
        self._started = any(model.state == "available" for model in models)
        failed = [model for model in models if model.state == "failed"]
        if failed and not self._started and not self._hopeless.is_set() and not self._registry.stopping:
            self.exit_code = os.EX_CONFIG if failed[0].remedy == "configuration" else 1
            log.error("the first load failed, and the service manager waits for it: exiting with %d", self.exit_code)
            self._hopeless.set()
        return self._started

    def _feed(self, now: float) -> None:
        if now - self._fed_at >= self._notifier.watchdog_s / FEEDS_PER_WATCHDOG:
            self._fed_at = now
            self._notifier.alive()


def status_line(models: Sequence[Model], stopping: bool) -> str:
    """What `systemctl status` shows: who serves, who comes and how far it is, who failed and why."""
    said = [part for model in models if (part := _said_of(model))]
    if stopping:
        left = sum(model.engine.running + model.engine.waiting for model in models)
        said.insert(0, f"stopping: {left} sequence{'s' * (left > 1)} left" if left else "stopping")
    return "; ".join(said) or "no model is loaded"


def _said_of(model: Model) -> str:
    if model.state == "available":
        return f"serving {model.id}"
    if model.state == "failed":
        return f"{model.id} failed: {model.error}"
    if model.state == "unloaded":
        return ""
    progress = model.progress
    return f"{model.state} {model.id}" + (f": {progress.phase} {progress.fraction:.0%}" if progress else "")
