"""All checks over one capture, in the order in which they are worth reading. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from server.doctor.capture import Capture
from server.doctor.checkpoints import check_artifacts, check_checkpoints
from server.doctor.devices import check_devices
from server.doctor.finding import Finding, Report, report, warn
from server.doctor.host import check_disk, check_instance, check_memory, check_port
from server.doctor.packages import check_agreement, check_interpreters, check_system
from server.doctor.variables import check_variables
from server.settings import Settings
from server.swap.windows import cut


def examine(settings: Settings, capture: Capture) -> Report:
    """The report on serving `settings` on the machine of `capture`."""
    return report(_findings(settings, capture))


def _findings(settings: Settings, capture: Capture) -> Iterator[Finding]:
    settings, cuts = _within_windows(settings, capture)
    yield from check_instance(settings, capture.instance)
    yield from check_devices(settings, capture.devices)
    yield from check_system(settings, capture.driver, capture.system_packages)
    yield from check_interpreters(settings, capture.interpreters)
    yield from check_agreement(settings, capture.interpreters, capture.driver, capture.system_packages)
    yield from check_variables(settings, capture.environment)
    yield from check_checkpoints(settings, capture.checkpoints)
    for note in cuts:
        yield warn("window", note, "set n_positions to that, so that the file says what is served")
    yield from check_artifacts(settings, capture.checkpoints, capture.interpreters, capture.stores)
    yield from check_memory(settings, capture.checkpoints, capture.memory)
    yield from check_disk(settings, capture.checkpoints, capture.disk)
    yield from check_port(settings, capture.port)


def _within_windows(settings: Settings, capture: Capture) -> tuple[Settings, list[str]]:
    """What `serve` would make of the settings, and what it would cut."""
    models, notes = [], []
    for model in settings.models:
        spec = capture.checkpoints[model.id].spec
        model, note = cut(model, spec) if spec else (model, "")
        models.append(model)
        notes.append(note)
    return replace(settings, models=tuple(models)), [note for note in notes if note]
