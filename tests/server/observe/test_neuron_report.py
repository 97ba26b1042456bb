"""What a document of neuron-monitor says, and that it may say less."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.observe.neuron_report import read_report

Line = Callable[[str], bytes]


def test_a_whole_report(neuron_report: Line) -> None:
    report = read_report(neuron_report("serving"))
    (process,) = report.processes
    assert process.neuroncore_counters is not None
    cores = process.neuroncore_counters.neuroncores_in_use
    assert cores is not None
    assert {core: use.neuroncore_utilization for core, use in cores.items()} == {"0": 87.5, "1": 86.25}
    assert process.execution_stats is not None
    assert process.execution_stats.error_summary is not None
    assert process.execution_stats.error_summary["transient"] == 2
    assert report.neuron_hardware_info is not None
    assert report.neuron_hardware_info.neuron_device_memory_size == 32 * 2**30
    assert list(report.errors()) == []


def test_figures_that_are_missing_say_why(neuron_report: Line) -> None:
    assert list(read_report(neuron_report("loading")).errors()) == ["neuron_hw_counters: driver is too old"]
    report = read_report(neuron_report("without-driver"))
    assert report.processes == ()
    assert list(report.errors()) == ["neuron_hardware_info: neuron driver is not loaded"]


def test_a_process_that_could_not_be_asked_reports_nothing() -> None:
    report = read_report(b'{"neuron_runtime_data": [{"pid": 7, "error": "gone", "report": {}}]}')
    assert report.processes == ()
    assert list(report.errors()) == ["process 7: gone"]


def test_an_empty_document_is_a_report_of_nothing() -> None:
    report = read_report(b"{}")
    assert report.processes == ()
    assert list(report.errors()) == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"starting neuron-monitor", "malformed"),
        (b'{"neuron_runtime_data": [', "truncated"),
        (b'{"system_data": {"memory_info": {"memory_total_bytes": "much"}}}', r"\$.system_data.memory_info"),
        (b'{"neuron_runtime_data": [{"pid": 1, "error": "\xff"}]}', "utf-8"),
    ],
)
def test_what_is_no_report_says_where(line: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_report(line)
