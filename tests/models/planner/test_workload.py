"""A steady load: users who each ask again when they have their answer."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from models.planner.hardware import INSTANCES, smallest_instance
from models.planner.timing import decode_step, prefill
from models.planner.workload import PUBLISHED, Performance, Workload, forecast
from models.protocol import NeuronOptions
from models.spec import ModelSpec

Specs = Mapping[str, ModelSpec]
PRICE = 0.7582


def floor(spec: ModelSpec, options: NeuronOptions, workload: Workload) -> Performance:
    found = forecast(spec, options, workload, PRICE)
    assert found is not None
    return found.floor


def test_the_published_figures_agree_with_each_other() -> None:
    load = Workload()
    tokens_per_hour = PUBLISHED.requests_per_min * 60 * load.total_tokens
    assert tokens_per_hour / 60 == 10_872
    assert PRICE / tokens_per_hour * 1e6 == pytest.approx(PUBLISHED.dollars_per_million, abs=0.005)
    assert PUBLISHED.requests_per_min * load.new_tokens / 60 == PUBLISHED.tokens_per_s
    assert load.users / PUBLISHED.requests_per_min * 60 == pytest.approx(PUBLISHED.latency_s, rel=0.05)


def test_a_lone_user_waits_for_one_prefill_and_a_step_a_token(specs: Specs) -> None:
    spec, options = specs["llama3"], NeuronOptions(slots=1)
    alone = floor(spec, options, Workload(users=1))
    feed, step = prefill(spec, options, 256).floor, decode_step(spec, options, 1024).floor
    assert alone.latency_s == pytest.approx(feed + 499 * step)
    assert alone.ttft_s == pytest.approx(feed + step)
    assert alone.tokens_per_s == pytest.approx(500 / alone.latency_s)


def test_ten_users_in_twelve_slots_never_wait_for_one(specs: Specs) -> None:
    spec, options = specs["llama3"], NeuronOptions(slots=12)
    ten = floor(spec, options, Workload())
    feed, step = prefill(spec, options, 256).floor, decode_step(spec, options, 1024).floor
    assert ten.latency_s == pytest.approx(10 * feed + 499 * step)
    assert ten.ttft_s == pytest.approx(feed + step)


def test_ten_users_in_four_slots_wait_for_one(specs: Specs) -> None:
    few, enough = (floor(specs["codellama"], NeuronOptions(slots=slots), Workload()) for slots in (4, 10))
    assert few.ttft_s > few.latency_s / 2
    assert few.latency_s > 1.5 * enough.latency_s
    assert few.tokens_per_s < enough.tokens_per_s


def test_more_users_than_slots_add_waiting_and_no_throughput(specs: Specs) -> None:
    ten, twenty = (floor(specs["llama3"], NeuronOptions(slots=8), Workload(users=users)) for users in (10, 20))
    assert ten.tokens_per_s == pytest.approx(twenty.tokens_per_s)
    assert twenty.latency_s == pytest.approx(2 * ten.latency_s)


def test_a_million_tokens_cost_the_hours_they_take(specs: Specs) -> None:
    found = floor(specs["llama3"], NeuronOptions(slots=12), Workload())
    hours = 1e6 / (found.requests_per_min * 60 * 604)
    assert found.dollars_per_million == pytest.approx(PRICE * hours)


def test_the_published_result_lies_between_the_optimistic_and_the_pessimistic_reading(specs: Specs) -> None:
    found = forecast(specs["llama3"], NeuronOptions(slots=12), Workload(), PRICE)
    assert found is not None
    assert found.floor.latency_s < found.optimistic.latency_s < PUBLISHED.latency_s < found.pessimistic.latency_s
    assert found.pessimistic.requests_per_min < PUBLISHED.requests_per_min < found.optimistic.requests_per_min


def test_int8_is_faster_in_every_reading(specs: Specs) -> None:
    options = NeuronOptions(slots=12)
    whole, quantised = (
        forecast(specs["llama3"], replace(options, quant=quant), Workload(), PRICE) for quant in ("none", "s8")
    )
    assert whole is not None
    assert quantised is not None
    for kind in ("floor", "optimistic", "pessimistic"):
        assert getattr(quantised, kind).tokens_per_s > getattr(whole, kind).tokens_per_s


@pytest.mark.parametrize("workload", [Workload(prompt_tokens=2049), Workload(new_tokens=4000)])
def test_a_load_that_no_bucket_holds_has_no_forecast(specs: Specs, workload: Workload) -> None:
    assert forecast(specs["llama3"], NeuronOptions(), workload, PRICE) is None


@pytest.mark.parametrize(
    ("cores", "name"), [(1, "inf2.xlarge"), (2, "inf2.xlarge"), (8, "inf2.24xlarge"), (24, "inf2.48xlarge")]
)
def test_the_smallest_instance_with_the_cores(cores: int, name: str) -> None:
    assert smallest_instance(cores).name == name


def test_no_instance_has_more_than_24_cores() -> None:
    assert INSTANCES[-1].cores == 24
    with pytest.raises(ValueError, match="no Inferentia2 instance has 25 NeuronCores; the largest has 24"):
        smallest_instance(25)
