"""Which model gets the device next. Pure: a snapshot and the time in, a model id out; no I/O.

An operator's activate comes first. Otherwise the model that somebody has waited for longest gets its turn when the
active one has no work left, or has had its time: never within `min_resident` of its own arrival while it has work,
and always once the wait has lasted `turn_after`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.settings import SwapSettings


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that does not hold the device. Times in seconds on one monotonic clock.

    `waiting_since`: arrival of its oldest request, None without one. `asked`: activate was called for it.
    `may_load`: False while a failed load keeps it from being tried again.
    """

    id: str
    waiting_since: float | None = None
    asked: bool = False
    may_load: bool = True


@dataclass(frozen=True, slots=True)
class Holder:
    """The model on the device: since when, and whether any of its requests is unfinished."""

    since: float
    has_work: bool


def next_model(
    holder: Holder | None, candidates: Sequence[Candidate], now: float, settings: SwapSettings
) -> str | None:
    """The model to exchange to now, or None."""
    for candidate in candidates:
        if candidate.asked:
            return candidate.id
    waiting = [(c.waiting_since, c.id) for c in candidates if c.waiting_since is not None and c.may_load]
    if not waiting:
        return None
    since, oldest = min(waiting)
    if holder is None or not holder.has_work:
        return oldest
    turn_has_come = now - since >= settings.turn_after and now - holder.since >= settings.min_resident
    return oldest if turn_has_come else None
