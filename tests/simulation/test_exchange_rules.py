"""The rules of an exchange, one by one, on a virtual clock (docs/architecture.md, Exchanging models)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from server.errors import CutByStop, GenerationError, Unavailable
from server.settings import WorkerSettings

World = Any
Simulate = Callable[..., World]
A, B, C = "org/a", "org/b", "org/c"


def right(world: World, *asked: Any) -> bool:
    return all(each.error is None and each.tokens == world.expected(each) for each in asked)


# --- a load that nobody waits for


@pytest.mark.parametrize("moment", ["staging", "draining", "loading"])
def test_a_load_whose_requests_have_all_left_is_cancelled_and_the_old_model_stays_or_comes_back(
    simulate: Simulate, moment: str
) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long = world.ask(A, most=150) if moment == "draining" else None
        await asyncio.sleep(1)
        leaver = world.ask(B)
        await world.until(*((A, "draining") if moment == "draining" else (B, moment)))
        await asyncio.sleep(0.5)
        loads = len(world.loads)
        world.leave(leaver)
        await world.until(B, "unloaded")
        assert world.registry.unhealthy() is None
        assert world.registry.active.id == A
        await world.until(A, "available")
        assert len(world.loads) == loads + (moment == "loading")
        if long is not None:
            await world.answered(long)
            assert right(world, long)
        follower = world.ask(A)
        await world.answered(follower)
        assert right(world, follower)

    simulate(scenario, turn_after=5, min_resident=1)


def test_a_load_that_an_operator_asked_for_needs_nobody_to_wait(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        world.registry.activate(world.model(B))
        leaver = world.ask(B)
        await world.until(B, "loading")
        world.leave(leaver)
        await world.registry.settled(world.model(B))
        assert world.states() == ("unloaded", "available", "unloaded")

    simulate(scenario)


# --- who decides


def test_the_last_activate_decides(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        world.registry.activate(world.model(B))
        await world.until(B, "staging")
        world.registry.activate(world.model(C))
        await world.registry.settled(world.model(B))
        assert world.state(B) == "unloaded"
        await world.registry.settled(world.model(C))
        assert world.states() == ("unloaded", "unloaded", "available")
        assert [name for _, name in world.loads] == [A, C]

    simulate(scenario)


def test_activating_the_old_model_calls_the_exchange_off(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        world.registry.activate(world.model(B))
        await world.until(B, "staging")
        world.registry.activate(world.model(A))
        await world.registry.settled(world.model(A))
        assert world.registry.active.id == A
        await world.until(B, "unloaded")
        assert [name for _, name in world.loads] == [A]

    simulate(scenario)


def test_activating_a_working_model_calls_the_exchange_off_although_requests_wait_for_the_other(
    simulate: Simulate,
) -> None:
    """They get their turn when it has come, as if nobody had asked for their model."""

    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long, waiting = world.ask(A, most=100), world.ask(B)
        await asyncio.sleep(1)
        world.registry.activate(world.model(B))
        await world.until(B, "staging")
        world.registry.activate(world.model(A))
        await world.until(B, "unloaded")
        await world.answered(long)
        assert [name for _, name in world.loads] == [A]
        await world.answered(waiting)
        assert right(world, long, waiting)

    simulate(scenario, turn_after=60, drain=0)


def test_activating_an_idle_model_does_not_hold_up_those_who_wait_for_the_other(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        waiting = world.ask(B)
        await world.until(B, "staging")
        world.registry.activate(world.model(A))
        await world.answered(waiting)
        assert right(world, waiting)
        assert world.spawned == 2

    simulate(scenario)


def test_an_activate_that_is_taken_back_and_given_again_holds(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        world.registry.activate(world.model(B))
        await world.until(B, "staging")
        world.registry.unload(world.model(B))
        world.registry.activate(world.model(B))
        await world.registry.settled(world.model(B))
        assert world.states() == ("unloaded", "available", "unloaded")

    simulate(scenario)


def test_requests_wait_through_an_activate_of_another_model_and_get_their_turn(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        waiting = world.ask(B)
        await world.until(B, "loading")
        world.registry.activate(world.model(C))
        await world.until(C, "available")
        await world.answered(waiting)
        assert right(world, waiting)

    simulate(scenario)


def test_a_pinned_model_leaves_for_an_operator_alone(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        refused = world.ask(B)
        await world.answered(refused)
        assert isinstance(refused.error, Unavailable)
        assert refused.ended - refused.arrived == pytest.approx(100, abs=2)
        assert world.loads == [world.loads[0]]
        world.registry.activate(world.model(B))
        await world.registry.settled(world.model(B))
        assert world.states() == ("unloaded", "available", "unloaded")

    simulate(scenario, pinned=(A,), give_up=100)


def test_without_on_request_a_request_waits_for_an_operator(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        waiting = world.ask(B)
        await asyncio.sleep(200)
        assert world.states() == ("available", "unloaded", "unloaded")
        world.registry.activate(world.model(B))
        await world.answered(waiting)
        assert right(world, waiting)

    simulate(scenario, on_request=False)


def test_an_idle_model_gives_way_in_the_moment_in_which_another_is_asked_for(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        for _ in range(3):  # whatever the place in the registry's own beat of a second
            await asyncio.sleep(0.37)
            leaver = world.ask(B)
            await asyncio.sleep(0.02)
            assert world.state(B) == "staging"
            world.leave(leaver)
            await world.until(B, "unloaded")
            assert time.monotonic() - leaver.ended < 0.5

    simulate(scenario)


def test_a_title_and_a_chat_of_other_models_in_the_same_moment_cost_one_load_each(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        title, chat = world.ask(C), world.ask(B)
        await world.answered()
        assert right(world, title, chat)
        assert sorted(name for _, name in world.loads) == [A, B, C]

    simulate(scenario)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 60))])
def test_a_storm_of_activates_ends_with_the_last_one_and_loses_nobody(simulate: Simulate, seed: int) -> None:
    rng = random.Random(seed)

    async def scenario(world: World) -> None:
        for _ in range(200):
            await asyncio.sleep(rng.choice((0, 0, 0.01, 0.05, 0.5, 3, 8)))
            last = world.model(rng.choice((A, B, C)))
            world.registry.activate(last)
            if rng.random() < 0.2:
                world.ask(rng.choice((A, B, C)), most=rng.choice((1, 20, 100)))
        await world.registry.settled(last)
        assert last.state == "available"
        assert world.registry.active is last or world.registry.queued > 0
        await world.answered()
        assert right(world, *world.asked)

    simulate(scenario, turn_after=5, min_resident=1, drain=rng.choice((0, 2)), residents=rng.choice((1, 2)))


# --- bounds


def test_a_working_model_keeps_the_device_until_the_turn_of_the_others_has_come(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        stream = [world.ask(A, most=240) for _ in range(8)]
        behind = [world.ask(A, most=240) for _ in range(20)]
        waiting = world.ask(B)
        await world.until(B, "staging")
        assert time.monotonic() - waiting.arrived == pytest.approx(60, abs=2)
        late = world.ask(A)
        await world.answered()
        assert waiting.first_token < late.first_token
        assert right(world, *stream, *behind, waiting, late)

    simulate(scenario, turn_after=60, min_resident=10, drain=5)


def test_a_stream_that_ends_within_the_drain_is_not_parked(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        short = world.ask(A, most=60)
        await asyncio.sleep(1)
        world.registry.activate(world.model(B))
        await world.until(A, "draining")
        await world.answered(short)
        await world.registry.settled(world.model(B))
        assert short.ended < world.loads[-1][0]
        assert right(world, short)

    simulate(scenario, drain=30)


def test_a_parked_sequence_gives_others_a_turn_and_then_comes_back_with_its_own_tokens(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long = world.ask(A, most=200)
        await asyncio.sleep(5)
        seen = len(long.tokens)
        world.registry.activate(world.model(B))
        await world.registry.settled(world.model(B))
        assert seen < len(long.tokens) < 200
        assert world.registry.entry(world.model(A)).parked == 1
        await world.answered(long)
        assert right(world, long)

    simulate(scenario, drain=2)


def test_a_request_that_nobody_can_serve_ends_after_give_up(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        waiting = world.ask(A)
        await world.answered(waiting)
        assert isinstance(waiting.error, Unavailable)
        assert waiting.error.retry_after_s == 60
        assert waiting.ended - waiting.arrived == pytest.approx(50, abs=2)

    simulate(scenario, load_s=100.0, give_up=50)


# --- unload


@pytest.mark.parametrize("moment", ["staging", "loading"])
def test_unload_cancels_a_model_on_its_way_and_ends_its_requests(simulate: Simulate, moment: str) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        waiting = world.ask(B)
        await world.until(B, moment)
        world.registry.unload(world.model(B))
        await world.answered(waiting)
        assert isinstance(waiting.error, Unavailable)
        await world.until(A, "available")
        await asyncio.sleep(100)
        assert world.states() == ("available", "unloaded", "unloaded")

    simulate(scenario)


def test_unload_drains_and_leaves_the_device_empty_until_somebody_asks(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        short, long = world.ask(A, most=20), world.ask(A, most=240)
        await asyncio.sleep(1)
        world.registry.unload(world.model(A))
        await world.until(A, "unloaded")
        await world.answered(short, long)
        assert right(world, short)
        assert isinstance(long.error, Unavailable)
        await asyncio.sleep(100)
        assert world.states() == ("unloaded", "unloaded", "unloaded")
        assert world.registry.unhealthy() == "org/a is unloaded"
        later = world.ask(A)
        await world.answered(later)
        assert right(world, later)

    simulate(scenario, drain=5)


@pytest.mark.parametrize("moment", ["staging", "loading"])
def test_unload_of_the_old_model_during_an_exchange_leaves_the_new_one_alone(simulate: Simulate, moment: str) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        waiting = world.ask(B)
        await world.until(B, moment)
        world.registry.unload(world.model(A))
        await world.answered(waiting)
        await asyncio.sleep(30)
        assert right(world, waiting)
        assert world.states() == ("unloaded", "available", "unloaded")

    simulate(scenario)


# --- failures


@pytest.mark.parametrize("moment", ["staging", "draining", "loading"])
@pytest.mark.parametrize("fault", ["kill", "hang"])
def test_a_newcomer_that_dies_leaves_the_old_model_serving(simulate: Simulate, moment: str, fault: str) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long = world.ask(A, most=200)
        waiting = world.ask(B)
        await world.until(*((A, "draining") if moment == "draining" else (B, moment)))
        await asyncio.sleep(0.5)
        getattr(world.worker(B), fault)()
        await world.answered()
        assert isinstance(waiting.error, Unavailable)
        assert right(world, long)
        assert world.state(B) == "failed"
        await world.until(A, "available")
        assert world.registry.active.id == A
        assert world.registry.unhealthy() is None

    simulate(scenario, turn_after=5, min_resident=1, drain=3)


@pytest.mark.parametrize("moment", ["staging", "draining"])
@pytest.mark.parametrize("fault", ["kill", "hang"])
def test_an_old_worker_that_dies_during_an_exchange_loses_no_request(
    simulate: Simulate, moment: str, fault: str
) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long = world.ask(A, most=200)
        waiting = world.ask(B)
        await world.until(*((A, "draining") if moment == "draining" else (B, moment)))
        await asyncio.sleep(0.5)
        getattr(world.worker(A), fault)()
        await world.answered()
        assert right(world, long, waiting)

    simulate(scenario, turn_after=5, min_resident=1, drain=3)


def test_an_old_worker_that_hangs_while_it_drains_is_noticed_however_long_the_drain(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long = world.ask(A, most=200)
        world.registry.activate(world.model(B))
        await world.until(A, "draining")
        await asyncio.sleep(0.5)
        world.worker(A).hang()
        hung = time.monotonic()
        await world.until(B, "available")
        assert time.monotonic() - hung < 100
        await world.answered(long)
        assert right(world, long)

    simulate(scenario, drain=3000)


def test_a_failed_model_is_tried_again_after_a_minute_or_by_activate_at_once(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        for retry in ("activate", "wait"):
            failing = world.ask(B)
            await world.until(B, "loading")
            world.worker(B).kill()
            await world.answered(failing)
            assert isinstance(failing.error, Unavailable)
            refused = world.ask(B)
            await world.answered(refused)
            assert (refused.error.status, refused.error.retry_after_s) == (503, 60)
            assert refused.ended == refused.arrived
            if retry == "activate":
                world.registry.activate(world.model(B))
                await world.registry.settled(world.model(B))
                assert world.state(B) == "available"
                world.registry.activate(world.model(A))
                await world.registry.settled(world.model(A))
            else:
                await asyncio.sleep(61)
        served = world.ask(B)
        await world.answered(served)
        assert right(world, served)

    simulate(scenario)


@pytest.mark.parametrize("moment", ["loading", "available"])
@pytest.mark.parametrize("remedy", ["reboot", "replace"])
def test_a_model_whose_machine_is_at_fault_is_tried_again_by_activate_only(
    simulate: Simulate, moment: str, remedy: str
) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, moment)
        world.worker(A).break_down(remedy)
        await world.until(A, "failed")
        loads = len(world.loads)
        await asyncio.sleep(600)
        refused = world.ask(A)
        await world.answered(refused)
        assert (refused.error.status, refused.error.retry_after_s) == (503, None)
        assert "the device is broken" in refused.error.text
        assert (world.state(A), len(world.loads)) == ("failed", loads)
        world.registry.activate(world.model(A))
        await world.registry.settled(world.model(A))
        served = world.ask(A)
        await world.answered(served)
        assert right(world, served)

    simulate(scenario)


def test_a_model_whose_configuration_is_at_fault_is_tried_again_after_a_minute(simulate: Simulate) -> None:
    """The artifact or the checkpoint that it lacked may be there by then."""

    async def scenario(world: World) -> None:
        await world.until(A, "loading")
        world.worker(A).break_down("configuration")
        await world.until(A, "failed")
        failed_at = time.monotonic()
        await world.until(A, "available")
        assert time.monotonic() - failed_at > 60

    simulate(scenario)


def test_a_default_model_that_fails_at_start_is_tried_again_by_itself(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "loading")
        world.worker(A).kill()
        await world.until(A, "failed")
        assert world.registry.unhealthy().startswith("org/a is failed")
        failed_at = time.monotonic()
        await world.until(A, "available")
        assert time.monotonic() - failed_at > 60

    simulate(scenario)


def test_a_spent_restart_budget_ends_the_requests_with_a_typed_error_and_others_go_on(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long = world.ask(A, most=200)
        for _ in range(2):
            await world.until(A, "available")
            await asyncio.sleep(2)
            world.worker(A).kill()
            await world.until(A, "loading", "failed")
        await world.answered(long)
        assert isinstance(long.error, GenerationError)
        assert world.state(A) == "failed"
        other = world.ask(B)
        await world.answered(other)
        assert right(world, other)
        assert world.registry.active.id == B

    simulate(scenario, worker=WorkerSettings(restarts=1))


def test_a_keeper_that_raises_fails_its_model_loudly(
    simulate: Simulate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long = world.ask(A, most=200)
        await asyncio.sleep(1)
        description, supervisor = world.model(A).description, world.registry._device.residents[0].supervisor
        supervisor.description = None  # a bug: the deadline of the running step cannot be told
        assert description is not None
        await world.answered(long)
        assert isinstance(long.error, GenerationError)
        assert world.state(A) == "failed"
        other = world.ask(B)
        await world.answered(other)
        assert right(world, other)

    simulate(scenario)
    assert "keeping org/a on the device failed" in caplog.text


# --- the end


@pytest.mark.parametrize("after", [0.0, 0.005, 1.0, 2.5, 12.5, 13.0, 15.0, 16.0, 18.0, 22.0, 26.0, 30.0])
def test_close_at_any_moment_ends_every_worker_and_every_request(simulate: Simulate, after: float) -> None:
    async def scenario(world: World) -> None:
        world.ask(A, most=240)
        waiting = world.ask(B)
        await asyncio.sleep(after)
        await world.registry.close()
        await world.answered()
        assert world.workers == []
        assert isinstance(waiting.error, CutByStop) or right(world, waiting)
        assert [entry async for entry in world.registry.events()] != []  # and that stream ends

    simulate(scenario, turn_after=1, min_resident=1, drain=6)


@pytest.mark.parametrize("moment", ["staging", "draining", "loading"])
def test_a_graceful_stop_during_an_exchange_finishes_what_the_device_can_run(simulate: Simulate, moment: str) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long = world.ask(A, most=200)
        waiting = world.ask(B)
        await world.until(*((A, "draining") if moment == "draining" else (B, moment)))
        await world.registry.stop_gracefully()
        await world.answered()
        served, refused = (waiting, long) if moment == "loading" else (long, waiting)
        assert right(world, served)
        assert isinstance(refused.error, Unavailable)
        with pytest.raises(Unavailable):
            world.registry.check(world.model(A))

    simulate(scenario, turn_after=1, min_resident=1, drain=3)


def test_a_graceful_stop_does_not_wait_for_a_model_whose_worker_has_just_gone(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long, waiting = world.ask(A, most=200), world.ask(B)
        await world.until(A, "draining")
        for _ in range(1000):
            if world.registry.entry(world.model(A)).parked:
                break
            await asyncio.sleep(0.01)
        assert world.state(A) == "draining", "its worker is being reaped"
        stopped = time.monotonic()
        await world.registry.stop_gracefully()
        await world.answered()
        assert time.monotonic() - stopped < 1
        assert isinstance(long.error, Unavailable)
        assert isinstance(waiting.error, Unavailable)

    simulate(scenario, turn_after=1, min_resident=1, drain=3)


def test_a_stop_in_the_moment_in_which_an_exchange_was_chosen_interrupts_nobody(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long = world.ask(A, most=200)
        await asyncio.sleep(1)
        world.registry.activate(world.model(B))
        world.registry._look()
        await world.registry.stop_gracefully()
        await world.answered()
        assert right(world, long)
        assert world.spawned == 1

    simulate(scenario, drain=0)


def test_nothing_is_activated_while_the_server_stops(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        await world.registry.stop_gracefully()
        with pytest.raises(Unavailable, match="stopping"):
            world.registry.activate(world.model(B))

    simulate(scenario)


# --- health of one model


def test_a_model_is_healthy_when_requests_for_it_are_served(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        def healthy() -> list[bool]:
            return [world.registry.unhealthy(model) is None for model in world.registry.models]

        assert healthy() == [False, False, False]
        await world.until(A, "available")
        assert healthy() == [True, True, True], "the others come when they are asked for"
        failing = world.ask(B)
        await world.until(B, "loading")
        assert healthy() == [True, True, True]
        world.worker(B).kill()
        await world.answered(failing)
        await world.until(A, "available")
        assert world.registry.unhealthy(world.model(B)).startswith("org/b is failed: the device worker was ended")
        assert world.registry.unhealthy() is None

    simulate(scenario)


def test_a_model_is_healthy_beside_a_default_that_failed(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "loading")
        world.worker(A).kill()
        await world.until(A, "failed")
        assert world.registry.unhealthy(world.model(A)).startswith("org/a is failed")
        assert world.registry.unhealthy(world.model(B)) is None
        waiting = world.ask(B)
        await world.answered(waiting)
        assert right(world, waiting)

    simulate(scenario)


def test_without_on_request_a_model_is_healthy_while_it_is_there(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        assert world.registry.unhealthy(world.model(A)) is None
        assert world.registry.unhealthy(world.model(B)) == "org/b is unloaded"

    simulate(scenario, on_request=False)


def test_without_on_request_a_request_fills_an_empty_device(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        world.registry.unload(world.model(A))
        await world.until(A, "unloaded")
        assert world.registry.unhealthy(world.model(B)) is None, "it comes when it is asked for"
        waiting = world.ask(B)
        await world.answered(waiting)
        assert right(world, waiting)
        assert world.registry.unhealthy(world.model(A)) == "org/a is unloaded"

    simulate(scenario, on_request=False)


# --- residents


def test_residents_answer_side_by_side_and_a_switch_between_them_costs_nothing(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        long = world.ask(A, most=200)
        beside = world.ask(B)
        await world.answered(beside)
        assert long.ended is None
        assert world.states() == ("available", "available", "unloaded")
        assert world.registry.active.id == B
        world.registry.activate(world.model(A))
        assert world.registry.active.id == A  # at once
        await world.answered(long)
        assert right(world, long, beside)
        assert len(world.loads) == 2

    simulate(scenario, residents=2)


def test_the_least_recently_used_resident_leaves_for_a_third_model(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        for name in (A, B, A):
            await world.answered(world.ask(name))
        third = world.ask(C)
        await world.answered(third)
        assert world.states() == ("available", "unloaded", "available")
        assert right(world, third)

    simulate(scenario, residents=2)


def test_a_third_model_that_fails_gives_its_place_back(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        for name in (A, B):
            await world.answered(world.ask(name))
        third = world.ask(C)
        await world.until(C, "loading")
        world.worker(C).kill()
        await world.answered(third)
        await world.until(A, "available")
        assert world.states() == ("available", "available", "failed")

    simulate(scenario, residents=2)
