"""One report of AWS's neuron-monitor, as types: what its JSON document says of the machine's Neuron devices.

The document is described in the Neuron Monitor User Guide of the AWS Neuron documentation. What it may leave out, or
write as null, is None or empty here; keys that are unknown are passed over. Reads no stream and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec


class _Group(msgspec.Struct, frozen=True, kw_only=True):
    """A metric group. `error`: why its figures are missing, "" when they are there."""

    error: str = ""


class CoreUse(msgspec.Struct, frozen=True):
    """One NeuronCore: percent of the period."""

    neuroncore_utilization: float = 0.0


class CoreCounters(_Group, frozen=True):
    """By the core's index."""

    neuroncores_in_use: dict[str, CoreUse] | None = None


class UsageBreakdown(msgspec.Struct, frozen=True):
    """Bytes by kind; of the device also by the core's index."""

    host: dict[str, int] = {}
    neuroncore_memory_usage: dict[str, dict[str, int]] = {}


class UsedBytes(msgspec.Struct, frozen=True):
    """What one process holds, in bytes."""

    host: int = 0
    neuron_device: int = 0
    usage_breakdown: UsageBreakdown = UsageBreakdown()


class MemoryUsed(_Group, frozen=True):
    """Memory of one process."""

    neuron_runtime_used_bytes: UsedBytes | None = None


class LatencyStats(msgspec.Struct, frozen=True):
    """Seconds of an execution by percentile ("p0" to "p100"); None while nothing is executed."""

    total_latency: dict[str, float] | None = None
    device_latency: dict[str, float] | None = None


class ExecutionStats(_Group, frozen=True):
    """Counts of the report's period, by kind of error and by outcome."""

    error_summary: dict[str, int] | None = None
    execution_summary: dict[str, int] | None = None
    latency_stats: LatencyStats | None = None


class ProcessReport(msgspec.Struct, frozen=True):
    """The groups of one process that uses the runtime."""

    neuroncore_counters: CoreCounters | None = None
    memory_used: MemoryUsed | None = None
    execution_stats: ExecutionStats | None = None


class RuntimeData(msgspec.Struct, frozen=True):
    """One process that uses the runtime, ours or another one."""

    pid: int = 0
    error: str = ""
    report: ProcessReport | None = None


class DeviceErrors(msgspec.Struct, frozen=True):
    """Memory errors of one device in the report's period: in its DRAM (mem) and its SRAM."""

    neuron_device_index: int
    mem_ecc_corrected: int = 0
    mem_ecc_uncorrected: int = 0
    sram_ecc_corrected: int = 0
    sram_ecc_uncorrected: int = 0


class HardwareCounters(_Group, frozen=True):
    """All devices of the machine."""

    neuron_devices: tuple[DeviceErrors, ...] | None = None


class MemoryInfo(_Group, frozen=True):
    """The host's memory in bytes."""

    memory_total_bytes: int = 0
    memory_used_bytes: int = 0
    swap_total_bytes: int = 0
    swap_used_bytes: int = 0


class CpuUsage(_Group, frozen=True):
    """Percent of the period by what it went into, over all of the host's CPUs."""

    average_usage: dict[str, float] | None = None


class SystemData(msgspec.Struct, frozen=True):
    """The groups of the whole machine."""

    neuron_hw_counters: HardwareCounters | None = None
    memory_info: MemoryInfo | None = None
    vcpu_usage: CpuUsage | None = None


class HardwareInfo(_Group, frozen=True):
    """What the machine has; 0 where the SDK's release does not say."""

    neuron_device_count: int = 0
    neuroncore_per_device_count: int = 0
    neuron_device_memory_size: int = 0


class NeuronReport(msgspec.Struct, frozen=True):
    """One document."""

    neuron_runtime_data: tuple[RuntimeData, ...] | None = None
    system_data: SystemData | None = None
    neuron_hardware_info: HardwareInfo | None = None

    @property
    def processes(self) -> tuple[ProcessReport, ...]:
        """What the processes report that could be asked."""
        return tuple(each.report for each in self.neuron_runtime_data or () if each.report and not each.error)

    @property
    def system(self) -> SystemData:
        return self.system_data or SystemData()

    def errors(self) -> Iterator[str]:
        """Why figures are missing, one text a group."""
        groups: list[tuple[str, object]] = [("neuron_hardware_info", self.neuron_hardware_info)]
        groups += [(name, getattr(self.system, name)) for name in SystemData.__struct_fields__]
        for runtime in self.neuron_runtime_data or ():
            if runtime.error:
                yield f"process {runtime.pid}: {runtime.error}"
            groups += [(name, getattr(runtime.report, name, None)) for name in ProcessReport.__struct_fields__]
        yield from (f"{name}: {group.error}" for name, group in groups if isinstance(group, _Group) and group.error)


_DECODER = msgspec.json.Decoder(NeuronReport)


def read_report(line: bytes) -> NeuronReport:
    """One line of neuron-monitor's output; ValueError, with the place, when it is not such a document."""
    try:
        return _DECODER.decode(line)
    except msgspec.DecodeError as error:  # its ValidationError included
        raise ValueError(str(error)) from error
