"""Which model gets a place on the device next, and who leaves for it. Pure: a snapshot and the time in, a turn out.

An operator's activate comes first and moves anybody. Otherwise the model that somebody has waited for longest gets its
turn: at once where there is room or where one that may leave has no work; else when its wait has lasted `turn_after`.
A resident with work is never interrupted within `min_resident` of its arrival, nor sooner than its load took, nor while
sequences that were parked have not caught up: each turn gets on, and half of the time at least goes into answers. A
pinned resident leaves for an operator alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.settings import SwapSettings


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is not on the device. Times in seconds on one monotonic clock.

    `waiting_since`: since when its oldest sequence waits, None without one. `asked`: activate was called for it.
    `may_load`: False while a failed load keeps it from being tried again. `rivals`: who can never be there beside it.
    """

    id: str
    waiting_since: float | None = None
    asked: bool = False
    may_load: bool = True
    rivals: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Resident:
    """A model on the device. Times in seconds on the candidates' clock.

    `since`: when it came, or had replayed what was parked; `replaying` until then. `load_s`: how long it took to load.
    `has_work`: whether any of its requests is unfinished. `used`: when the last one came.
    """

    id: str
    since: float
    has_work: bool
    pinned: bool = False
    used: float = 0.0
    load_s: float = 0.0
    replaying: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """Bring `model`; `leaving` are the residents that must go first."""

    model: str
    leaving: tuple[str, ...] = ()


def next_turn(
    residents: Sequence[Resident], candidates: Sequence[Candidate], now: float, settings: SwapSettings
) -> Turn | None:
    """The exchange to begin now, or None."""
    for asked in (candidate for candidate in candidates if candidate.asked):
        leaving = _leaving(asked, residents, list(residents), settings.residents)
        if leaving is not None:
            return Turn(asked.id, leaving)
    waiting = [(each.waiting_since, each) for each in candidates if each.waiting_since is not None and each.may_load]
    for since, candidate in sorted(waiting, key=lambda pair: pair[0]):
        turn_has_come = now - since >= settings.turn_after
        free_to_go = [each for each in residents if _may_leave(each, turn_has_come, now, settings)]
        leaving = _leaving(candidate, residents, free_to_go, settings.residents)
        if leaving is not None:
            return Turn(candidate.id, leaving)
    return None


def _may_leave(resident: Resident, turn_has_come: bool, now: float, settings: SwapSettings) -> bool:
    if resident.pinned:
        return False
    had_its_time = not resident.replaying and now - resident.since >= max(settings.min_resident, resident.load_s)
    return not resident.has_work or (turn_has_come and had_its_time)


def _leaving(
    candidate: Candidate, residents: Sequence[Resident], free_to_go: Sequence[Resident], room: int
) -> tuple[str, ...] | None:
    """Who of `free_to_go` makes room: its rivals, then whom it hurts least; None when that is not enough."""
    rivals = [each for each in residents if each.id in candidate.rivals]
    if any(each not in free_to_go for each in rivals):
        return None
    others = [each for each in free_to_go if each not in rivals]
    others.sort(key=lambda each: (each.pinned, each.has_work, each.used))
    surplus = max(0, len(residents) - len(rivals) + 1 - room)
    if surplus > len(others):
        return None
    return tuple(each.id for each in (*rivals, *others[:surplus]))
