"""The plan of one model as rows of marked figures: what `plan` prints and writes as JSON.

Every figure says how it is known: by arithmetic, from a publication, or as an estimate that only hardware can settle.
Knows no layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from models.planner.hardware import CORE_BYTES, GIB, Instance
from models.planner.memory import core_memory, cpu_host_memory, neuron_host_memory
from models.planner.timing import Seconds, decode_step, load, prefill
from models.planner.workload import PUBLISHED, Forecast, Performance, Workload, forecast
from models.protocol import CpuOptions, NeuronOptions
from models.spec import ModelSpec

Mark = Literal["arithmetic", "published", "hardware"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number, or an expected range when `high` differs from `low`."""

    mark: Mark
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity: a cell for each column of its table, each of one or more figures, empty where nothing is known."""

    name: str
    unit: str
    cells: tuple[tuple[Figure, ...], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Columns are the number types of the weights, the configured one first, then what is published.

    In the `impossible` ones the model does not fit its cores.
    """

    columns: tuple[str, ...]
    impossible: tuple[str, ...]
    rows: tuple[Row, ...]


def neuron_table(
    spec: ModelSpec, options: NeuronOptions, instance: Instance, workload: Workload, disk_bytes_per_s: float
) -> Table:
    """Memory, times and the workload's forecast, in the configured number type and in the other one."""
    variants = (options, replace(options, quant="s8" if options.quant == "none" else "none"))
    rows = [
        *_memory_rows(spec, variants),
        Row(
            f"load, disk of {disk_bytes_per_s / 1e6:.0f} MB/s",
            "s",
            (*(_seconds(load(spec, disk_bytes_per_s)) for _ in variants), (_published(PUBLISHED.exchange_s),)),
        ),
    ]
    for bucket in options.token_buckets:
        rows.append(_timed(f"decode step, bucket {bucket}", [decode_step(spec, each, bucket) for each in variants]))
    for bucket in options.context_buckets:
        rows.append(_timed(f"prefill, bucket {bucket}", [prefill(spec, each, bucket) for each in variants]))
    rows += _workload_rows([forecast(spec, each, workload, instance.dollars_per_hour) for each in variants])
    impossible = tuple(_type(each) for each in variants if not core_memory(spec, each).fits)
    return Table((*map(_type, variants), "published"), impossible, tuple(rows))


def cpu_table(spec: ModelSpec, options: CpuOptions) -> Table:
    """Host memory alone: how fast a processor is, a load measures."""
    memory = cpu_host_memory(spec, options)
    rows = (
        Row("host: weights", "GiB", ((_arithmetic(memory.weights / GIB),),)),
        Row("host: KV cache", "GiB", ((_arithmetic(memory.kv / GIB),),)),
        Row("host: all, at most", "GiB", ((_estimate(memory.peak / GIB),),)),
    )
    return Table((options.dtype,), (), rows)


def _type(options: NeuronOptions) -> str:
    return options.amp if options.quant == "none" else "int8"


def _memory_rows(spec: ModelSpec, variants: Sequence[NeuronOptions]) -> list[Row]:
    cores = [core_memory(spec, options) for options in variants]
    hosts = [neuron_host_memory(spec, options) for options in variants]

    def row(name: str, figure: Callable[[float], Figure], values: Sequence[int]) -> Row:
        return Row(name, "GiB", (*((figure(value / GIB),) for value in values), ()))

    return [
        row("a core: weights", _arithmetic, [core.weights for core in cores]),
        row("a core: KV cache", _arithmetic, [core.kv for core in cores]),
        row("a core: graphs and runtime", _estimate, [core.runtime for core in cores]),
        row(f"a core: all, of {CORE_BYTES / GIB:.2f}", _estimate, [core.total for core in cores]),
        row("host: while loading", _estimate, [host.peak for host in hosts]),
        row("host: afterwards", _estimate, [host.resident for host in hosts]),
    ]


def _timed(name: str, times: Sequence[Seconds]) -> Row:
    scaled = (Seconds(each.floor * 1e3, each.optimistic * 1e3, each.pessimistic * 1e3) for each in times)
    return Row(name, "ms", (*map(_seconds, scaled), ()))


def _workload_rows(forecasts: Sequence[Forecast | None]) -> list[Row]:
    """No rows when a slot is too short for the workload."""

    def row(name: str, unit: str, value: Callable[[Performance], float], published: float | None) -> Row:
        cells = [
            (
                _arithmetic(value(each.floor)),
                Figure("hardware", *sorted((value(each.optimistic), value(each.pessimistic)))),
            )
            for each in forecasts
            if each is not None
        ]
        return Row(name, unit, (*cells, () if published is None else (_published(published),)))

    if None in forecasts:
        return []
    return [
        row("time to first token", "s", lambda each: each.ttft_s, None),
        row("whole answer", "s", lambda each: each.latency_s, PUBLISHED.latency_s),
        row("new tokens, all users", "/s", lambda each: each.tokens_per_s, PUBLISHED.tokens_per_s),
        row("requests", "/min", lambda each: each.requests_per_min, PUBLISHED.requests_per_min),
        row("a million tokens", "$", lambda each: each.dollars_per_million, PUBLISHED.dollars_per_million),
    ]


def _seconds(times: Seconds) -> tuple[Figure, ...]:
    return _arithmetic(times.floor), Figure("hardware", times.optimistic, times.pessimistic)


def _arithmetic(value: float) -> Figure:
    return Figure("arithmetic", value, value)


def _estimate(value: float) -> Figure:
    return Figure("hardware", value, value)


def _published(value: float) -> Figure:
    return Figure("published", value, value)
