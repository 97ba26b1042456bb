"""A whole registry on a virtual clock: the loop jumps to its next timer, and workers run in process.

Everything above the process boundary is real (registry, policy, device, supervisor, engine), and so are the worker's
steps and the simulated device below it; only the process and its socket are replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import selectors
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

import server.supervisor
from models.protocol import (
    Command,
    Decode,
    Feed,
    Load,
    Progress,
    Ready,
    Remedy,
    Report,
    SamplingParams,
    SimulatedOptions,
    Stage,
    Staged,
    Start,
)
from models.simulated import SimulatedBackend
from models.steps import Steps
from server.core import Request, Timings
from server.engine.generation import Generation
from server.errors import ServeError
from server.observe.metrics import Metrics
from server.settings import ModelSettings, Settings, SwapSettings, WorkerSettings
from server.swap.model import Model
from server.swap.registry import Registry
from server.worker_process import WorkerLost

REAP_S = 0.05
LONGEST_S = 3600  # of virtual time
NAMES = ("org/a", "org/b", "org/c")
GREEDY = SamplingParams()


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits for a timer: the clock is set to it instead."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0)
        if not ready:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop on virtual time."""

    def __init__(self) -> None:
        self.clock = _JumpingSelector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def _stamped(options: SimulatedOptions) -> SimulatedOptions:
    """The device of `options`, with times that pass on the virtual clock only."""
    return msgspec.structs.replace(options, load_s=0.0, step_s=0.0, prefill_token_s=0.0)


class InlineWorker:
    """server.worker_process.WorkerProcess as the supervisor sees it, over the real steps of the simulated device."""

    def __init__(self, world: World, on_report: Callable[[Report], None]) -> None:
        self._world = world
        self._on_report = on_report
        self._timers: set[asyncio.TimerHandle] = set()
        self._commands: deque[Feed | Decode] = deque()
        self._steps: Steps | None = None
        self._hangs = False
        self.model = ""
        self.phase = "spawned"
        self.lost: asyncio.Future[WorkerLost] = asyncio.get_running_loop().create_future()
        world.workers.append(self)

    @property
    def pid(self) -> int:
        return 1 + self._world.spawned

    def send(self, command: Command) -> None:
        if self.lost.done():
            return
        if isinstance(command, Stage):
            assert isinstance(command.options, SimulatedOptions)
            self._options, self.model, self.phase = command.options, command.model, "staging"
            self._backend = SimulatedBackend(Path(command.directory), _stamped(command.options))
            self._later(self._world.stage_s, self._staged)
        elif isinstance(command, Load):
            self.phase = "loading"
            self._world.take_device(self)
            self._later(self._options.load_s / 2, lambda: self._on_report(Progress("weights", 1, 2)))
            self._later(self._options.load_s, self._ready)
        else:
            assert isinstance(command, Feed | Decode)
            self._commands.append(command)
            if len(self._commands) == 1:
                self._later(self._options.step_s, self._step)

    def give_up(self, kind: Any, message: str) -> None:
        self._end(WorkerLost(kind, message))

    def break_down(self, remedy: Remedy) -> None:
        """Its device fails, and only `remedy` helps."""
        self._end(WorkerLost("device", "the device is broken", remedy))

    def kill(self) -> None:
        """SIGKILL, seen at once."""
        self._end(WorkerLost("exit", "the device worker was ended by signal 9 (Killed)"))

    def hang(self) -> None:
        """It never answers again."""
        self._hangs = True
        self._cancel_timers()

    async def close(self, grace_s: float = 5.0) -> None:
        self._end(WorkerLost("exit", "closed"))
        await asyncio.sleep(grace_s if self._hangs else REAP_S)
        if self in self._world.workers:
            self._world.workers.remove(self)

    def _staged(self) -> None:
        self._backend.stage(lambda *_: None)
        self.phase = "staged"
        self._on_report(Staged())

    def _ready(self) -> None:
        description = self._backend.load(lambda *_: None)
        self._steps = Steps(self._backend)
        self.phase = "serving"
        self._on_report(Ready(msgspec.structs.replace(description, step_s=(self._options.step_s,))))

    def _step(self) -> None:
        assert self._steps is not None
        report = self._steps.run(self._commands.popleft())
        if self._commands:
            self._later(self._options.step_s, self._step)
        self._on_report(report)

    def _later(self, delay: float, act: Callable[[], None]) -> None:
        if not self._hangs:
            handle = asyncio.get_running_loop().call_later(delay, lambda: (self._timers.discard(handle), act()))
            self._timers.add(handle)

    def _end(self, reason: WorkerLost) -> None:
        self._cancel_timers()
        if not self.lost.done():
            self.lost.set_result(reason)

    def _cancel_timers(self) -> None:
        for handle in self._timers:
            handle.cancel()
        self._timers.clear()


