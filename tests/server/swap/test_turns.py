"""Whose turn it is as the models stand: what requests, failures and settings make of them, on a clock that is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from models.protocol import (
    Command,
    Decode,
    Feed,
    NeuronOptions,
    Remedy,
    SamplingParams,
    SimulatedOptions,
)
from models.simulated import SimulatedBackend
from models.steps import Steps
from server.core import Request, Timings
from server.observe.metrics import Metrics
from server.settings import SwapSettings, WorkerSettings
from server.supervisor import Supervisor
from server.swap.device import Settled
from server.swap.model import Model
from server.swap.policy import Turn
from server.swap.turns import choose_turn, may_retry, retry_after_s
from server.text.tokenizer import Tokenizer

NOW = 1000.0
SWAP = SwapSettings(min_resident=10, turn_after=60)
TWO = SwapSettings(min_resident=10, turn_after=60, residents=2)
Make = Callable[..., Model]


def ask(model: Model, arrived: float) -> None:
    """A request for `model`, which waits."""
    sampling = SamplingParams()
    request = Request(model=model.id, prompt=(5, 6), text="", max_new_tokens=4, sampling=sampling)
    model.engine.submit(request, Tokenizer.load(model.directory, model.family), Timings(arrived))


def fail(model: Model, at: float, remedy: Remedy = "restart") -> None:
    model.state, model.failed_at, model.remedy = "failed", at, remedy


class Worker:
    """The real steps of a simulated device, one when it is told to."""

    def __init__(self, model: Model) -> None:
        options = model.settings.device
        assert isinstance(options, SimulatedOptions)
        backend = SimulatedBackend(model.directory, options)
        backend.stage(lambda *_: None)
        self.description = backend.load(lambda *_: None)
        self._engine, self._steps = model.engine, Steps(backend)
        self._commands: deque[Feed | Decode] = deque()

    def send(self, command: Command) -> None:
        assert isinstance(command, Feed | Decode)
        self._commands.append(command)

    def step(self) -> None:
        self._engine.stepped(self._steps.run(self._commands.popleft()))


def on_device(model: Model, since: float = 0.0, load_s: float = 0.0) -> Settled:
    supervisor = Supervisor(
        model=model.id,
        directory=str(model.directory),
        options=model.settings.device,
        python="",
        settings=WorkerSettings(),
        engine=model.engine,
        metrics=Metrics(),
        on_progress=lambda progress: None,
    )
    return Settled(model, supervisor, since, load_s)


def choose(
    models: list[Model],
    there: tuple[Settled, ...] = (),
    asked: Model | None = None,
    home: Model | None = None,
    now: float = NOW,
    swap: SwapSettings = SWAP,
) -> Turn | None:
    return choose_turn(models, there, asked=asked, home=home, now=now, swap=swap)


def test_an_idle_resident_leaves_for_a_model_with_a_request(make: Make) -> None:
    a, b = make("a"), make("b")
    assert choose([a, b], (on_device(a),)) is None
    ask(b, NOW)
    assert choose([a, b], (on_device(a),)) == Turn("b", ("a",))


@pytest.mark.parametrize(("since", "load_s"), [(NOW - 10, 0), (NOW - 80, 80)])
def test_a_working_resident_stays_for_min_resident_and_for_as_long_as_its_load_took(
    make: Make, since: float, load_s: float
) -> None:
    a, b = make("a"), make("b")
    ask(a, NOW - 300)
    ask(b, NOW - 200)
    there = (on_device(a, since, load_s),)
    assert choose([a, b], there, now=NOW - 0.1) is None
    assert choose([a, b], there) == Turn("b", ("a",))


def test_a_resident_stays_while_what_was_parked_is_replayed(make: Make) -> None:
    a, b = make("a"), make("b")
    ask(a, -300.0)
    ask(b, -200.0)
    there = (on_device(a, since=-100.0),)
    first, second = Worker(a), Worker(a)
    a.engine.attach(first, first.description)
    first.step()
    assert choose([a, b], there) == Turn("b", ("a",))
    a.engine.detach()
    a.engine.attach(second, second.description)
    assert choose([a, b], there) is None
    while a.engine.replaying:
        second.step()
    caught_up = a.engine.caught_up_at  # on the real clock
    assert choose([a, b], there, now=caught_up + 9) is None
    assert choose([a, b], there, now=caught_up + 10) == Turn("b", ("a",))


def test_a_pinned_resident_leaves_for_an_operator_alone(make: Make) -> None:
    a, b = make("a", pinned=True), make("b")
    ask(b, NOW - 200)
    assert choose([a, b], (on_device(a),)) is None
    assert choose([a, b], (on_device(a),), asked=b) == Turn("b", ("a",))


def test_of_two_residents_the_least_recently_used_leaves(make: Make) -> None:
    a, b, c = make("a"), make("b"), make("c")
    a.used, b.used = NOW - 1, NOW - 2
    ask(c, NOW)
    assert choose([a, b, c], (on_device(a), on_device(b)), swap=TWO) == Turn("c", ("b",))


def test_without_on_request_requests_bring_a_model_to_an_empty_device_alone(make: Make) -> None:
    a, b = make("a"), make("b")
    ask(b, NOW - 200)
    swap = SwapSettings(on_request=False)
    assert choose([a, b], (on_device(a),), swap=swap) is None
    assert choose([a, b], swap=swap) == Turn("b")
    assert choose([a, b], (on_device(a),), asked=b, swap=swap) == Turn("b", ("a",))


def test_the_model_that_was_there_before_comes_back_where_nobody_else_is_brought(make: Make) -> None:
    a, b, c = make("a"), make("b"), make("c")
    assert choose([a, b, c]) is None
    assert choose([a, b, c], home=a) == Turn("a")
    assert choose([a, b, c], (on_device(a),), home=a) is None
    assert choose([a, b, c], (on_device(a),), home=a, swap=TWO) is None, "it is there"
    assert choose([a, b, c], (on_device(c),), home=a) is None, "nobody leaves for it"
    assert choose([a, b, c], (on_device(c),), home=a, swap=TWO) == Turn("a")
    ask(b, NOW)
    assert choose([a, b, c], home=a) == Turn("b")


def test_a_failed_model_is_tried_again_after_a_minute_and_by_an_operator_at_once(make: Make) -> None:
    a = make("a")
    fail(a, NOW)
    assert (may_retry(a, NOW + 59), retry_after_s(a)) == (False, 60)
    assert choose([a], home=a, now=NOW + 59) is None
    ask(a, NOW)
    assert choose([a], now=NOW + 59) is None
    assert choose([a], asked=a, now=NOW) == Turn("a")
    assert may_retry(a, NOW + 60)
    assert choose([a], now=NOW + 60) == Turn("a")


def test_a_wrong_configuration_is_tried_again_and_a_broken_machine_is_not(make: Make) -> None:
    a = make("a")
    fail(a, NOW, "configuration")
    assert (may_retry(a, NOW + 60), retry_after_s(a)) == (True, 60)
    for remedy in ("reboot", "replace"):
        fail(a, NOW, remedy)
        assert (may_retry(a, NOW + 1e6), retry_after_s(a)) == (False, None)
        assert choose([a], home=a, now=NOW + 1e6) is None
        assert choose([a], asked=a, now=NOW) == Turn("a")


def test_a_rival_leaves_although_there_is_room(make: Make) -> None:
    a, b, c = (make(name, NeuronOptions(tp_degree=1, cores=cores)) for name, cores in zip("abc", "011", strict=True))
    ask(c, NOW)
    there = (on_device(a), on_device(b))
    swap = SwapSettings(residents=3)
    assert choose([a, b, c], there, swap=swap) == Turn("c", ("b",))
    assert choose([a, b, c], (on_device(a),), swap=swap) == Turn("c")
