"""When the runtime gives an execution up: above anything healthy, in seconds rather than minutes."""

from __future__ import annotations

import pytest

from models.neuron.timeouts import LEAST_S, exec_timeout_s
from models.planner.shapes import published_spec
from models.planner.timing import decode_step, prefill
from models.protocol import NeuronOptions
from models.spec import ModelSpec

INF2 = NeuronOptions(slots=12, n_positions=4096, context_buckets=(256, 1024, 2048, 3072), token_buckets=(1024, 4096))
SHORT = NeuronOptions(slots=8, n_positions=2048, context_buckets=(256, 512), token_buckets=(1024, 2048))
LONG = NeuronOptions(slots=4, n_positions=8192, context_buckets=(8192,), token_buckets=(8192,))


@pytest.fixture(
    params=[
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "mistralai/Mistral-7B-Instruct-v0.2",
        "codellama/CodeLlama-7b-Instruct-hf",
    ]
)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    found = published_spec(request.param)
    assert found is not None
    return found


@pytest.mark.parametrize("options", [INF2, LONG], ids=["inf2.toml", "8192"])
def test_no_healthy_execution_comes_near_it(spec: ModelSpec, options: NeuronOptions) -> None:
    timeout = exec_timeout_s(spec, options)
    for bucket in options.context_buckets:
        assert timeout >= 2 * prefill(spec, options, bucket).pessimistic
    for bucket in options.token_buckets:
        assert timeout >= 2 * decode_step(spec, options, bucket).pessimistic


def test_a_hang_is_found_in_seconds(spec: ModelSpec) -> None:
    assert LEAST_S <= exec_timeout_s(spec, INF2) <= 3


def test_where_every_prompt_is_short_the_servers_two_seconds_leave_room_for_it(spec: ModelSpec) -> None:
    """The runtime takes whole seconds: below a deadline of 2 s there is one value."""
    assert exec_timeout_s(spec, SHORT) == 1


def test_a_prefill_of_over_half_a_second_leaves_none(spec: ModelSpec) -> None:
    """A healthy prefill of 3072 tokens may take 1.4 s: no whole second lies between it, with a margin, and 2 s."""
    assert prefill(spec, INF2, 3072).pessimistic > 1
    assert exec_timeout_s(spec, INF2) > 2
