"""How long a step, a prefill and a load take on NeuronCores: the physical floor, and what may be expected.

The floor is arithmetic: no software can be faster. The expectation spans from the best that is plausible to the one
published measurement on two cores, which is from 2023; only hardware can tell. Knows no workload.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.planner.hardware import CORE_BYTES_PER_S, CORE_FLOPS
from models.planner.sharding import core_kv_bytes, core_weight_bytes
from models.protocol import NeuronOptions
from models.spec import ModelSpec

# Llama-2-7B, fp16, two cores, one slot of 2048: 15.9 s, 31.7 s and 47.3 s for 256, 512 and 768 tokens, so 61 ms a token
# where its weights and cache take 17.4 ms to read (Hugging Face, "Make your llama generation time fly with AWS
# Inferentia2", November 2023). Nobody knows whether the excess grows with the bytes or stays: the pessimistic step is
# the worse of the two. The optimistic one is this project's guess, 25 ms for Llama 3 8B: no two-core measurement is
# that good, and those on eight cores took 2 to 2.7 times their floor.
_MEASURED_STEP_S = 0.061
_MEASURED_FLOOR_S = 0.0174
_SLOWEST = _MEASURED_STEP_S / _MEASURED_FLOOR_S
_OVERHEAD_S = _MEASURED_STEP_S - _MEASURED_FLOOR_S
_FASTEST = 25.0 / 18.3

# From the same measurement: a first token after 0.3, 0.4 and 0.5 s for prompts of 256, 512 and 768 tokens.
_FIRST_TOKEN_S = 0.2
_FIRST_TOKEN_S_PER_TOKEN = 0.1 / 256
_PREFILL_FASTEST = 2.0

# Beside reading the checkpoint: start of the runtime, graphs built and loaded, with everything in the page cache. The
# only published load is 40 s, of a Llama-2-7B on a trn1.32xlarge (issue 80 of transformers-neuronx).
_LOAD_S = (45.0, 120.0)


@dataclass(frozen=True, slots=True)
class Seconds:
    """A duration: never below `floor`, expected from `optimistic` to `pessimistic`."""

    floor: float
    optimistic: float
    pessimistic: float


def decode_step(spec: ModelSpec, options: NeuronOptions, bucket: int) -> Seconds:
    """One decode step in a token bucket: each core reads its weights, and the bucket's positions of every slot."""
    floor = (core_weight_bytes(spec, options) + core_kv_bytes(spec, options, bucket)) / CORE_BYTES_PER_S
    return Seconds(floor, floor * _FASTEST, max(floor * _SLOWEST, floor + _OVERHEAD_S))


def prefill(spec: ModelSpec, options: NeuronOptions, bucket: int) -> Seconds:
    """One prompt in a context bucket: the work of the whole bucket, masked or not, or one read of the weights."""
    matrices = spec.hidden_size * (2 * (spec.heads + spec.kv_heads) * spec.head_dim + 3 * spec.intermediate_size)
    attention = 2 * bucket * spec.heads * spec.head_dim  # scores and their sum over the values, per token
    work = 2 * spec.layers * bucket * (matrices + attention) + 2 * spec.vocab_size * spec.hidden_size
    reading = core_weight_bytes(spec, options) / CORE_BYTES_PER_S
    floor = max(work / (options.tp_degree * CORE_FLOPS), reading)
    measured = _FIRST_TOKEN_S + _FIRST_TOKEN_S_PER_TOKEN * bucket
    return Seconds(floor, floor * _PREFILL_FASTEST, max(floor * _SLOWEST, measured))


def load(spec: ModelSpec, disk_bytes_per_s: float) -> Seconds:
    """From a cold checkpoint in 16 bit to a model that serves, with its graphs compiled before."""
    reading = spec.weight_bytes(2) / disk_bytes_per_s
    fastest, slowest = _LOAD_S
    return Seconds(reading, max(reading, fastest), reading + slowest)
