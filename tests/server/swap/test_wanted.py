"""Who is wanted on the device after operators, requests, exchanges and reloads had their say."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from models.protocol import SamplingParams
from server.core import Request, Timings
from server.swap.model import Model
from server.swap.wanted import Wanted
from server.text.tokenizer import Tokenizer


@pytest.fixture
def abc(make: Callable[..., Model]) -> tuple[Model, Model, Model]:
    return make("a"), make("b"), make("c")


def unloads(wanted: Wanted) -> list[str]:
    return [model.id for model in iter(wanted.next_unload, None)]


def test_at_first_the_default_model_is_asked_for_and_at_home(abc: tuple[Model, ...]) -> None:
    a, b, _ = abc
    wanted = Wanted(a)
    assert (wanted.active, wanted.asked, wanted.home) == (a, a, a)
    assert wanted.needs(a)
    assert not wanted.needs(b)


def test_the_last_one_who_asks_decides(abc: tuple[Model, ...]) -> None:
    a, b, c = abc
    wanted = Wanted(a)
    assert wanted.ask(b) is a
    assert wanted.ask(c) is b
    assert wanted.needs(c)
    assert not wanted.needs(b)
    assert not wanted.needs(a)


def test_a_model_that_came_is_at_home(abc: tuple[Model, ...]) -> None:
    a, b, _ = abc
    wanted = Wanted(a)
    wanted.ask(b)
    wanted.expect(b)
    assert wanted.active is b
    b.state, a.state = "available", "unloaded"
    wanted.exchanged(b, [a], came=True)
    wanted.settle([b])
    assert (wanted.active, wanted.asked, wanted.home) == (b, None, b)


def test_a_model_that_failed_is_not_asked_for_any_more_and_whoever_left_for_it_is_at_home(
    abc: tuple[Model, ...],
) -> None:
    a, b, _ = abc
    wanted = Wanted(b)
    wanted.fulfil(b)
    wanted.ask(a)
    wanted.expect(a)
    a.state, b.state = "failed", "unloaded"
    wanted.exchanged(a, [b], came=False)
    assert (wanted.asked, wanted.home) == (None, b)


def test_a_model_that_was_cancelled_and_asked_for_again_stays_asked_for(abc: tuple[Model, ...]) -> None:
    a, b, _ = abc
    wanted = Wanted(a)
    wanted.ask(b)
    wanted.expect(b)
    wanted.withdraw(b)
    assert not wanted.needs(b)
    wanted.ask(b)
    wanted.exchanged(b, [], came=False)  # it is "unloaded", as a cancelled model is
    assert wanted.asked is b


def test_one_that_left_for_good_is_not_at_home_because_its_successor_did_not_come(abc: tuple[Model, ...]) -> None:
    a, b, c = abc
    wanted = Wanted(c)
    wanted.withdraw(a)
    b.state = "failed"
    wanted.exchanged(b, [a], came=False)
    assert wanted.home is c


def test_unload_is_told_once_and_taken_back_by_activate(abc: tuple[Model, ...]) -> None:
    a, b, c = abc
    wanted = Wanted(a)
    for model in (a, b, c, b):
        wanted.withdraw(model)
    assert (wanted.asked, wanted.home) == (None, None)
    wanted.ask(b)
    assert unloads(wanted) == ["a", "c"]
    assert wanted.next_unload() is None


def test_a_newcomer_is_needed_by_its_requests_alone_until_somebody_is_asked_for(abc: tuple[Model, ...]) -> None:
    a, b, c = abc
    wanted = Wanted(a)
    wanted.fulfil(a)
    wanted.expect(b)
    assert not wanted.needs(b)
    request = Request(model="b", prompt=(5, 6), text="", max_new_tokens=4, sampling=SamplingParams())
    b.engine.submit(request, Tokenizer.load(b.directory, b.family), Timings(0.0))
    assert wanted.needs(b)
    wanted.ask(c)
    assert not wanted.needs(b)


def test_an_exchange_that_was_called_off_needs_nobody_until_its_newcomer_is_asked_for(
    abc: tuple[Model, ...],
) -> None:
    a, b, _ = abc
    wanted = Wanted(a)
    wanted.fulfil(b)
    assert wanted.needs(b)
    wanted.call_off()
    assert not wanted.needs(b)
    wanted.ask(b)
    assert wanted.needs(b)
    wanted.fulfil(b)
    wanted.call_off()
    wanted.expect(b)
    assert wanted.needs(b)


def test_bare_requests_go_to_one_that_is_there(abc: tuple[Model, ...]) -> None:
    a, b, c = abc
    wanted = Wanted(a)
    wanted.expect(b)
    wanted.settle([a, c])
    assert wanted.active is c
    wanted.settle([a, c])
    assert wanted.active is c
    wanted.settle([])
    assert wanted.active is a  # it is at home
    wanted.withdraw(a)
    wanted.settle([])
    assert wanted.active is a


def test_the_default_model_takes_the_place_of_one_that_left_the_configuration(abc: tuple[Model, ...]) -> None:
    a, b, c = abc
    wanted = Wanted(a)
    wanted.fulfil(b)
    wanted.dismiss(b, c)
    assert (wanted.active, wanted.home) == (c, c)
    assert unloads(wanted) == ["b"]
    wanted.dismiss(a, b)
    assert (wanted.active, wanted.home) == (c, c)


def test_successors_take_the_places_of_those_who_gave_way(make: Callable[..., Model], abc: tuple[Model, ...]) -> None:
    a, b, c = abc
    anew = make("a")
    wanted = Wanted(a)
    wanted.withdraw(b)
    wanted.withdraw(c)
    wanted.ask(a)
    wanted.fulfil(a)
    wanted.ask(a)
    wanted.renew({a: anew, b: None}, c)
    assert (wanted.active, wanted.asked, wanted.home) == (anew, anew, anew)
    assert unloads(wanted) == ["c"]
    wanted.renew({anew: None}, c)
    assert (wanted.active, wanted.asked, wanted.home) == (c, None, c)


def test_whoever_went_away_does_not_come_home_with_a_reload(abc: tuple[Model, ...]) -> None:
    a, b, c = abc
    wanted = Wanted(a)
    wanted.withdraw(a)
    wanted.renew({b: None}, c)
    assert wanted.home is None
