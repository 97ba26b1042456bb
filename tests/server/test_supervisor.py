"""The restart budget, and which losses are worth a part of it."""

from __future__ import annotations

import pytest

from models.protocol import Remedy, SimulatedOptions
from server.engine.loop import Engine
from server.observe.metrics import Metrics
from server.settings import WorkerSettings
from server.supervisor import RestartBudget, Supervisor
from server.worker_process import WorkerLost


def test_the_budget_is_spent_within_its_window_and_comes_back_after_it() -> None:
    budget = RestartBudget(restarts=2, window=100)
    assert [budget.spend(now) for now in (0, 10, 20, 99)] == [True, True, False, False]
    assert [budget.spend(now) for now in (100, 105, 110)] == [True, False, True]


def test_a_budget_of_none_allows_none() -> None:
    assert not RestartBudget(restarts=0, window=100).spend(0)


@pytest.fixture
def supervisor() -> Supervisor:
    """With one restart to spend."""
    metrics = Metrics()
    return Supervisor(
        model="m",
        directory="d",
        options=SimulatedOptions(),
        python="",
        settings=WorkerSettings(restarts=1),
        engine=Engine(decode_per_feed=1, metrics=metrics, on_ended=lambda: None),
        metrics=metrics,
        on_progress=lambda progress: None,
    )


@pytest.mark.parametrize("remedy", ["configuration", "reboot", "replace"])
def test_what_another_worker_cannot_cure_gets_none_and_spends_nothing(supervisor: Supervisor, remedy: Remedy) -> None:
    assert not supervisor.may_restart(WorkerLost("device", "a fault", remedy))
    assert supervisor.may_restart(WorkerLost("device", "a fault"))


def test_any_other_loss_gets_one_within_the_budget(supervisor: Supervisor) -> None:
    assert supervisor.may_restart(WorkerLost("timeout", "a step took long"))
    assert not supervisor.may_restart(WorkerLost("exit", "killed"))


def test_a_configuration_at_fault_is_no_matter_for_a_restart(supervisor: Supervisor) -> None:
    assert not supervisor.may_restart(WorkerLost("configuration", "slots is 0"))
