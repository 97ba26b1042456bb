"""Which model gets a place on the device next, and who leaves for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.settings import SwapSettings
from server.swap.policy import Candidate, Resident, Turn, next_turn

SETTINGS = SwapSettings(min_resident=10, turn_after=60)
TWO = SwapSettings(min_resident=10, turn_after=60, residents=2)
BUSY = Resident("r", since=0.0, has_work=True)
FREE = Resident("r", since=0.0, has_work=False)


def test_nobody_waits() -> None:
    assert next_turn([FREE], [Candidate("a")], 100.0, SETTINGS) is None


def test_an_activate_comes_first_even_while_the_resident_works() -> None:
    candidates = [Candidate("a", waiting_since=1.0), Candidate("b", asked=True)]
    assert next_turn([BUSY], candidates, 2.0, SETTINGS) == Turn("b", ("r",))


def test_an_activate_tries_a_failed_model_again() -> None:
    assert next_turn([FREE], [Candidate("a", asked=True, may_load=False)], 2.0, SETTINGS) == Turn("a", ("r",))


def test_the_longest_waiting_model_follows_a_resident_without_work() -> None:
    candidates = [Candidate("a", waiting_since=5.0), Candidate("b", waiting_since=3.0)]
    assert next_turn([FREE], candidates, 6.0, SETTINGS) == Turn("b", ("r",))


def test_a_working_resident_keeps_the_device_until_the_turn_has_come() -> None:
    candidates = [Candidate("a", waiting_since=30.0)]
    assert next_turn([BUSY], candidates, 89.0, SETTINGS) is None
    assert next_turn([BUSY], candidates, 90.0, SETTINGS) == Turn("a", ("r",))


def test_a_resident_that_has_just_come_keeps_the_device_for_min_resident() -> None:
    candidates = [Candidate("a", waiting_since=0.0)]
    just_come = Resident("r", since=95.0, has_work=True)
    assert next_turn([just_come], candidates, 100.0, SETTINGS) is None
    assert next_turn([just_come], candidates, 105.0, SETTINGS) == Turn("a", ("r",))


def test_a_resident_keeps_the_device_as_long_as_its_load_took_and_until_the_parked_have_caught_up() -> None:
    candidates = [Candidate("a", waiting_since=0.0)]
    slow = Resident("r", since=95.0, has_work=True, load_s=40.0)
    assert next_turn([slow], candidates, 134.0, SETTINGS) is None
    assert next_turn([slow], candidates, 135.0, SETTINGS) == Turn("a", ("r",))
    assert next_turn([Resident("r", 0.0, has_work=True, replaying=True)], candidates, 900.0, SETTINGS) is None


def test_a_pinned_resident_leaves_for_an_activate_alone() -> None:
    pinned = Resident("r", since=0.0, has_work=False, pinned=True)
    assert next_turn([pinned], [Candidate("a", waiting_since=1.0)], 900.0, SETTINGS) is None
    assert next_turn([pinned], [Candidate("a", asked=True)], 1.0, SETTINGS) == Turn("a", ("r",))


def test_a_failed_model_is_not_loaded_for_a_request() -> None:
    assert next_turn([], [Candidate("a", waiting_since=1.0, may_load=False)], 9.0, SETTINGS) is None


def test_an_empty_device_takes_whoever_waits() -> None:
    assert next_turn([], [Candidate("a"), Candidate("b", waiting_since=1.0)], 1.0, SETTINGS) == Turn("b")


# --- several residents


def test_where_there_is_room_nobody_leaves_and_nobody_waits() -> None:
    assert next_turn([BUSY], [Candidate("a", waiting_since=1.0)], 1.0, TWO) == Turn("a")


def test_the_idle_leave_before_the_busy_and_the_least_recently_used_first() -> None:
    residents = [Resident("x", 0.0, has_work=False, used=9.0), Resident("y", 0.0, has_work=False, used=5.0)]
    assert next_turn(residents, [Candidate("a", waiting_since=10.0)], 10.0, TWO) == Turn("a", ("y",))
    busy = [Resident("x", 0.0, has_work=False, used=9.0), Resident("y", 0.0, has_work=True, used=5.0)]
    assert next_turn(busy, [Candidate("a", waiting_since=10.0)], 10.0, TWO) == Turn("a", ("x",))
    assert next_turn(busy, [Candidate("a", asked=True)], 10.0, TWO) == Turn("a", ("x",))


def test_an_activate_spares_the_pinned_where_it_can() -> None:
    residents = [Resident("x", 0.0, has_work=True, used=9.0), Resident("y", 0.0, has_work=False, pinned=True)]
    assert next_turn(residents, [Candidate("a", asked=True)], 10.0, TWO) == Turn("a", ("x",))


def test_a_rival_leaves_although_there_is_room() -> None:
    asked = Candidate("a", waiting_since=1.0, rivals=frozenset({"r"}))
    assert next_turn([FREE], [asked], 1.0, TWO) == Turn("a", ("r",))
    assert next_turn([BUSY], [asked], 1.0, TWO) is None


def test_a_model_whose_rival_is_busy_does_not_hold_up_the_next_one() -> None:
    residents = [Resident("x", 0.0, has_work=True), Resident("y", 0.0, has_work=False)]
    candidates = [
        Candidate("a", waiting_since=1.0, rivals=frozenset({"x"})),
        Candidate("b", waiting_since=2.0, rivals=frozenset({"y"})),
    ]
    assert next_turn(residents, candidates, 3.0, TWO) == Turn("b", ("y",))


RESIDENTS = st.lists(
    st.builds(
        Resident,
        id=st.sampled_from("uvw"),
        since=st.floats(0, 100),
        has_work=st.booleans(),
        pinned=st.booleans(),
        used=st.floats(0, 100),
    ),
    max_size=3,
    unique_by=lambda each: each.id,
)
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        id=st.sampled_from("abc"),
        waiting_since=st.none() | st.floats(0, 100),
        asked=st.booleans(),
        may_load=st.booleans(),
        rivals=st.frozensets(st.sampled_from("uvw")),
    ),
    max_size=3,
    unique_by=lambda each: each.id,
)


@given(RESIDENTS, CANDIDATES, st.integers(1, 3))
def test_whatever_the_situation_a_turn_breaks_no_rule(
    residents: list[Resident], candidates: list[Candidate], room: int
) -> None:
    settings = SwapSettings(min_resident=10, turn_after=60, residents=room)
    turn = next_turn(residents, candidates, 100.0, settings)
    if turn is None:
        return
    candidate = next(each for each in candidates if each.id == turn.model)
    leaving = [each for each in residents if each.id in turn.leaving]
    staying = [each for each in residents if each.id not in turn.leaving]
    assert len(leaving) == len(turn.leaving)
    assert not candidate.rivals & {each.id for each in staying}
    if len(residents) <= room:
        assert len(staying) + 1 <= room
    if candidate.asked:
        return
    assert candidate.waiting_since is not None
    assert candidate.may_load
    for each in leaving:
        assert not each.pinned
        if each.has_work:
            assert 100.0 - candidate.waiting_since >= 60
            assert 100.0 - each.since >= 10


@given(RESIDENTS, CANDIDATES)
def test_without_pins_everybody_s_turn_comes(residents: list[Resident], candidates: list[Candidate]) -> None:
    unpinned = [Resident(each.id, each.since, each.has_work) for each in residents[:1]]
    wanted = [each for each in candidates if each.asked or (each.waiting_since is not None and each.may_load)]
    assert bool(wanted) == (next_turn(unpinned, candidates, 1000.0, SETTINGS) is not None)
