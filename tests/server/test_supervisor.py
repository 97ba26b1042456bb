"""The restart budget."""

from __future__ import annotations

from server.supervisor import RestartBudget


def test_the_budget_is_spent_within_its_window_and_comes_back_after_it() -> None:
    budget = RestartBudget(restarts=2, window=100)
    assert [budget.spend(now) for now in (0, 10, 20, 99)] == [True, True, False, False]
    assert [budget.spend(now) for now in (100, 105, 110)] == [True, False, True]


def test_a_budget_of_none_allows_none() -> None:
    assert not RestartBudget(restarts=0, window=100).spend(0)
