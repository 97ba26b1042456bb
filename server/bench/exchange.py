"""What an exchange adds to the load, what staging costs the running streams, and how soon a dead worker is missed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from models.protocol import SamplingParams, SimulatedOptions
from server.bench.device import PROMPT_TOKENS, StepMetrics, simulated_settings, write_text_files
from server.bench.timeline import percentile
from server.core import Request, Timings
from server.listener import run_on_loop
from server.swap.model import Model
from server.swap.registry import Registry

VOCAB = 49_152
STEP_S = 0.02
SETTLE_S = 1.0


class ExchangeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One exchange under `streams` running streams, which are parked and go on when their model is back.

    `load_s`: the load alone, as set. `activate_s`: from activate to available; `added_s`: what is above the load.
    `staging_s`: from activate until the old model drains, beside which it serves on. `inter_token_ms_p50`: of the
    streams before activate, and `_staging` while the newcomer is staged. `lost`: answers with too few tokens.
    `death_seen_ms`: from the SIGKILL that ends the worker of an available model until the model is no longer available.
    """

    streams: int
    load_s: float
    activate_s: float
    added_s: float
    staging_s: float
    inter_token_ms_p50: float
    inter_token_ms_p50_staging: float
    lost: int
    death_seen_ms: float


def measure(streams: int, load_s: float) -> ExchangeFigures:
    """Exchange two simulated models once, there and back."""
    with TemporaryDirectory(prefix="neuronx-serve-bench-") as name:
        write_text_files(Path(name), VOCAB)
        return run_on_loop(_measure(Path(name), streams, load_s))


class _Reader:
    """A client of one stream: when its tokens came."""

    def __init__(self) -> None:
        self.token_at: list[float] = []

    async def read(self, registry: Registry, model: Model, number: int, tokens: int) -> bool:
        """Whether the whole answer came."""
        now = time.monotonic()
        request = Request(
            model=model.id,
            prompt=tuple((number * 7919 + place) % VOCAB for place in range(PROMPT_TOKENS)),
            text="",
            max_new_tokens=tokens,
            sampling=SamplingParams(),
        )
        async for _ in await registry.submit(model, request, Timings(arrived=now, validated=now)):
            self.token_at.append(time.monotonic())
        return len(self.token_at) == tokens


async def _measure(directory: Path, streams: int, load_s: float) -> ExchangeFigures:
    tokens = round((2 * SETTLE_S + load_s) / STEP_S)  # they outlast the exchange
    options = SimulatedOptions(
        slots=max(1, streams), n_positions=PROMPT_TOKENS + tokens, vocab_size=VOCAB, step_s=STEP_S, load_s=load_s
    )
    registry = Registry(simulated_settings({"old": options, "new": options}, directory), StepMetrics())
    old, new = registry.models
    await registry.start()
    try:
        await registry.settled(old)
        readers = [_Reader() for _ in range(streams)]
        reading = [asyncio.create_task(each.read(registry, old, i, tokens)) for i, each in enumerate(readers)]
        await asyncio.sleep(SETTLE_S)
        asked = time.monotonic()
        registry.activate(new)
        staged, available = await _watch(registry, new)
        registry.activate(old)
        lost = sum(not whole for whole in await asyncio.gather(*reading))
        await registry.settled(old)
        seen = await _death_seen_s(registry, old)
    finally:
        await registry.close()
    return ExchangeFigures(
        streams=streams,
        load_s=load_s,
        activate_s=available - asked,
        added_s=available - asked - load_s,
        staging_s=staged - asked,
        inter_token_ms_p50=_inter_token_ms(readers, 0.0, asked),
        inter_token_ms_p50_staging=_inter_token_ms(readers, asked, staged),
        lost=lost,
        death_seen_ms=1000 * seen,
    )


async def _watch(registry: Registry, model: Model) -> tuple[float, float]:
    """When it was staged, and when it was available. RuntimeError when it does not come."""
    staged = 0.0
    async for entry in registry.events():
        if entry.id != model.id:
            continue
        if entry.state == "loading" and not staged:
            staged = time.monotonic()
        if entry.state == "available":
            return staged, time.monotonic()
        if entry.state == "failed":
            raise RuntimeError(f"the newcomer failed: {entry.error}")
    raise RuntimeError("the server stopped")


async def _death_seen_s(registry: Registry, model: Model) -> float:
    """Kill the worker of the only model on the device. RuntimeError when the server stops instead."""
    async with aclosing(registry.events()) as events:
        for pid in _workers():
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        async for entry in events:
            if entry.id == model.id and entry.state != "available":
                return time.monotonic() - killed
    raise RuntimeError("the server stopped")


def _workers() -> list[int]:
    """Process ids of this process's workers."""
    children = " ".join(file.read_text() for file in Path("/proc/self/task").glob("*/children")).split()
    return [int(pid) for pid in children if b"models/__main__.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _inter_token_ms(readers: list[_Reader], after: float, before: float) -> float:
    between = [
        1000 * (second - first)
        for each in readers
        for first, second in zip(each.token_at, each.token_at[1:], strict=False)
        if after <= first and second <= before
    ]
    return percentile(between, 50) if between else 0.0
