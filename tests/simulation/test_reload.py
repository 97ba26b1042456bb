"""Another configuration for a running registry, in virtual time: what changes at once, what waits, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from models.protocol import NeuronOptions, SimulatedOptions
from server.errors import ConfigurationError, GenerationError, Overloaded, Unavailable
from server.settings import LimitSettings, ModelSettings, Settings
from server.swap.model import Model, ModelText
from server.text.chat import ChatTemplate
from server.text.tokenizer import Tokenizer

World = Any
Simulate = Callable[..., World]
A, B, C, NEW = "org/a", "org/b", "org/c", "org/new"


@pytest.fixture(autouse=True)
def _text_at_once(monkeypatch: pytest.MonkeyPatch, tiny_text_directory: Path) -> None:
    """The tokenizers of models to come would be read in a thread, which knows no virtual time."""
    tokenizer = Tokenizer.load(tiny_text_directory, "llama")
    text = ModelText(tokenizer, ChatTemplate(None, tokenizer))

    async def at_once(model: Model) -> ModelText:
        return text

    monkeypatch.setattr(Model, "text", at_once)


def with_models(world: World, *names: str, **changed: SimulatedOptions) -> Settings:
    """The world's settings with these models, in this order; one that the world does not have is like A.

    `changed` maps the last part of an id to another device."""
    settings: Settings = world.settings
    known = {model.id: model for model in settings.models}
    models = [known.get(name) or replace(known[A], id=name) for name in names]
    models = [replace(model, device=changed.get(model.id.partition("/")[2], model.device)) for model in models]
    return replace(settings, models=tuple(models))


def ids(world: World) -> list[str]:
    return [model.id for model in world.registry.models]


def test_a_model_that_is_added_is_served(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        assert world.registry.reconfigure(with_models(world, A, NEW, B)) == ()
        assert ids(world) == [A, NEW, B]
        world.options[NEW] = world.options[A]
        asked = world.ask(NEW)
        await world.answered(asked)
        assert asked.answered

    simulate(scenario)


def test_a_model_that_nobody_uses_is_gone_at_once(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        gone = world.model(B)
        world.registry.reconfigure(with_models(world, A, C))
        assert ids(world) == [A, C]
        assert world.registry.find(B) is None
        with pytest.raises(Unavailable, match="not configured any more"):
            world.registry.check(gone)
        with pytest.raises(Unavailable, match="not configured any more"):
            world.registry.activate(gone)

    simulate(scenario)


def test_the_active_model_finishes_what_runs_and_the_default_one_takes_its_place(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        running = world.ask(A, most=50)
        await asyncio.sleep(1)
        assert world.registry.reconfigure(with_models(world, B, C)) == (world.model(A),)
        assert ids(world) == [B, C, A]
        assert world.registry.active.id == B
        late = world.ask(A)
        await world.until(B, "available")
        assert running.answered
        assert isinstance(late.error, Unavailable)
        assert ids(world) == [B, C]

    simulate(scenario)


def test_a_load_of_a_model_that_is_removed_is_cancelled(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "loading")
        world.registry.reconfigure(with_models(world, B))
        await world.until(B, "available")
        assert [name for _, name in world.loads] == [A, B]
        assert ids(world) == [B]

    simulate(scenario, load_s=60)


def test_a_changed_model_that_nobody_uses_has_its_new_settings_at_once(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        old = world.model(B)
        assert world.registry.reconfigure(with_models(world, A, B, b=replace(world.options[B], slots=3))) == ()
        with pytest.raises(Unavailable, match="configured anew"):
            world.registry.check(old)
        world.registry.activate(world.model(B))
        await world.until(B, "available")
        assert world.model(B).description.slots == 3

    simulate(scenario)


def test_a_changed_model_in_use_keeps_its_settings_until_it_is_unloaded(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        old = world.model(A)
        running = world.ask(A, most=50)
        await asyncio.sleep(1)
        assert world.registry.reconfigure(with_models(world, A, B, a=replace(world.options[A], slots=3))) == (old,)
        follower = world.ask(A)
        await world.answered()
        assert running.answered
        assert follower.answered
        assert world.model(A) is old
        world.registry.unload(old)
        await world.until(A, "unloaded")
        await asyncio.sleep(0)
        world.registry.activate(world.model(A))
        await world.until(A, "available")
        assert world.model(A).description.slots == 3

    simulate(scenario)


def test_a_changed_model_takes_its_new_settings_when_another_one_has_had_its_turn(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        world.registry.reconfigure(with_models(world, A, B, a=replace(world.options[A], slots=3)))
        await world.answered(world.ask(B))
        await world.answered(world.ask(A))
        assert world.model(A).description.slots == 3

    simulate(scenario)


def test_a_first_model_that_failed_is_loaded_once_it_was_mended(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "loading")
        world.worker(A).break_down("replace")
        await world.until(A, "failed")
        world.registry.reconfigure(with_models(world, A, B, a=replace(world.options[A], slots=3)))
        await world.until(A, "available")
        assert world.model(A).description.slots == 3

    simulate(scenario)


def test_during_a_load_models_are_added_at_once_and_taken_away_afterwards(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "loading")
        world.registry.reconfigure(with_models(world, A, NEW))
        assert ids(world) == [A, NEW, B, C]
        with pytest.raises(Unavailable, match="not configured any more"):
            world.registry.check(world.model(B))
        await world.until(A, "available")
        await asyncio.sleep(1)
        assert ids(world) == [A, NEW]

    simulate(scenario)


def test_an_empty_device_stays_empty(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        world.registry.unload(world.model(A))
        await world.until(A, "unloaded")
        world.registry.reconfigure(with_models(world, B, C))
        await asyncio.sleep(30)
        assert {model.state for model in world.registry.models} == {"unloaded"}
        assert world.registry.active.id == B

    simulate(scenario)


def test_the_rules_of_an_exchange_and_the_limits_hold_at_once(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        settings = replace(
            world.settings,
            swap=replace(world.swap, on_request=False),
            limits=LimitSettings(max_input_tokens=7, max_concurrent_requests=2),
        )
        world.registry.reconfigure(settings)
        assert world.model(A).limits.max_input_tokens == 7
        with pytest.raises(Overloaded), world.registry.permit(3):
            pass
        world.ask(B)
        await asyncio.sleep(60)
        assert world.state(B) == "unloaded"
        world.registry.activate(world.model(B))
        await world.answered()

    simulate(scenario)


def test_models_that_do_not_fit_are_refused_and_nothing_changes(simulate: Simulate, llama3_directory: Path) -> None:
    async def scenario(world: World) -> None:
        await world.until(A, "available")
        before = world.registry.models
        too_large = ModelSettings(
            id=NEW, path=str(llama3_directory), device=NeuronOptions(slots=64, n_positions=8192, token_buckets=(8192,))
        )
        wanted = replace(world.settings, models=(too_large,), limits=LimitSettings(max_input_tokens=7))
        with pytest.raises(ConfigurationError, match="org/new cannot be served"):
            world.registry.reconfigure(wanted)
        assert world.registry.models == before
        assert world.model(A).limits.max_input_tokens != 7
        asked = world.ask(A)
        await world.answered(asked)
        assert asked.answered

    simulate(scenario)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 150))])
def test_reloads_in_the_middle_of_everything(simulate: Simulate, seed: int) -> None:
    """Every request ends, with its answer or told why not; the last configuration holds in the end, and serves."""
    rng = random.Random(seed)

    async def scenario(world: World) -> None:
        for _ in range(rng.randrange(5, 40)):
            await asyncio.sleep(rng.choice((0, 0.02, 0.3, 3, 12)))
            await _something(world, rng)
        await world.answered()
        assert {type(each.error) for each in world.asked} <= {type(None), Unavailable, GenerationError}
        world.registry.reconfigure(world.settings)
        for name in (A, B, C, A):
            await asyncio.sleep(70)  # one that failed may be tried again
            asked = world.ask(name)
            await world.answered(asked)
            assert asked.error is None
            assert asked.tokens == world.expected(asked)
        await asyncio.sleep(5)
        assert [model.settings for model in world.registry.models] == list(world.settings.models)
        assert world.registry.active is world.model(A)

    residents = rng.choice((1, 1, 2))
    simulate(scenario, turn_after=5, min_resident=1, load_s=3.0, drain=rng.choice((0, 2, 30)), residents=residents)


async def _something(world: World, rng: random.Random) -> None:
    """What clients, operators and the device may do, and a reload as often as all of them."""
    model = rng.choice(world.registry.models)
    happens = rng.randrange(8)
    if happens < 4:
        names = rng.sample((A, B, C), rng.randrange(1, 4))
        changed = {name[-1]: replace(world.options[name], slots=rng.randrange(1, 5)) for name in rng.sample(names, 1)}
        world.registry.reconfigure(with_models(world, *names, **changed))
    elif happens < 6:
        world.ask(model.id, most=rng.choice((3, 30, 100)))
    elif happens == 6 and world.workers:
        rng.choice(world.workers).kill()
    elif rng.random() < 0.5:
        world.registry.unload(model)
    else:
        with contextlib.suppress(Unavailable):
            world.registry.activate(model)
