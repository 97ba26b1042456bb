"""The whole server but for the device: registry, engine, worker process and sampling against set step times.

A case is run three times over: all slots live; twice as many requests as slots; single requests to an idle server.
Over HTTP the app listens on a socket in this process, and a process of its own reads the streams.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from models.protocol import SamplingParams, SimulatedOptions
from server.app import create_app
from server.bench.device import PROMPT_TOKENS, StepMetrics, simulated_settings, write_text_files
from server.bench.streams import Answer, Load, Stream
from server.bench.timeline import (
    EngineFigures,
    full_decodes,
    host_added_s,
    idle_share,
    percentile,
    slot_occupancy,
    throughput_ratio,
)
from server.core import Request, Timings
from server.listener import Server, listening_socket, run_on_loop
from server.swap.registry import Registry

MODEL = "simulated"
PREFILL_TOKEN_S = 0.0002
SINGLES = 10
SAMPLING = SamplingParams(do_sample=True, temperature=0.8, top_p=0.95, top_k=50)
GREEDY = SamplingParams()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`streams` at once, `tokens` each, at a step of `step_ms` over `vocab` tokens."""

    streams: int
    step_ms: float
    vocab: int
    tokens: int
    sampling: SamplingParams = SAMPLING
    over_http: bool = False

    @property
    def step_s(self) -> float:
        return self.step_ms / 1000


def cases(streams: Sequence[int], step_ms: Sequence[float], vocab: Sequence[int]) -> list[tuple[int, float, int]]:
    """Every combination of streams, step_ms and vocab, in the order in which they are run."""
    return [(count, step, size) for size, step, count in itertools.product(vocab, step_ms, streams)]


def measure(case: Case) -> EngineFigures:
    """Run one case: some ten seconds at 200 tokens and 20 ms. RuntimeError when its streams never ran all at once."""
    with TemporaryDirectory(prefix="neuronx-serve-bench-") as name:
        write_text_files(Path(name), case.vocab)
        return run_on_loop(_measure(case, Path(name)))


async def _measure(case: Case, directory: Path) -> EngineFigures:
    drive = _over_http if case.over_http else _in_process
    live = Run(case, directory, slots=case.streams)
    async with live.served():
        cpu_s = await drive(live, [case.tokens] * case.streams)
    pairs = full_decodes(live.metrics.steps, case.streams)
    if not pairs:
        raise RuntimeError(
            f"no two steps had all {case.streams} streams: the first had their {case.tokens} tokens before the last "
            "began; measure more --tokens or fewer --streams"
        )
    half = max(1, case.streams // 2)
    queued = Run(case, directory, slots=half)
    async with queued.served():
        # From a half of the tokens up, so that the slots come free one by one.
        await drive(queued, [case.tokens // 2 + i * 37 % (case.tokens // 2 + 1) for i in range(2 * half)])
    single = Run(case, directory, slots=case.streams)
    async with single.served():
        ttft_s = [await single.first_token_s(number) for number in range(SINGLES)]
    steps = [step for _, step in pairs]
    added = [host_added_s(before, step, case.step_s) for before, step in pairs]
    occupancy = slot_occupancy(queued.metrics.steps, half)
    return EngineFigures(
        streams=case.streams,
        step_ms=case.step_ms,
        vocab=case.vocab,
        throughput_ratio=throughput_ratio(pairs, case.step_s),
        host_added_ms_p50=1000 * percentile(added, 50),
        host_added_ms_p99=1000 * percentile(added, 99),
        sampling_ms_p50=1000 * percentile([step.sampling_s for step in steps], 50),
        device_ms_p50=1000 * percentile([step.device_s for step in steps], 50),
        device_idle_share=idle_share(steps),
        slot_occupancy=occupancy,
        ttft_server_ms_p50=1000 * percentile(ttft_s, 50),
        api_cpu_us_per_token=1e6 * cpu_s / (case.streams * case.tokens) if case.over_http else None,
    )


class Run:
    """One server with a worker process of its own, and the steps it ran."""

    def __init__(self, case: Case, directory: Path, *, slots: int) -> None:
        self.case = case
        self.metrics = StepMetrics()
        options = SimulatedOptions(
            slots=slots,
            n_positions=PROMPT_TOKENS + case.tokens + 1,
            vocab_size=case.vocab,
            step_s=case.step_s,
            prefill_token_s=PREFILL_TOKEN_S,
        )
        self.settings = simulated_settings({MODEL: options}, directory)
        self.registry = Registry(self.settings, self.metrics)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """The model is available in the block."""
        model = self.registry.default
        self.metrics.waiting = lambda: model.engine.waiting
        await self.registry.start()
        try:
            await self.registry.settled(model)
            assert model.state == "available", model.error
            yield
        finally:
            await self.registry.close()

    async def answer(self, number: int, tokens: int) -> Timings:
        """One whole answer, taken from the registry as the API takes it."""
        now = time.monotonic()
        timings = Timings(arrived=now, validated=now)
        request = Request(
            model=MODEL,
            prompt=tuple((number * 7919 + place * 104_729) % self.case.vocab for place in range(PROMPT_TOKENS)),
            text="",
            max_new_tokens=tokens,
            sampling=msgspec.structs.replace(self.case.sampling, seed=number),
            seed=number,
        )
        async for _ in await self.registry.submit(self.registry.default, request, timings):
            pass
        return timings

    async def first_token_s(self, number: int) -> float:
        """The server's own share of the time to the first token of a request to the idle server."""
        timings = await self.answer(number, 1)
        prefill = next(step for step in reversed(self.metrics.steps) if step.method == "prefill")
        return timings.first_token - timings.arrived - prefill.device_s


async def _in_process(run: Run, lengths: Sequence[int]) -> float:
    """Seconds of CPU of this process."""
    began = time.process_time()
    await asyncio.gather(*(run.answer(number, length) for number, length in enumerate(lengths)))
    return time.process_time() - began


async def _over_http(run: Run, lengths: Sequence[int]) -> float:
    """Seconds of CPU of this process, in which the app listens on a real socket."""
    async with listening(run) as url:
        began = time.process_time()
        await read_from_outside(load(run.case, url, lengths))
        return time.process_time() - began


@asynccontextmanager
async def listening(run: Run) -> AsyncIterator[str]:
    """The URL at which the app of this process listens in the block."""
    app = create_app(run.settings, run.registry, run.metrics)
    app.router.lifespan_context = _already_started
    with listening_socket("127.0.0.1", 0) as listens:
        server = Server(app)
        serving = asyncio.create_task(server.serve(sockets=[listens]))
        try:
            yield f"http://127.0.0.1:{listens.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def _already_started(app: object) -> AsyncIterator[None]:
    yield


def load(case: Case, url: str, lengths: Sequence[int], first: int = 0) -> Load:
    """A stream for each of these lengths; no two of other numbers, from `first`, have one prompt."""
    sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 50} if case.sampling.do_sample else {}
    streams = [Stream(f"{number:>{PROMPT_TOKENS}}", length, sampling) for number, length in enumerate(lengths, first)]
    return Load(url=url, route="tgi", streams=streams)


async def read_from_outside(load: Load) -> list[Answer]:
    """What clients in a process of their own see. RuntimeError when a stream ended early; they say why on stderr."""
    readers = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.bench.streams"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await readers.communicate(msgspec.json.encode(load))
    seen = msgspec.json.decode(said, type=list[Answer])
    if [each.tokens for each in seen] != [stream.tokens for stream in load.streams]:
        raise RuntimeError("a stream ended early: see above")
    return seen
