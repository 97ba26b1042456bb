"""What neuron-monitor reports, as Prometheus series: the last report's gauges, and counters over all reports.

Series of the whole machine, whichever process uses its Neuron devices. None is shown before the first report, and none
but the counters while reports are missing. Knows neither where reports come from nor when they are shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.observe.neuron_report import DeviceErrors, NeuronReport, ProcessReport

_ECC_KINDS = tuple(name for name in DeviceErrors.__struct_fields__ if name != "neuron_device_index")
_PERCENT = 100.0
_Labels = tuple[str, ...]


class NeuronSeries(Collector):
    """A collector for a registry of prometheus_client."""

    def __init__(self) -> None:
        self._up: Literal[None, 0, 1] = None
        self._report = NeuronReport()
        self._errors: dict[_Labels, float] = defaultdict(float)
        self._executions: dict[_Labels, float] = defaultdict(float)
        self._ecc: dict[_Labels, float] = defaultdict(float)

    def show(self, report: NeuronReport) -> None:
        """A report has come. Its counts are those of its own period, as AWS's own exporter takes them."""
        self._up, self._report = 1, report
        for process in report.processes:
            stats = process.execution_stats
            if stats is None or stats.error:
                continue
            _add(self._errors, stats.error_summary or {})
            _add(self._executions, stats.execution_summary or {})
        hardware = report.system.neuron_hw_counters
        for device in (hardware.neuron_devices or ()) if hardware and not hardware.error else ():
            for kind in _ECC_KINDS:
                self._ecc[str(device.neuron_device_index), kind] += getattr(device, kind)

    def missing(self) -> None:
        """neuron-monitor is there and does not report: what it said last is not true any more."""
        self._up, self._report = 0, NeuronReport()

    def describe(self) -> Iterable[Metric]:
        """Nothing is named before it has a value."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every series that has a value now."""
        if self._up is None:
            return
        yield _gauge("neuron_monitor_up", "Whether neuron-monitor reports", (), [((), self._up)])
        for metric in (*self._of_processes(), *self._of_the_machine(), *self._counters()):
            if metric.samples:
                yield metric

    def _of_processes(self) -> Iterator[Metric]:
        utilization: dict[_Labels, float] = defaultdict(float)
        host: dict[_Labels, float] = defaultdict(float)
        cores: dict[_Labels, float] = defaultdict(float)
        device: dict[_Labels, float] = defaultdict(float)
        for process in self._report.processes:
            if (counters := process.neuroncore_counters) and not counters.error:
                for core, use in (counters.neuroncores_in_use or {}).items():
                    utilization[core,] += use.neuroncore_utilization / _PERCENT
            if (memory := process.memory_used) and not memory.error and (used := memory.neuron_runtime_used_bytes):
                device[()] += used.neuron_device
                _add(host, used.usage_breakdown.host)
                for core, kinds in used.usage_breakdown.neuroncore_memory_usage.items():
                    for kind, size in kinds.items():
                        cores[core, kind] += size
        yield _gauge(
            "neuroncore_utilization_ratio", "Share of the period that a core was busy", ("core",), utilization.items()
        )
        yield _gauge("neuroncore_memory_bytes", "Device memory by core and kind", ("core", "kind"), cores.items())
        yield _gauge("neuron_device_memory_used_bytes", "Device memory in use, all devices", (), device.items())
        yield _gauge(
            "neuron_host_memory_bytes", "Host memory of the processes that use the runtime", ("kind",), host.items()
        )
        yield _gauge(
            "neuron_execution_latency_seconds",
            "Latency of executions in the last period, of the slowest process",
            ("measured", "percentile"),
            _latencies(self._report.processes).items(),
        )

    def _of_the_machine(self) -> Iterator[Metric]:
        system, hardware = self._report.system, self._report.neuron_hardware_info
        if hardware is not None and not hardware.error:
            devices = hardware.neuron_device_count
            yield _gauge("neuron_devices", "Neuron devices of the machine", (), [((), devices)])
            yield _gauge("neuroncores", "Their cores", (), [((), devices * hardware.neuroncore_per_device_count)])
            if hardware.neuron_device_memory_size:
                size = [((), devices * hardware.neuron_device_memory_size)]
                yield _gauge("neuron_device_memory_size_bytes", "Memory of all devices", (), size)
        if (memory := system.memory_info) and not memory.error:
            names = ("memory_total", "memory_used", "swap_total", "swap_used")
            sizes = [((name,), getattr(memory, f"{name}_bytes")) for name in names]
            yield _gauge("host_memory_bytes", "Memory of the machine", ("kind",), sizes)
        if (cpus := system.vcpu_usage) and not cpus.error:
            shares = [((kind,), percent / _PERCENT) for kind, percent in (cpus.average_usage or {}).items()]
            yield _gauge("host_cpu_ratio", "Share of the machine's CPU time", ("kind",), shares)

    def _counters(self) -> Iterator[Metric]:
        yield _counter("neuron_execution_errors", "Errors of executions", ("kind",), self._errors.items())
        yield _counter("neuron_executions", "Executions by outcome", ("outcome",), self._executions.items())
        yield _counter("neuron_ecc_events", "Memory errors of the devices", ("device", "kind"), self._ecc.items())


def _latencies(processes: Iterable[ProcessReport]) -> dict[_Labels, float]:
    slowest: dict[_Labels, float] = defaultdict(float)
    for process in processes:
        stats = process.execution_stats
        if stats is None or stats.error or stats.latency_stats is None:
            continue
        found = {"total": stats.latency_stats.total_latency, "device": stats.latency_stats.device_latency}
        for measured, percentiles in found.items():
            for percentile, seconds in (percentiles or {}).items():
                slowest[measured, percentile] = max(slowest[measured, percentile], seconds)
    return slowest


def _add(sums: dict[_Labels, float], counts: Mapping[str, int]) -> None:
    for kind, count in counts.items():
        sums[kind,] += count


def _gauge(name: str, help_text: str, labels: _Labels, values: Iterable[tuple[_Labels, float]]) -> Metric:
    metric = GaugeMetricFamily(f"neuronx_serve_{name}", help_text, labels=labels)
    for key, value in sorted(values):
        metric.add_metric(key, value)
    return metric


def _counter(name: str, help_text: str, labels: _Labels, values: Iterable[tuple[_Labels, float]]) -> Metric:
    metric = CounterMetricFamily(f"neuronx_serve_{name}", help_text, labels=labels)
    for key, value in sorted(values):
        metric.add_metric(key, value)
    return metric
