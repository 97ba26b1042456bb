"""Another configuration for a running server: read and checked, then put into force in one step, or not at all."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

import msgspec
from starlette.applications import Starlette

from server.api.service import Service
from server.settings import Settings

log = logging.getLogger(__name__)

# What is made of these at the start is not made again.
NEEDS_RESTART = (
    "server.host",
    "server.port",
    "server.cors_allow_origin",
    "server.log_level",
    "server.json_output",
    "server.otlp_endpoint",
    "server.otlp_service_name",
    "limits.validation_workers",
    "scheduler.decode_per_feed",
)


async def reload(app: Starlette, read: Callable[[], Settings]) -> None:
    """Read the configuration again, in a thread, and put it into force; ConfigurationError when it cannot work, with
    nothing changed."""
    wanted = await asyncio.to_thread(read)
    service: Service = app.state.service
    settings, ignored = in_force(service.settings, wanted)
    outdated = service.registry.reconfigure(settings)
    app.state.service = dataclasses.replace(service, settings=settings)
    log.info("the configuration was reloaded; models: %s", ", ".join(model.id for model in settings.models))
    for key in ignored:
        log.warning("%s has changed and takes effect after a restart only", key)
    for model in outdated:
        log.warning("%s is in use; what has changed of it takes effect when it is off the device", model.id)


def in_force(running: Settings, wanted: Settings) -> tuple[Settings, tuple[str, ...]]:
    """(`wanted`, but for what needs a restart, which stays as it runs; the keys of that which differ)."""
    ignored = []
    for key in NEEDS_RESTART:
        section, _, name = key.partition(".")
        value = getattr(getattr(running, section), name)
        if value != getattr(getattr(wanted, section), name):
            ignored.append(key)
            changed = msgspec.structs.replace(getattr(wanted, section), **{name: value})
            wanted = msgspec.structs.replace(wanted, **{section: changed})
    return wanted, tuple(ignored)
