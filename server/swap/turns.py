"""Whose turn it is, as the models stand: asks the policy, and answers where it has no answer.

Reads states, engines and settings, writes nothing: the registry carries out what is chosen here. The clock is given.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.protocol import Remedy
from server.settings import SwapSettings
from server.swap.device import Settled
from server.swap.model import Model
from server.swap.policy import Candidate, Resident, Turn, next_turn
from server.swap.residents import rivals

RETRY_FAILED_S = 60.0
# What time cannot cure: after these a model is tried again by activate alone. A matter of the configuration is tried
# again, since somebody may have put the checkpoint or the artifact in place meanwhile.
MACHINE_REMEDIES: tuple[Remedy, ...] = ("reboot", "replace")


def choose_turn(
    models: Sequence[Model],
    settled: Sequence[Settled],
    *,
    asked: Model | None,
    home: Model | None,
    now: float,
    swap: SwapSettings,
) -> Turn | None:
    """The exchange to begin `now` (monotonic seconds), or None.

    `settled`: those of `models` on the device; `asked`: whom an operator wants there; `home`: who comes back where
    there is room and the policy brings nobody.
    """
    there = [each.model for each in settled]
    residents = [_resident(each) for each in settled]
    by_request = swap.on_request or not settled
    candidates = [
        Candidate(
            model.id,
            waiting_since=model.engine.waiting_since if by_request else None,
            asked=model is asked,
            may_load=may_retry(model, now),
            rivals=_rivals(model, models),
        )
        for model in models
        if model not in there
    ]
    turn = next_turn(residents, candidates, now, swap)
    if turn is None and home is not None and home not in there and may_retry(home, now):
        back = next_turn(residents, [Candidate(home.id, asked=True, rivals=_rivals(home, models))], now, swap)
        turn = back if back is not None and not back.leaving else None
    return turn


def may_retry(model: Model, now: float) -> bool:
    """Whether `model` may be loaded without an operator's activate: it has not failed, or long enough ago."""
    if model.state != "failed":
        return True
    return model.remedy not in MACHINE_REMEDIES and now - model.failed_at >= RETRY_FAILED_S


def retry_after_s(model: Model) -> int | None:
    """What a client of a failed model is told: seconds, None where waiting does not help."""
    return None if model.remedy in MACHINE_REMEDIES else int(RETRY_FAILED_S)


def _resident(settled: Settled) -> Resident:
    model, engine = settled.model, settled.model.engine
    return Resident(
        model.id,
        since=max(settled.since, engine.caught_up_at),
        has_work=not engine.empty,
        pinned=model.settings.pinned,
        used=model.used,
        load_s=settled.load_s,
        replaying=engine.replaying,
    )


def _rivals(model: Model, models: Sequence[Model]) -> frozenset[str]:
    device = model.settings.device
    return frozenset(each.id for each in models if rivals(device, each.settings.device))
