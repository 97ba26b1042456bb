"""Ten minutes of clients of three models, over many seeds: every request ends once, by its own model, in bounded time.

Poisson arrivals on a virtual clock, then the same with workers that die or hang, operators who interfere and clients
who leave, at any moment.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from server.errors import GenerationError, Unavailable

World = Any
Simulate = Callable[..., World]
MINUTES = 10
PROMPTS = ((5, 6, 7), (9,), (3, 1, 4, 1, 5, 9, 2, 6), (7,) * 30)
LENGTHS = (1, 5, 20, 60)
STAGE_S, TICK_S, REAP_S = 2.0, 1.0, 0.1
QUICK, MANY = range(5), range(5, 305)


def seeds(marks: Any) -> Any:
    """The fast tier's seeds, and the long tier's."""
    return pytest.mark.parametrize("seed", [*QUICK, *(pytest.param(each, marks=marks) for each in MANY)])


async def clients(world: World, rng: random.Random, gap_s: float) -> None:
    """Poisson arrivals for MINUTES; most of them for the model that is popular at the moment."""
    end = time.monotonic() + 60 * MINUTES
    names = list(world.options)
    popular = names[0]
    while (pause := rng.expovariate(1 / gap_s)) and time.monotonic() + pause < end:
        await asyncio.sleep(pause)
        popular = rng.choice(names) if rng.random() < 0.1 else popular
        name = popular if rng.random() < 0.5 else rng.choice(names)
        world.ask(name, rng.choice(PROMPTS), rng.choice(LENGTHS))


class Exchanges:
    """What a client of GET /models/events sees: when a model came, and which exchanges interrupted a working one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._since: dict[str, float] = {}
        self.forced: list[tuple[float, float]] = []  # (age of the model that must go, longest wait of the newcomer)

    async def watch(self) -> None:
        async for entry in self._world.registry.events():
            if entry.state == "available":
                self._since.setdefault(entry.id, time.monotonic())
                continue
            self._since.pop(entry.id, None)
            if entry.state == "staging" and entry.progress is None:
                self._begins(entry.id)

    def _begins(self, newcomer: str) -> None:
        now = time.monotonic()
        waits = [now - each.arrived for each in self._world.asked if each.model == newcomer and each.ended is None]
        for name, since in self._since.items():
            entry = self._world.registry.entry(self._world.model(name))
            if entry.state == "available" and entry.running:
                self.forced.append((now - since, max(waits)))


@seeds(pytest.mark.long)
def test_every_request_is_answered_by_its_own_model_in_bounded_time(simulate: Simulate, seed: int) -> None:
    rng = random.Random(seed)
    gap_s, load_s = rng.choice((4.0, 8.0, 20.0)), rng.choice((1.0, 10.0, 30.0))
    min_resident, turn_after, drain = rng.choice((0.0, 10.0)), rng.choice((15.0, 60.0)), rng.choice((0.0, 5.0, 30.0))
    seen: list[Exchanges] = []

    async def scenario(world: World) -> None:
        exchanges = Exchanges(world)
        seen.append(exchanges)
        watching = asyncio.create_task(exchanges.watch())
        await clients(world, rng, gap_s)
        await world.answered()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    world = simulate(
        scenario,
        load_s=load_s,
        step_s=0.25,
        slots=16,
        min_resident=min_resident,
        turn_after=turn_after,
        drain=drain,
        give_up=3000,
    )
    for each in world.asked:
        assert (each.error, each.tokens) == (None, world.expected(each))
    # Everybody is served after the two other models at the latest, the one that was interrupted for it included.
    exchange_s = TICK_S + STAGE_S + REAP_S + drain + load_s
    replay_s = max(LENGTHS) * 0.25
    longest = turn_after + 3 * (exchange_s + max(min_resident, load_s) + replay_s)
    assert max(each.first_token - each.arrived for each in world.asked) < longest
    # A model comes because somebody waits for it; who works is interrupted only when a turn has come.
    assert len(world.loads) <= 1 + len(world.asked)
    for age, wait in seen[0].forced:
        assert age >= min_resident
        assert wait >= turn_after
    elapsed = max(each.ended for each in world.asked) - world.loads[0][0]
    assert len(world.loads) <= 1 + elapsed / (STAGE_S + load_s)


@pytest.mark.parametrize("seed", [0, *(pytest.param(each, marks=pytest.mark.long) for each in range(1, 30))])
def test_when_all_models_always_have_work_the_exchanges_are_min_resident_apart(simulate: Simulate, seed: int) -> None:
    rng = random.Random(seed)

    async def scenario(world: World) -> None:
        await clients(world, rng, 0.4)

    world = simulate(scenario, load_s=5.0, step_s=0.5, slots=4, min_resident=20, turn_after=30, drain=5, give_up=100)
    assert len(world.asked) > 1000
    assert len(world.loads) <= 1 + 60 * MINUTES / (20 + STAGE_S + 5)
    assert {name for _, name in world.loads} == set(world.options)
    for each in world.asked:  # who was not served when the clock stopped was ended by close()
        assert each.ended is not None
        expected = world.expected(each)
        assert each.tokens == (expected if each.answered else expected[: len(each.tokens)])


@seeds(pytest.mark.long)
def test_whatever_happens_every_request_ends_and_the_server_goes_on(simulate: Simulate, seed: int) -> None:
    rng = random.Random(10_000 + seed)

    async def faults(world: World) -> None:
        """Workers die and hang at any moment; in half of the runs also more often than the budget allows."""
        while True:
            await asyncio.sleep(rng.expovariate(1 / rng.choice((15.0, 60.0))))
            if world.workers:
                worker = rng.choice(world.workers)
                rng.choice((worker.kill, worker.kill, worker.hang))()

    async def operator(world: World) -> None:
        while True:
            await asyncio.sleep(rng.expovariate(1 / 40.0))
            model = world.model(rng.choice(list(world.options)))
            rng.choice((world.registry.activate, world.registry.unload))(model)

    async def leavers(world: World) -> None:
        while True:
            await asyncio.sleep(rng.expovariate(1 / 10.0))
            waiting = [each for each in world.asked if each.ended is None]
            if waiting:
                world.leave(rng.choice(waiting))

    async def scenario(world: World) -> None:
        trouble = [asyncio.create_task(each(world)) for each in (faults, operator, leavers)]
        await clients(world, rng, rng.choice((3.0, 10.0)))
        for task in trouble:
            task.cancel()
        await asyncio.gather(*trouble, return_exceptions=True)
        await world.answered()
        await asyncio.sleep(400)  # failed models may be tried again; workers that hang were found
        last = [world.ask(name) for name in world.options]
        await world.answered()
        assert all(each.answered for each in last)
        assert sum(state == "available" for state in world.states()) == world.swap.residents

    world = simulate(
        scenario,
        load_s=rng.choice((1.0, 10.0)),
        step_s=0.25,
        drain=rng.choice((0.0, 10.0)),
        min_resident=5,
        turn_after=20,
        give_up=400,
        residents=rng.choice((1, 1, 2)),
    )
    for each in world.asked:
        expected = world.expected(each)
        if each.answered:
            assert each.tokens == expected
        else:
            assert each.left or isinstance(each.error, Unavailable | GenerationError)
            assert each.tokens == expected[: len(each.tokens)]
        assert each.ended - each.arrived < 1000
