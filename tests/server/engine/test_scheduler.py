"""The scheduler's rules, each by hand; test_scheduler_histories.py has all of them over random histories."""

from __future__ import annotations

import pytest

from server.engine.scheduler import DecodePlan, FeedPlan, Plan, Scheduler, feed_of
from server.engine.slots import Prompt


def prompt(length: int) -> Prompt:
    return Prompt(tuple(range(length)))


def kinds(plans: list[Plan | None]) -> list[str]:
    return ["none" if p is None else "feed" if isinstance(p, FeedPlan) else "decode" for p in plans]


def take(scheduler: Scheduler, count: int) -> list[Plan | None]:
    return [scheduler.plan() for _ in range(count)]


def fed(scheduler: Scheduler, count: int) -> list[Plan | None]:
    """Plans that the worker does at once."""
    plans = []
    for _ in range(count):
        plans.append(scheduler.plan())
        if isinstance(plans[-1], FeedPlan):
            scheduler.fed(plans[-1])
    return plans


def test_nothing_to_do() -> None:
    assert Scheduler(slots=2).plan() is None


def test_a_prompt_is_fed_and_then_decoded() -> None:
    scheduler = Scheduler(slots=2)
    scheduler.add(7, prompt(5))
    assert scheduler.plan() == FeedPlan(step=1, slot=0, sequence=7, start=0, stop=5, last=True)
    assert scheduler.plan() == DecodePlan(step=2, live=((0, 7),))


def test_first_come_first_served() -> None:
    scheduler = Scheduler(slots=3, decode_per_feed=0)
    for sequence in (5, 3, 9):
        scheduler.add(sequence, prompt(1))
    fed = [plan.sequence for plan in take(scheduler, 3) if isinstance(plan, FeedPlan)]
    assert fed == [5, 3, 9]


@pytest.mark.parametrize("decode_per_feed", [1, 3])
def test_live_sequences_are_decoded_between_two_feeds(decode_per_feed: int) -> None:
    scheduler = Scheduler(slots=3, decode_per_feed=decode_per_feed)
    for sequence in range(3):
        scheduler.add(sequence, prompt(1))
    between = ["decode"] * decode_per_feed
    assert kinds(take(scheduler, 3 + 2 * decode_per_feed)) == ["feed", *between, "feed", *between, "feed"]


def test_nobody_is_waited_for_when_nobody_is_live() -> None:
    scheduler = Scheduler(slots=2, decode_per_feed=5)
    scheduler.add(1, prompt(1))
    assert kinds(take(scheduler, 1)) == ["feed"]
    scheduler.remove(1)
    scheduler.add(2, prompt(1))
    assert kinds(take(scheduler, 1)) == ["feed"]


def test_a_long_prompt_stalls_the_live_ones_by_one_chunk_at_a_time() -> None:
    scheduler = Scheduler(slots=2, chunk=4)
    scheduler.add(1, prompt(4))
    assert kinds(take(scheduler, 2)) == ["feed", "decode"]
    scheduler.add(2, prompt(10))
    plans = take(scheduler, 6)
    assert kinds(plans) == ["feed", "decode", "feed", "decode", "feed", "decode"]
    pieces = [(p.start, p.stop, p.last) for p in plans if isinstance(p, FeedPlan)]
    assert pieces == [(0, 4, False), (4, 8, False), (8, 10, True)]
    assert plans[1] == DecodePlan(step=4, live=((0, 1),), held=((1, 2),))
    assert plans[-1] == DecodePlan(step=8, live=((0, 1), (1, 2)))


def test_where_a_step_may_do_both_a_feed_comes_with_a_decode() -> None:
    scheduler = Scheduler(slots=3, chunk=4, mixed=True)
    scheduler.add(1, prompt(2))
    assert kinds(take(scheduler, 2)) == ["feed", "decode"]
    scheduler.add(2, prompt(6))
    scheduler.add(3, prompt(1))
    assert take(scheduler, 4) == [
        DecodePlan(step=3, live=((0, 1),), feed=FeedPlan(3, 1, 2, start=0, stop=4, last=False)),
        DecodePlan(step=4, live=((0, 1),), feed=FeedPlan(4, 1, 2, start=4, stop=6, last=True)),
        DecodePlan(step=5, live=((0, 1), (1, 2)), feed=FeedPlan(5, 2, 3, start=0, stop=1, last=True)),
        DecodePlan(step=6, live=((0, 1), (1, 2), (2, 3))),
    ]


