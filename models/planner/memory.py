"""What a model takes: of each NeuronCore, of the host while a worker loads it, of the host on the CPU backend.

Weights and KV cache are arithmetic. What the runtime takes beside them is modelled on two memory dumps that users
published, and only hardware can tell. Knows no verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.planner.hardware import CORE_BYTES, GIB, MIB, TIGHT_BYTES
from models.planner.sharding import AMP_BYTES, core_kv_bytes, core_weight_bytes, sharded_heads
from models.protocol import CpuOptions, NeuronOptions
from models.spec import ModelSpec

# Fitted so that two graphs take 3 GiB, four 3.5 and six 4. Issue 92 of transformers-neuronx (a 70B on twelve cores,
# SDK 2.19) shows two graphs with 1.47 GiB of DMA rings, 0.48 of code, 0.50 of scratchpad, 0.37 of collectives: 2.82.
# Issue 49 (SDK 2.14) shows 6.52 GiB of rings, so a release this old is not covered.
_RINGS = int(1.5 * GIB)
_GRAPH = GIB // 4
_SCRATCHPAD = GIB // 2
_COLLECTIVES = GIB // 2
_FLASH_BUCKET = 4096  # from this prefill length on, attention keeps no scores (layers/attention.py)
_SCORE_BYTES = 4

# Interpreter, torch and the library in a worker: an estimate.
_NEURON_WORKER = 1_500_000_000
_CPU_WORKER = 256 * MIB

# "auto" takes bfloat16 on some processors: the smaller one, as the backend checks again when it knows.
_CPU_BYTES = {"float32": 4, "bfloat16": 2, "auto": 2}
_WEIGHT_BYTES = {"float16": 2}  # what is smaller than the dtype
_CPU_POSITION_MULTIPLE = 16  # models/cpu/cache.py


@dataclass(frozen=True, slots=True)
class CoreMemory:
    """Bytes on one NeuronCore; every core of a model holds the same."""

    weights: int
    kv: int
    runtime: int

    @property
    def tensors(self) -> int:
        return self.weights + self.kv

    @property
    def total(self) -> int:
        return self.tensors + self.runtime

    @property
    def fits(self) -> bool:
        return self.total <= CORE_BYTES

    @property
    def tight(self) -> bool:
        return self.tensors > TIGHT_BYTES


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of host memory of one worker: its highest need, while it loads, and what it keeps.

    `weights` and `kv` are what of `resident` they take. The page cache of the checkpoint is not counted.
    """

    peak: int
    resident: int
    weights: int
    kv: int


def core_memory(spec: ModelSpec, options: NeuronOptions) -> CoreMemory:
    """What `options` put on each of their cores. The KV cache is reserved in full when the model loads."""
    return CoreMemory(
        weights=core_weight_bytes(spec, options),
        kv=core_kv_bytes(spec, options, options.n_positions),
        runtime=runtime_bytes(spec, options),
    )


def runtime_bytes(spec: ModelSpec, options: NeuronOptions) -> int:
    """The runtime's share of a core: DMA rings, code of each graph (one a bucket), scratchpad, collectives.

    The scratchpad holds at least the attention scores of the longest prefill that keeps them.
    """
    graphs = len(options.context_buckets) + len(options.token_buckets)
    longest = max((bucket for bucket in options.context_buckets if bucket < _FLASH_BUCKET), default=0)
    queries = sharded_heads(spec.heads, spec.kv_heads, options.tp_degree).queries // options.tp_degree
    scores = queries * longest * longest * _SCORE_BYTES
    collectives = _COLLECTIVES if options.tp_degree > 1 else 0
    return _RINGS + graphs * _GRAPH + max(_SCRATCHPAD, scores) + collectives


def neuron_host_memory(spec: ModelSpec, options: NeuronOptions) -> HostMemory:
    """A Neuron worker's: the checkpoint passes through the host one layer at a time.

    The embedding table becomes float32, whatever amp says, and stays. A layer is there about three times (as read,
    transposed, sharded), in int8 once more in float32, with the zeros of its keys; then lm_head is there three times.
    Nothing is compiled here: a compiler needs many GB of its own.
    """
    amp = AMP_BYTES[options.amp]
    embedding = spec.vocab_size * spec.hidden_size * 4
    layer = (spec.parameters() - _outside_layers(spec)) // spec.layers
    quantising = layer * 4 if options.quant != "none" else 0
    keys = core_kv_bytes(spec, options, options.n_positions) * options.tp_degree // (2 * spec.layers)
    head = spec.vocab_size * spec.hidden_size * amp
    resident = _NEURON_WORKER + embedding
    peak = resident + max(3 * layer * amp + quantising + 2 * keys, 3 * head)
    return HostMemory(peak=peak, resident=resident, weights=embedding, kv=0)


def cpu_host_memory(spec: ModelSpec, options: CpuOptions) -> HostMemory:
    """A CPU worker's: all weights, the cache of all slots, and while loading the largest matrix in float32, twice.

    The embedding is kept in the dtype, as rows to look up; a tied one once more, packed as the head.
    """
    size = _CPU_BYTES[options.dtype]
    packed = _WEIGHT_BYTES.get(options.weights, size)
    head = spec.vocab_size * spec.hidden_size
    weights = head * size + (spec.parameters() - (0 if spec.tied else head)) * packed
    positions = -(-options.n_positions // _CPU_POSITION_MULTIPLE) * _CPU_POSITION_MULTIPLE
    kv = options.slots * positions * spec.kv_bytes_per_token(size)
    folding = max(head, spec.intermediate_size * spec.hidden_size) * (2 * 4 - packed)
    resident = _CPU_WORKER + weights + kv
    return HostMemory(peak=_CPU_WORKER + weights + max(kv, folding), resident=resident, weights=weights, kv=kv)


def _outside_layers(spec: ModelSpec) -> int:
    """Parameters of embedding, head and final norm."""
    tables = 1 if spec.tied else 2
    return tables * spec.vocab_size * spec.hidden_size + spec.hidden_size
