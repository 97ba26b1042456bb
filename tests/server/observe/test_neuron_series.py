"""neuron-monitor's reports in the Prometheus text, series by series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.observe.metrics import Metrics
from server.observe.neuron_report import read_report

Line = Callable[[str], bytes]


def shown(metrics: Metrics) -> dict[Any, float]:
    """By (name, *label values)."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name.removeprefix("neuronx_serve_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_nothing_is_shown_without_neuron_monitor(metrics: Metrics) -> None:
    assert metrics.render() == b""


def test_a_report_of_two_busy_cores(metrics: Metrics, neuron_report: Line) -> None:
    metrics.neuron.show(read_report(neuron_report("serving")))
    expected = {
        ("neuron_monitor_up",): 1,
        ("neuroncore_utilization_ratio", "0"): 0.875,
        ("neuroncore_utilization_ratio", "1"): 0.8625,
        ("neuroncore_memory_bytes", "1", "constants"): 8032092160,
        ("neuroncore_memory_bytes", "0", "model_code"): 310378496,
        ("neuron_device_memory_used_bytes",): 21353201664,
        ("neuron_device_memory_size_bytes",): 34359738368,
        ("neuron_host_memory_bytes", "dma_buffers"): 139460608,
        ("neuron_execution_latency_seconds", "device", "p99"): 0.0312,
        ("neuron_devices",): 1,
        ("neuroncores",): 2,
        ("host_memory_bytes", "memory_total"): 16480000000,
        ("host_cpu_ratio", "idle"): 0.83,
        ("neuron_execution_errors_total", "transient"): 2,
        ("neuron_execution_errors_total", "hardware"): 0,
        ("neuron_executions_total", "completed"): 175,
        ("neuron_ecc_events_total", "0", "mem_ecc_corrected"): 3,
        ("neuron_ecc_events_total", "0", "sram_ecc_uncorrected"): 0,
    }
    found = shown(metrics)
    assert {key: found.get(key) for key in expected} == expected


def test_two_processes_on_cores_of_their_own_add_up(metrics: Metrics) -> None:
    process = (
        '{"report": {"neuroncore_counters": {"neuroncores_in_use": {"0": {"neuroncore_utilization": %d},'
        ' "1": {"neuroncore_utilization": %d}}}, "memory_used": {"neuron_runtime_used_bytes": {"neuron_device": 7}}}}'
    )
    document = f'{{"neuron_runtime_data": [{process % (50, 0)}, {process % (0, 25)}]}}'
    metrics.neuron.show(read_report(document.encode()))
    found = shown(metrics)
    assert found["neuroncore_utilization_ratio", "0"] == 0.5
    assert found["neuroncore_utilization_ratio", "1"] == 0.25
    assert found[("neuron_device_memory_used_bytes",)] == 14


def test_counts_are_those_of_a_period_and_add_up(metrics: Metrics, neuron_report: Line) -> None:
    for _ in range(3):
        metrics.neuron.show(read_report(neuron_report("serving")))
    found = shown(metrics)
    assert found["neuron_execution_errors_total", "numerical"] == 3
    assert found["neuron_executions_total", "completed"] == 525
    assert found["neuron_ecc_events_total", "0", "mem_ecc_corrected"] == 9


def test_what_a_report_leaves_out_is_not_shown(metrics: Metrics, neuron_report: Line) -> None:
    metrics.neuron.show(read_report(neuron_report("loading")))
    names = {name for name, *_ in shown(metrics)}
    assert "neuron_device_memory_used_bytes" in names
    assert not names & {"neuroncore_utilization_ratio", "neuron_execution_latency_seconds", "neuron_ecc_events_total"}
    metrics.neuron.show(read_report(neuron_report("idle")))
    names = {name for name, *_ in shown(metrics)}
    assert "neuroncores" in names
    assert not names & {"neuroncore_memory_bytes", "neuron_device_memory_size_bytes", "neuron_device_memory_used_bytes"}


def test_a_monitor_that_went_leaves_its_counters_alone(metrics: Metrics, neuron_report: Line) -> None:
    metrics.neuron.show(read_report(neuron_report("serving")))
    metrics.neuron.missing()
    found = shown(metrics)
    assert found[("neuron_monitor_up",)] == 0
    counters = {"neuron_execution_errors_total", "neuron_executions_total", "neuron_ecc_events_total"}
    assert {name for name, *_ in found} == {"neuron_monitor_up", *counters}