def test_the_decode_of_a_mixed_step_is_the_last_of_those_between_two_feeds() -> None:
    scheduler = Scheduler(slots=3, chunk=4, decode_per_feed=3, mixed=True)
    scheduler.add(1, prompt(1))
    scheduler.add(2, prompt(5))
    plans = take(scheduler, 8)
    fed = [feed_of(plan) is not None for plan in plans if plan]
    assert fed == [True, False, False, True, False, False, True, False]
    assert plans[4] == DecodePlan(step=5, live=((0, 1),), held=((1, 2),))


def test_a_freed_slot_is_used_again_and_a_full_device_makes_wait() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.add(1, prompt(1))
    scheduler.add(2, prompt(1))
    assert kinds(take(scheduler, 3)) == ["feed", "decode", "decode"]
    scheduler.remove(1)
    assert scheduler.plan() == FeedPlan(step=4, slot=0, sequence=2, start=0, stop=1, last=True)


def test_live_sequences_are_in_the_order_of_their_slots() -> None:
    scheduler = Scheduler(slots=2, decode_per_feed=0)
    for sequence in (1, 2):
        scheduler.add(sequence, prompt(1))
    fed(scheduler, 2)
    scheduler.remove(1)
    scheduler.add(3, prompt(1))
    fed(scheduler, 1)
    assert scheduler.plan() == DecodePlan(step=4, live=((0, 3), (1, 2)))


def test_a_sequence_cancelled_while_it_is_fed_gives_its_slot_back() -> None:
    scheduler = Scheduler(slots=1, chunk=2)
    scheduler.add(1, prompt(5))
    scheduler.plan()
    scheduler.remove(1)
    scheduler.add(2, prompt(1))
    assert scheduler.plan() == FeedPlan(step=2, slot=0, sequence=2, start=0, stop=1, last=True)


def test_a_requeued_sequence_is_fed_again_before_the_others() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.add(1, prompt(3))
    scheduler.add(2, prompt(1))
    scheduler.plan()
    scheduler.requeue(1, prompt(3))
    assert scheduler.plan() == FeedPlan(step=2, slot=0, sequence=1, start=0, stop=3, last=True)


def test_a_draining_scheduler_finishes_what_runs_and_admits_nobody() -> None:
    scheduler = Scheduler(slots=2, chunk=2)
    scheduler.add(1, prompt(3))
    scheduler.plan()
    scheduler.admitting = False
    scheduler.add(2, prompt(1))
    assert kinds(take(scheduler, 3)) == ["feed", "decode", "decode"]
    assert (scheduler.running, scheduler.waiting) == (1, 1)


def test_a_long_prefix_is_waited_for_until_its_first_row_is_seen() -> None:
    """With mixed steps a feed may be planned before the last piece of the one before it has been reported."""
    scheduler = Scheduler(slots=3, chunk=50, reuse="tokens", copies=True, mixed=True)
    system = tuple(range(100))
    scheduler.add(1, Prompt((200,)))
    first = scheduler.plan()
    assert isinstance(first, FeedPlan)
    scheduler.fed(first)
    scheduler.add(2, Prompt((*system, 201)))
    scheduler.add(3, Prompt((*system, 202)))
    pieces = [feed_of(plan) for plan in take(scheduler, 3) if plan]
    assert [(piece.start, piece.stop) for piece in pieces if piece] == [(0, 50), (50, 100), (100, 101)]
    for piece in pieces[:2]:
        assert piece is not None
        scheduler.fed(piece)
    assert scheduler.plan() == DecodePlan(step=5, live=((0, 1), (1, 2))), "the last piece may bring a bad row"
    assert pieces[2] is not None
    scheduler.fed(pieces[2])
    plan = scheduler.plan()
    assert plan is not None
    assert feed_of(plan) == FeedPlan(6, 2, 3, start=100, stop=101, last=True, reused=100, source=1)


