"""What a service manager hears of a start, an exchange, a hang and a stop, on a virtual clock (docs/systemd.md)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.errors import ConfigurationError
from server.lifecycle import Lifecycle
from server.observe.systemd import Notifier

World = Any
Manager = Any
Simulate = Callable[..., World]
A, B, C = "org/a", "org/b", "org/c"
WATCHDOG_USEC = 20_000_000


async def nothing_new() -> None:
    """A reload of the same configuration."""


async def started(world: World, manager: Manager, reload: Callable[[], Awaitable[None]]) -> Lifecycle:
    """The world under a service manager that takes every message at once."""
    asyncio.get_running_loop().add_reader(manager, manager.receive)
    notifier = Notifier.of(manager.environment(WATCHDOG_USEC), os.getpid())
    lifecycle = Lifecycle(world.registry, notifier, reload)
    await world.registry.start()
    return lifecycle


@pytest.fixture
def under(simulate: Simulate, service_manager: Manager) -> Callable[..., None]:
    """under(scenario, reload=..., **of World): runs `scenario(world, lifecycle)` under `service_manager`."""

    def run(scenario: Callable[[World, Lifecycle], Any], reload: Any = nothing_new, **options: Any) -> None:
        async def whole(world: World) -> None:
            lifecycle = await started(world, service_manager, reload)
            try:
                await scenario(world, lifecycle)
            finally:
                lifecycle.close()
                asyncio.get_running_loop().remove_reader(service_manager)

        simulate(whole, start=False, **options)

    return run


def test_it_is_ready_once_when_the_first_model_serves(under: Callable[..., None], service_manager: Manager) -> None:
    async def scenario(world: World, lifecycle: Lifecycle) -> None:
        await world.until(A, "loading")
        await asyncio.sleep(1)
        assert service_manager.said("READY") == []
        await world.until(A, "available")
        await asyncio.sleep(1)
        assert service_manager.said("READY") == ["1"]
        world.registry.activate(world.model(B))
        await world.until(B, "available")
        await asyncio.sleep(1)
        assert service_manager.said("READY") == ["1"]
        status = service_manager.said("STATUS")
        assert status[-1] == f"serving {B}"
        assert f"loading {A}: weights 50%" in status
        assert f"serving {A}; staging {B}" in status

    under(scenario)


def test_a_long_load_asks_for_more_time_until_it_serves(under: Callable[..., None], service_manager: Manager) -> None:
    async def scenario(world: World, lifecycle: Lifecycle) -> None:
        await world.until(A, "available")
        await asyncio.sleep(1)
        asked = len(service_manager.said("EXTEND_TIMEOUT_USEC"))
        assert asked >= 110 / 30  # a promise of half a minute each, kept without a gap
        await asyncio.sleep(100)
        assert len(service_manager.said("EXTEND_TIMEOUT_USEC")) == asked

    under(scenario, load_s=110)


@pytest.mark.parametrize(("kind", "code"), [("configuration", os.EX_CONFIG), ("device", 1), ("exit", 1)])
def test_a_first_load_that_fails_ends_the_process(
    under: Callable[..., None], service_manager: Manager, kind: str, code: int
) -> None:
    async def scenario(world: World, lifecycle: Lifecycle) -> None:
        await world.until(A, "loading")
        world.worker(A).give_up(kind, "it is broken")
        await lifecycle.hopeless()
        assert lifecycle.exit_code == code
        await lifecycle.stop()
        await asyncio.sleep(1)
        assert service_manager.said("READY") == []
        assert {"STOPPING": "1", "STATUS": f"stopping; {A} failed: it is broken"} in service_manager.received

    under(scenario)


def test_after_the_first_it_stays_up_whatever_fails(under: Callable[..., None], service_manager: Manager) -> None:
    async def scenario(world: World, lifecycle: Lifecycle) -> None:
        hopeless = asyncio.create_task(lifecycle.hopeless())
        await world.until(A, "available")
        world.registry.activate(world.model(B))
        await world.until(B, "loading")
        world.worker(B).give_up("configuration", "it is broken")
        await world.until(B, "failed")
        await world.until(A, "available")
        world.registry.unload(world.model(A))
        await world.until(A, "unloaded")
        await asyncio.sleep(100)
        assert not hopeless.done()
        hopeless.cancel()
        assert lifecycle.exit_code == 0
        assert service_manager.said("STATUS")[-1] == f"{B} failed: it is broken"

    under(scenario)


def test_the_watchdog_is_fed_while_idle_loading_and_working(
    under: Callable[..., None], service_manager: Manager
) -> None:
    async def fed_meanwhile(act: Callable[[], Any]) -> bool:
        before = len(service_manager.said("WATCHDOG"))
        await act()
        return len(service_manager.said("WATCHDOG")) - before >= 2

    async def scenario(world: World, lifecycle: Lifecycle) -> None:
        assert await fed_meanwhile(lambda: world.until(A, "available"))
        assert await fed_meanwhile(lambda: asyncio.sleep(20))
        asked = world.ask(A, most=200)
        assert await fed_meanwhile(lambda: world.answered(asked))

    under(scenario, load_s=20)


def test_it_is_starved_when_an_engine_has_work_and_no_step(
    under: Callable[..., None], service_manager: Manager
) -> None:
    async def scenario(world: World, lifecycle: Lifecycle) -> None:
        await world.until(A, "available")
        world.ask(A, most=200)
        await asyncio.sleep(1)
        world.model(A).engine._in_flight.clear()  # a bug that no test has found yet
        fed = len(service_manager.said("WATCHDOG"))
        await asyncio.sleep(100)
        assert len(service_manager.said("WATCHDOG")) <= fed + 1

    under(scenario)


def test_it_is_starved_when_the_turns_end(under: Callable[..., None], service_manager: Manager) -> None:
    async def scenario(world: World, lifecycle: Lifecycle) -> None:
        await world.until(A, "available")
        await world.registry.close()
        fed = len(service_manager.said("WATCHDOG"))
        await asyncio.sleep(100)
        assert len(service_manager.said("WATCHDOG")) == fed

    under(scenario)


def test_a_reload_is_told_only_when_it_was_ready_before(under: Callable[..., None], service_manager: Manager) -> None:
    async def scenario(world: World, lifecycle: Lifecycle) -> None:
        await world.until(A, "loading")
        await lifecycle.reload()
        await asyncio.sleep(1)
        assert service_manager.said("READY") == service_manager.said("RELOADING") == []
        await world.until(A, "available")
        await lifecycle.reload()
        await asyncio.sleep(1)
        said = [key for message in service_manager.received for key in message if key in ("READY", "RELOADING")]
        assert said == ["READY", "RELOADING", "READY"]

    under(scenario)


@pytest.mark.parametrize(
    ("error", "said"), [(ConfigurationError("port = 'x'"), "port = 'x'"), (OSError(5), "see the server's log")]
)
def test_a_reload_that_is_refused_is_told_until_one_succeeds(
    under: Callable[..., None], service_manager: Manager, error: Exception, said: str
) -> None:
    errors = [error]

    async def reload() -> None:
        if errors:
            raise errors.pop()

    async def scenario(world: World, lifecycle: Lifecycle) -> None:
        await world.until(A, "available")
        for status in (f"serving {A}; not reloaded: {said}", f"serving {A}"):
            await lifecycle.reload()
            await asyncio.sleep(100)
            assert service_manager.said("STATUS")[-1] == status

    under(scenario, reload=reload)


def test_a_stop_asks_for_the_time_that_running_work_takes(under: Callable[..., None], service_manager: Manager) -> None:
    async def scenario(world: World, lifecycle: Lifecycle) -> None:
        await world.until(A, "available")
        asked = world.ask(A, most=200)
        await asyncio.sleep(1)
        before = len(service_manager.said("EXTEND_TIMEOUT_USEC"))
        await lifecycle.stop()
        assert asked.answered
        assert service_manager.said("STOPPING") == ["1"]
        assert len(service_manager.said("EXTEND_TIMEOUT_USEC")) - before >= 2
        assert f"stopping: 1 sequence left; serving {A}" in service_manager.said("STATUS")

    under(scenario)


def test_without_a_service_manager_a_failed_first_load_is_no_end(simulate: Simulate) -> None:
    async def scenario(world: World) -> None:
        lifecycle = Lifecycle(world.registry, Notifier(None), nothing_new)
        hopeless = asyncio.create_task(lifecycle.hopeless())
        await world.registry.start()
        await world.until(A, "loading")
        world.worker(A).give_up("exit", "it is broken")
        await world.until(A, "failed")
        await asyncio.sleep(10)
        assert not hopeless.done()
        hopeless.cancel()
        await world.until(A, "available")  # it is tried again
        assert lifecycle.exit_code == 0

    simulate(scenario, start=False)
