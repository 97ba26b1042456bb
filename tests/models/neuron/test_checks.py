"""What is refused before anything loads, each with its value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from models.backend import ConfigurationError
from models.neuron.checks import check
from models.protocol import NeuronOptions
from models.spec import read_spec

OPTIONS = NeuronOptions(n_positions=256, context_buckets=(64, 128), token_buckets=(128, 256))

Checkpoint = Callable[..., Path]


def _refusal(directory: Path, options: NeuronOptions) -> str:
    with pytest.raises(ConfigurationError) as refused:
        check(read_spec(directory), options)
    return str(refused.value)


@pytest.mark.parametrize("family", ["llama3", "mistral", "codellama"])
def test_the_three_families_pass(tiny_checkpoint: Checkpoint, family: str) -> None:
    check(read_spec(tiny_checkpoint(family)), OPTIONS)


@pytest.mark.parametrize(
    ("family", "overrides", "text"),
    [
        ("llama3", {"attention_bias": True}, "biases"),
        ("llama3", {"mlp_bias": True}, "biases"),
        ("mistral", {"head_dim": 32}, "head_dim 32"),
        ("llama3", {"max_position_embeddings": 128}, "max_position_embeddings, 128"),
    ],
)
def test_a_model_that_the_graphs_would_compute_wrongly_is_refused(
    tiny_checkpoint: Checkpoint, family: str, overrides: dict[str, Any], text: str
) -> None:
    assert text in _refusal(tiny_checkpoint(family, **overrides), OPTIONS)


@pytest.mark.parametrize("tp_degree", [1, 2, 4, 8, 12, 24])
def test_every_degree_of_an_inf2_passes(tiny_checkpoint: Checkpoint, tp_degree: int) -> None:
    check(read_spec(tiny_checkpoint("llama3")), msgspec.structs.replace(OPTIONS, tp_degree=tp_degree))


@pytest.mark.parametrize(("tp_degree", "cores"), [(1, "0"), (1, "1"), (2, "0-1"), (2, "2-3"), (12, "12-23"), (2, "")])
def test_cores_that_the_degree_calls_for_pass(tiny_checkpoint: Checkpoint, tp_degree: int, cores: str) -> None:
    check(read_spec(tiny_checkpoint("llama3")), msgspec.structs.replace(OPTIONS, tp_degree=tp_degree, cores=cores))


@pytest.mark.parametrize(
    ("tp_degree", "cores", "example"),
    [(1, "0-1", '"0"'), (2, "0", '"0-1"'), (2, "0,1", '"0-1"'), (2, "1-0", '"0-1"'), (8, "all", '"0-7"')],
)
def test_other_cores_are_refused_with_an_example(
    tiny_checkpoint: Checkpoint, tp_degree: int, cores: str, example: str
) -> None:
    options = msgspec.structs.replace(OPTIONS, tp_degree=tp_degree, cores=cores)
    text = _refusal(tiny_checkpoint("llama3"), options)
    assert f'cores is "{cores}"' in text
    assert example in text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"slots": 0}, "slots is 0"),
        ({"tp_degree": 3}, "tp_degree is 3"),
        ({"context_buckets": ()}, "context_buckets is []"),
        ({"context_buckets": (128, 64)}, "context_buckets is [128, 64]"),
        ({"context_buckets": (64, 64)}, "context_buckets is [64, 64]"),
        ({"context_buckets": (1, 64)}, "context_buckets is [1, 64]"),
        ({"context_buckets": (64, 512)}, "context_buckets is [64, 512]"),
        ({"token_buckets": (128, 512)}, "token_buckets is [128, 512]"),
        ({"token_buckets": (128,)}, "token_buckets ends at 128: it must end at n_positions, 256"),
    ],
)
def test_options_that_cannot_work_are_refused(tiny_checkpoint: Checkpoint, change: dict[str, Any], text: str) -> None:
    assert text in _refusal(tiny_checkpoint("llama3"), msgspec.structs.replace(OPTIONS, **change))


def test_a_refusal_names_everything_that_is_wrong(tiny_checkpoint: Checkpoint) -> None:
    text = _refusal(tiny_checkpoint("llama3", mlp_bias=True), msgspec.structs.replace(OPTIONS, slots=0, tp_degree=3))
    assert [word in text for word in ("biases", "slots", "tp_degree")] == [True] * 3