def test_a_short_prefix_is_fed_again_rather_than_waited_for() -> None:
    scheduler = Scheduler(slots=3, chunk=30, reuse="tokens", copies=True, mixed=True)
    scheduler.add(1, Prompt((*range(40), 201)))
    scheduler.add(2, Prompt((*range(40), 202)))
    first, last = take(scheduler, 2)
    assert isinstance(first, FeedPlan)
    scheduler.fed(first)  # its tokens are there, and the row behind the last one may yet be bad
    assert last == FeedPlan(2, 0, 1, start=30, stop=41, last=True)
    plan = scheduler.plan()
    assert plan == DecodePlan(step=3, live=((0, 1),), feed=FeedPlan(3, 1, 2, start=0, stop=30, last=False))


def test_a_prefix_that_a_bad_row_stood_on_is_not_waited_for() -> None:
    scheduler = Scheduler(slots=2, chunk=200, reuse="tokens", copies=True, mixed=True)
    system = tuple(range(100))
    scheduler.add(1, Prompt((*system, 201)))
    scheduler.add(2, Prompt((*system, 202)))
    assert kinds(take(scheduler, 2)) == ["feed", "decode"]
    scheduler.requeue(1, Prompt((*system, 201)))
    plan = scheduler.plan()
    assert plan is not None
    assert feed_of(plan) == FeedPlan(3, 0, 1, start=0, stop=101, last=True)


def test_what_a_slot_holds_is_not_fed_again() -> None:
    scheduler = Scheduler(slots=1, chunk=4, reuse="tokens")
    scheduler.add(1, prompt(6))
    fed(scheduler, 2)
    scheduler.remove(1, (50, 51))
    scheduler.add(2, Prompt((0, 1, 2, 3, 4, 5, 50, 51, 9, 9, 9, 9, 9, 9)))
    pieces = [(p.start, p.stop, p.last, p.reused) for p in fed(scheduler, 3) if isinstance(p, FeedPlan)]
    assert pieces == [(8, 12, False, 8), (12, 14, True, 8)]


def test_a_prompt_that_was_cut_off_leaves_what_the_worker_has_done() -> None:
    scheduler = Scheduler(slots=1, chunk=4, reuse="tokens")
    scheduler.add(1, prompt(12))
    first, _ = scheduler.plan(), scheduler.plan()
    assert isinstance(first, FeedPlan)
    scheduler.fed(first)  # the second is still on its way
    scheduler.remove(1)
    scheduler.add(2, prompt(12))
    assert scheduler.plan() == FeedPlan(step=3, slot=0, sequence=2, start=4, stop=8, last=False, reused=4)


def test_what_a_bad_row_leaves_is_never_used() -> None:
    scheduler = Scheduler(slots=1, reuse="tokens", chunk=16)
    scheduler.add(1, prompt(6))
    fed(scheduler, 2)
    scheduler.requeue(1, prompt(6))
    assert scheduler.plan() == FeedPlan(step=3, slot=0, sequence=1, start=0, stop=6, last=True)


def test_what_a_bad_row_was_copied_from_is_never_used_again() -> None:
    scheduler = Scheduler(slots=2, reuse="tokens", chunk=64, copies=True)
    scheduler.add(1, prompt(60))
    fed(scheduler, 1)
    scheduler.remove(1, range(100, 140))
    scheduler.add(2, Prompt((*range(60), 7)))
    copied = scheduler.plan()
    assert isinstance(copied, FeedPlan)
    assert (copied.slot, copied.reused, copied.source) == (1, 60, 0)
    scheduler.fed(copied)
    scheduler.requeue(2, Prompt((*range(60), 7)))
    scheduler.add(3, Prompt((*range(60), 8)))
    plans = [plan for plan in fed(scheduler, 3) if isinstance(plan, FeedPlan)]
    assert [(plan.sequence, plan.slot, plan.start, plan.source) for plan in plans] == [(2, 0, 0, None), (3, 1, 60, 0)]