class Asked:
    """A request, and how it ended: `tokens` or `error`, never both."""

    def __init__(self, model: str, prompt: tuple[int, ...], most: int, arrived: float) -> None:
        self.model, self.prompt, self.most, self.arrived = model, prompt, most, arrived
        self.first_token: float | None = None
        self.ended: float | None = None
        self.tokens: list[int] = []
        self.error: ServeError | None = None
        self.left = False
        self.generation: Generation | None = None
        self.reader: asyncio.Task[None] | None = None

    @property
    def answered(self) -> bool:
        return self.ended is not None and self.error is None and not self.left


class World:
    """Simulated models, each of a vocabulary of its own, which stamps its answers; all without the end token, 255."""

    def __init__(
        self,
        directory: Path,
        *,
        stage_s: float = 2.0,
        load_s: float = 10.0,
        step_s: float = 0.1,
        slots: int = 8,
        models: int = 3,
        pinned: tuple[str, ...] = (),
        worker: WorkerSettings | None = None,
        **swap: Any,
    ) -> None:
        self.stage_s = stage_s
        self.swap = SwapSettings(**swap)
        self.options = {
            name: SimulatedOptions(
                vocab_size=250 - 6 * i,
                slots=slots,
                n_positions=256,
                step_s=step_s,
                load_s=load_s,
                chunk=64,
                mixed=i == 1,
            )
            for i, name in enumerate(NAMES[:models])
        }
        self.settings = Settings(
            models=tuple(
                ModelSettings(id=name, path=str(directory), device=device, pinned=name in pinned)
                for name, device in self.options.items()
            ),
            swap=self.swap,
            worker=worker or WorkerSettings(stage_timeout=60, load_timeout=120),
        )
        self.workers: list[InlineWorker] = []
        self.spawned = 0
        self.loads: list[tuple[float, str]] = []
        self.asked: list[Asked] = []
        self._asking: set[asyncio.Task[None]] = set()
        self.registry: Registry

    # --- what the supervisor calls in place of WorkerProcess

    async def spawn(self, python: str, on_report: Callable[[Report], None]) -> InlineWorker:
        await asyncio.sleep(0.01)
        self.spawned += 1
        return InlineWorker(self, on_report)

    def take_device(self, worker: InlineWorker) -> None:
        """The one rule of the device: no more models than it has room for, the gone ones reaped before."""
        there = [each for each in self.workers if each.phase in ("loading", "serving")]
        assert len(there) <= self.swap.residents, [(each.model, each.phase) for each in there]
        self.loads.append((time.monotonic(), worker.model))

    # --- what a test does

    def model(self, name: str) -> Model:
        found = self.registry.find(name)
        assert found is not None
        return found

    def state(self, name: str) -> str:
        return self.registry.entry(self.model(name)).state

    def states(self) -> tuple[str, ...]:
        return tuple(self.state(name) for name in self.options)

    def worker(self, name: str) -> InlineWorker:
        """The youngest worker of this model."""
        return next(each for each in reversed(self.workers) if each.model == name)

    def ask(self, name: str, prompt: tuple[int, ...] = (5, 6, 7), most: int = 10) -> Asked:
        """A client of `name`, who reads its answer in a task of its own."""
        asked = Asked(name, prompt, most, time.monotonic())
        self.asked.append(asked)
        asked.reader = asyncio.create_task(self._read(asked))
        self._asking.add(asked.reader)
        asked.reader.add_done_callback(self._asking.discard)
        return asked

    async def answered(self, *asked: Asked) -> None:
        """Wait until these requests (by default all) have ended."""
        await self._while(lambda: any(each.ended is None for each in asked or self.asked))

    async def until(self, name: str, *states: str) -> None:
        """Wait until the model is in one of these states."""
        await self._while(lambda: self.state(name) not in states)

    async def _while(self, condition: Callable[[], bool]) -> None:
        while True:
            if not condition():
                return
            await asyncio.sleep(0.05)

    def expected(self, asked: Asked) -> list[int]:
        """What its own model answers to this request when it runs alone."""
        return list(_alone(_stamped(self.options[asked.model]), asked.prompt, asked.most))

    async def _read(self, asked: Asked) -> None:
        request = Request(model=asked.model, prompt=asked.prompt, text="", max_new_tokens=asked.most, sampling=GREEDY)
        try:
            timings = Timings(time.monotonic())
            generation = await self.registry.submit(self.model(asked.model), request, timings)
            asked.generation = generation
            async for output in generation:
                asked.first_token = asked.first_token or time.monotonic()
                asked.tokens.append(output.token.id)
        except ServeError as error:
            asked.error = error
        assert asked.ended is None
        asked.ended = time.monotonic()

    def leave(self, asked: Asked) -> None:
        """The client goes."""
        if asked.ended is None and asked.generation is not None:
            assert asked.reader is not None
            asked.left = True
            asked.generation.cancel()
            asked.reader.cancel()
            self._asking.discard(asked.reader)
            asked.ended = time.monotonic()

    async def end(self) -> None:
        await self.registry.close()
        await asyncio.wait_for(asyncio.gather(*self._asking), 1)  # close() has ended every request of who stayed


