"""Does a configuration fit, and what near it does: the verdict that `plan` prints and `serve` obeys.

Pure: the free memory of the host is an argument. Knows no process and no model id.
"""

from __future__ import annotations

from collections.abc import Sequence

from models.planner.hardware import CORE_BYTES, GIB
from models.planner.memory import HostMemory, core_memory, cpu_host_memory, neuron_host_memory
from models.planner.nearest import changes, nearest
from models.protocol import CpuOptions, DeviceOptions, NeuronOptions
from models.spec import ModelSpec

Deployment = tuple[ModelSpec, NeuronOptions]


def refusal(spec: ModelSpec, options: DeviceOptions, host_free: int) -> str | None:
    """Why `options` cannot run this model here, with the numbers and what would fit; None when they can.

    `host_free` are the bytes that the kernel calls available, and those that a worker which ends before this one loads
    will give back (`host_memory(...).resident` of it).
    """
    if isinstance(options, NeuronOptions):
        return _core_refusal(spec, options) or _neuron_host_refusal(spec, options, host_free)
    if isinstance(options, CpuOptions):
        return _cpu_refusal(spec, options, host_free)
    return None


def residents_refusal(deployments: Sequence[Deployment], cores: int, host_free: int) -> str | None:
    """Why these models cannot be resident together, each on cores of its own; None when they can.

    They load one after the other: the host holds what all of them keep, beside the peak of the one that loads.
    """
    wanted = sum(options.tp_degree for _, options in deployments)
    if wanted > cores:
        return f"together they take {wanted} NeuronCores, and there are {cores}"
    named = [core for _, options in deployments for core in _named_cores(options.cores)]
    if shared := sorted({core for core in named if named.count(core) > 1}):
        return f"more than one of them is given core {shared[0]}"
    refusals = (_core_refusal(spec, options) for spec, options in deployments)
    if reason := next(filter(None, refusals), None):
        return reason
    hosts = [neuron_host_memory(spec, options) for spec, options in deployments]
    needed = sum(host.resident for host in hosts) + max((host.peak - host.resident for host in hosts), default=0)
    if needed > host_free:
        return (
            f"together they need {gib(needed)} GiB of the host while the last one loads, and {gib(host_free)} are free"
        )
    return None


def host_memory(spec: ModelSpec, options: DeviceOptions) -> HostMemory:
    """Host memory of a worker with `options`; a simulated device takes none worth counting."""
    if isinstance(options, NeuronOptions):
        return neuron_host_memory(spec, options)
    if isinstance(options, CpuOptions):
        return cpu_host_memory(spec, options)
    return HostMemory(peak=0, resident=0, weights=0, kv=0)


def fitting(spec: ModelSpec, options: NeuronOptions) -> list[NeuronOptions]:
    """The nearest configurations that fit their cores: with room to spare if there are any, else tight ones."""

    def roomy(changed: NeuronOptions) -> bool:
        memory = core_memory(spec, changed)
        return memory.fits and not memory.tight

    return nearest(options, roomy) or nearest(options, lambda changed: core_memory(spec, changed).fits)


def gib(number: int) -> str:
    """Bytes as GiB with one decimal."""
    return f"{number / GIB:.1f}"


def _named_cores(cores: str) -> range:
    """The cores of "0" or "0-1"; none of "", and none of what models/neuron/checks.py refuses."""
    ends = [int(end) for end in cores.split("-") if end.isdecimal()]
    return range(ends[0], ends[-1] + 1) if ends else range(0)


def _core_refusal(spec: ModelSpec, options: NeuronOptions) -> str | None:
    memory = core_memory(spec, options)
    if memory.fits:
        return None
    choices = [
        (changes(options, choice), f"{gib(core_memory(spec, choice).total)} GiB a core")
        for choice in fitting(spec, options)
    ]
    cores = "its NeuronCore" if options.tp_degree == 1 else f"each of its {options.tp_degree} NeuronCores"
    graphs = len(options.context_buckets) + len(options.token_buckets)
    return (
        f"the model takes {gib(memory.total)} GiB of the {CORE_BYTES / GIB:.2f} of {cores}: {gib(memory.weights)} for "
        f"weights, {gib(memory.kv)} for the KV cache of {options.slots} slots x {options.n_positions} positions, "
        f"{gib(memory.runtime)} for {graphs} graphs and the runtime. {_advice(choices)}"
    )


def _neuron_host_refusal(spec: ModelSpec, options: NeuronOptions, host_free: int) -> str | None:
    needed = neuron_host_memory(spec, options).peak
    if needed <= host_free:
        return None
    return (
        f"loading the model takes {gib(needed)} GiB of the host, and {gib(host_free)} are free: end what else runs "
        "there, or take an instance with more memory (inf2.8xlarge has the same chip and 128 GiB)"
    )


def _cpu_refusal(spec: ModelSpec, options: CpuOptions, host_free: int) -> str | None:
    memory = cpu_host_memory(spec, options)
    if memory.peak <= host_free:
        return None
    found = nearest(options, lambda changed: cpu_host_memory(spec, changed).peak <= host_free)
    kind = options.dtype if options.weights == "dtype" else options.weights
    choices = [(changes(options, choice), f"{gib(cpu_host_memory(spec, choice).peak)} GiB") for choice in found]
    return (
        f"the model takes {gib(memory.peak)} GiB of the host, and {gib(host_free)} are free: "
        f"{gib(memory.weights)} for weights ({kind}), {gib(memory.kv)} for the KV cache of {options.slots} "
        f"slots x {options.n_positions} positions, the rest for the worker and its loading. {_advice(choices)}"
    )


def _advice(choices: Sequence[tuple[str, str]]) -> str:
    if not choices:
        return "No smaller configuration of this model fits either"
    return "It fits with " + ", or with ".join(f"{change} ({needed})" for change, needed in choices)
