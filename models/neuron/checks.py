"""Refuses, before anything loads, what transformers-neuronx 0.13 would run wrongly or not at all.

Several of these would give fluent nonsense rather than an error there: it ignores biases and a head_dim of its own. It
ignores a sliding window too, to which the options are cut before. Knows config.json, the options and the names of the
files, not the library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.backend import ConfigurationError
from models.protocol import NeuronOptions
from models.spec import ModelSpec

# What the runtime forms groups of: on inf2.xlarge and inf2.8xlarge 1 and 2, on inf2.24xlarge up to 12, on inf2.48xlarge
# all of them.
TP_DEGREES = (1, 2, 4, 8, 12, 24)

_CORES = re.compile(r"(\d+)(?:-(\d+))?")


def check(spec: ModelSpec, options: NeuronOptions) -> None:
    """ConfigurationError that lists everything that cannot work, each with its value and what is allowed."""
    problems = [*_of_model(spec), *_of_options(options), *_of_both(spec, options)]
    if problems:
        raise ConfigurationError("; ".join(problems))


def check_files(directory: Path) -> None:
    """ConfigurationError unless the checkpoint is of the kind that is read tensor by tensor."""
    if not any(directory.glob("*.safetensors")):
        raise ConfigurationError(
            f"{directory} holds no *.safetensors: the Neuron backend reads no GGUF, and pickled .bin files not at all"
        )


def _of_model(spec: ModelSpec) -> Iterator[str]:
    if spec.attention_bias or spec.mlp_bias:
        yield "the model has biases (attention_bias or mlp_bias), which the Neuron graphs leave out"
    if spec.head_dim * spec.heads != spec.hidden_size:
        yield (
            f"head_dim {spec.head_dim} is not hidden_size / num_attention_heads = {spec.hidden_size} / {spec.heads}, "
            "which the Neuron graphs assume"
        )


def _of_options(options: NeuronOptions) -> Iterator[str]:
    if options.slots < 1:
        yield f"slots is {options.slots}: it must be 1 or more"
    if options.tp_degree not in TP_DEGREES:
        yield f"tp_degree is {options.tp_degree}: Inferentia2 has {', '.join(map(str, TP_DEGREES))}"
    if options.cores:
        yield from _of_cores(options.cores, options.tp_degree)
    yield from _of_buckets("context_buckets", options.context_buckets, options.n_positions)
    yield from _of_buckets("token_buckets", options.token_buckets, options.n_positions)
    if options.token_buckets and max(options.token_buckets) != options.n_positions:
        yield f"token_buckets ends at {max(options.token_buckets)}: it must end at n_positions, {options.n_positions}"


def _of_cores(cores: str, tp_degree: int) -> Iterator[str]:
    """The runtime takes one core or one range of neighbours."""
    match = _CORES.fullmatch(cores)
    count = int(match[2] or match[1]) - int(match[1]) + 1 if match else 0
    if count != tp_degree:
        example = "0" if tp_degree == 1 else f"0-{tp_degree - 1}"
        yield f'cores is "{cores}": with tp_degree {tp_degree} it names {tp_degree} in a row, as "{example}" does'


def _of_buckets(name: str, buckets: Sequence[int], n_positions: int) -> Iterator[str]:
    if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 2 or buckets[-1] > n_positions:
        yield f"{name} is {list(buckets)}: it must rise from at least 2 to at most n_positions, {n_positions}"


def _of_both(spec: ModelSpec, options: NeuronOptions) -> Iterator[str]:
    longest = spec.max_position_embeddings
    if options.n_positions > longest:
        yield f"n_positions {options.n_positions} is above the model's max_position_embeddings, {longest}"