@cache
def _alone(options: SimulatedOptions, prompt: tuple[int, ...], most: int) -> tuple[int, ...]:
    backend = SimulatedBackend(Path(), options)
    backend.stage(lambda *_: None)
    backend.load(lambda *_: None)
    steps = Steps(backend)
    start = Start(sampling=GREEDY, eos=(), max_new_tokens=most)
    drawn = list(steps.run(Feed(step=1, slot=0, sequence=1, tokens=prompt, start=start)).drawn)
    while not drawn[-1].finish:
        drawn += steps.run(Decode(step=1 + len(drawn), live=((0, 1),))).drawn
    return tuple(each.token for each in drawn)


@pytest.fixture
def llama3_directory(tmp_path: Path) -> Path:
    """The config.json of Llama 3 8B, which is all that the planner reads."""
    shapes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    llama3 = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 8, **shapes}
    llama3 |= {"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 5e5, "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(llama3))
    return tmp_path


Scenario = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def simulate(tiny_text_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """simulate(scenario, start=True, **of World): runs `scenario(world)` to its end; nothing may be left over then."""

    def run(scenario: Scenario, *, start: bool = True, **options: Any) -> World:
        loop = VirtualLoop()
        monkeypatch.setattr(time, "monotonic", loop.time)
        world = World(tiny_text_directory, **options)
        monkeypatch.setattr(server.supervisor.WorkerProcess, "spawn", world.spawn)
        try:
            loop.run_until_complete(_live(world, scenario, start))
            left = [task for task in asyncio.all_tasks(loop) if not task.done()]
            assert left == []
            assert world.workers == []
        finally:
            monkeypatch.undo()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
        return world

    return run


async def _live(world: World, scenario: Scenario, start: bool) -> None:
    world.registry = Registry(world.settings, Metrics())
    for model in world.registry.models:
        await model.text()  # in a thread, which knows no virtual time
    async with _ended(world):
        if start:
            await world.registry.start()
        await asyncio.wait_for(scenario(world), LONGEST_S)


@contextlib.asynccontextmanager
async def _ended(world: World) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await world.end()
