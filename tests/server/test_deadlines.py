"""How long a step may take: five times its measured time, within the floor and the ceiling of the configuration."""

from __future__ import annotations

import msgspec
import pytest

from models.protocol import CpuOptions, Description, NeuronOptions, SimulatedOptions
from server.deadlines import RUNTIME_MARGIN_S, StepWatch, step_deadline, step_name
from server.engine.scheduler import DecodePlan, FeedPlan
from server.settings import WorkerSettings

NEURON = NeuronOptions()
SETTINGS = WorkerSettings(step_floor=2, step_timeout=60)
DECODE = DecodePlan(step=1, live=((0, 1),))
LLAMA = Description(
    slots=8,
    n_positions=8192,
    vocab_size=128256,
    context_buckets=(256, 2048, 8192),
    token_buckets=(1024, 8192),
    dtype="bfloat16",
    device="neuron",
    feed_s=(0.1, 0.5, 3.0),
    step_s=(0.02, 0.5),
)


def feed(tokens: int) -> FeedPlan:
    return FeedPlan(step=1, slot=0, sequence=1, start=0, stop=tokens, last=True)


def deadline(plan: FeedPlan | DecodePlan, description: Description = LLAMA, **settings: float) -> float:
    return step_deadline(plan, description, NEURON, WorkerSettings(**{"step_floor": 2, "step_timeout": 60, **settings}))


def test_a_feed_has_five_times_what_its_bucket_took() -> None:
    assert [deadline(feed(tokens)) for tokens in (1500, 2048, 2049, 8192)] == [2.5, 2.5, 15, 15]


def test_a_decode_has_five_times_what_the_slowest_bucket_took() -> None:
    assert deadline(DECODE) == 2.5


def test_a_step_that_does_both_has_the_time_of_both() -> None:
    both = DecodePlan(step=1, live=((0, 1),), feed=feed(2049))
    assert deadline(both) == 5 * (0.5 + 3.0)
    assert deadline(both, msgspec.structs.replace(LLAMA, feed_s=())) == 60


def test_a_late_step_is_named_by_all_that_it_does() -> None:
    both = DecodePlan(step=1, live=((0, 1),), feed=feed(7))
    names = [step_name(plan) for plan in (DECODE, feed(7), both)]
    assert names == ["decode step", "feed of 7 tokens", "decode step with a feed of 7 tokens"]


def test_no_step_has_less_than_the_floor() -> None:
    assert deadline(feed(10)) == 2
    assert deadline(feed(10), step_floor=0.1) == 0.5


def test_no_step_has_more_than_step_timeout() -> None:
    assert deadline(feed(8000), step_timeout=10) == 10
    assert deadline(feed(10), step_timeout=1) == 1


def test_the_runtimes_own_limit_comes_first() -> None:
    limited = msgspec.structs.replace(LLAMA, runtime_timeout_s=4)
    assert deadline(DECODE, limited) == 4 + RUNTIME_MARGIN_S
    assert deadline(feed(8192), limited) == 15
    assert deadline(DECODE, limited, step_timeout=3) == 3


def test_a_piece_of_a_prompt_is_as_large_as_the_piece() -> None:
    piece = FeedPlan(step=9, slot=0, sequence=1, start=4096, stop=4096 + 200, last=False)
    assert deadline(piece, step_floor=0.1) == 0.5


def test_what_was_not_measured_has_step_timeout() -> None:
    bare = Description(slots=1, n_positions=8, vocab_size=9, dtype="float32", device="simulated")
    assert step_deadline(feed(3), bare, SimulatedOptions(), SETTINGS) == 60
    assert step_deadline(DECODE, bare, SimulatedOptions(), SETTINGS) == 60


def test_on_a_processor_that_others_use_too_the_warm_up_is_no_guide() -> None:
    assert step_deadline(DECODE, LLAMA, CpuOptions(), SETTINGS) == 60


@pytest.fixture
def watch() -> StepWatch:
    return StepWatch(most=0.5)


def test_a_step_ages_while_it_is_watched(watch: StepWatch) -> None:
    assert [watch.look(7, now) for now in (10.0, 10.25, 10.5, 11.0)] == [0, 0.25, 0.5, 1.0]


def test_the_next_step_begins_at_no_age(watch: StepWatch) -> None:
    assert [watch.look(step, now) for step, now in ((7, 10.0), (7, 10.4), (8, 10.8), (8, 11.0))] == pytest.approx(
        [0, 0.4, 0, 0.2]
    )


def test_nothing_in_flight_has_no_age(watch: StepWatch) -> None:
    assert [watch.look(step, now) for step, now in ((None, 10.0), (None, 10.4), (3, 10.8), (None, 11.0))] == [0] * 4


def test_a_pause_of_the_whole_process_is_not_the_steps_fault(watch: StepWatch) -> None:
    """Stopped for an hour, then looked at again: the worker, or its answer in the socket, gets its time."""
    watch.look(7, 10.0)
    assert watch.look(7, 3610.0) == 0.5
