"""Which model gets the device next."""

from __future__ import annotations

from server.settings import SwapSettings
from server.swap.policy import Candidate, Holder, next_model

SETTINGS = SwapSettings(min_resident=10, turn_after=60)
BUSY = Holder(since=0.0, has_work=True)
FREE = Holder(since=0.0, has_work=False)


def test_nobody_waits() -> None:
    assert next_model(FREE, [Candidate("a")], 100.0, SETTINGS) is None


def test_an_activate_comes_first_even_while_the_holder_works() -> None:
    candidates = [Candidate("a", waiting_since=1.0), Candidate("b", asked=True)]
    assert next_model(BUSY, candidates, 2.0, SETTINGS) == "b"


def test_an_activate_tries_a_failed_model_again() -> None:
    assert next_model(FREE, [Candidate("a", asked=True, may_load=False)], 2.0, SETTINGS) == "a"


def test_the_longest_waiting_model_follows_a_holder_without_work() -> None:
    candidates = [Candidate("a", waiting_since=5.0), Candidate("b", waiting_since=3.0)]
    assert next_model(FREE, candidates, 6.0, SETTINGS) == "b"


def test_a_working_holder_keeps_the_device_until_the_turn_has_come() -> None:
    candidates = [Candidate("a", waiting_since=30.0)]
    assert next_model(BUSY, candidates, 89.0, SETTINGS) is None
    assert next_model(BUSY, candidates, 90.0, SETTINGS) == "a"


def test_a_holder_that_has_just_come_keeps_the_device_for_min_resident() -> None:
    candidates = [Candidate("a", waiting_since=0.0)]
    assert next_model(Holder(since=95.0, has_work=True), candidates, 100.0, SETTINGS) is None
    assert next_model(Holder(since=95.0, has_work=True), candidates, 105.0, SETTINGS) == "a"


def test_a_failed_model_is_not_loaded_for_a_request() -> None:
    assert next_model(None, [Candidate("a", waiting_since=1.0, may_load=False)], 9.0, SETTINGS) is None


def test_an_empty_device_takes_whoever_waits() -> None:
    assert next_model(None, [Candidate("a"), Candidate("b", waiting_since=1.0)], 1.0, SETTINGS) == "b"
