"""Streams that go on while others leave: the same load once alone and once in a storm, on one server.

The device is simulated, the rest is real: HTTP server, worker process, streams and storm in processes of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from server.bench.device import write_text_files
from server.bench.leavers import ANSWER_S, Left, Storm
from server.bench.simulated import Case, Run, listening, load, read_from_outside
from server.bench.streams import Answer
from server.bench.timeline import Step, percentile
from server.listener import run_on_loop

SLOW = 4
SPARE_SLOTS = 8  # for the leavers; more of them wait


class StormFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `bench --simulated --http --storm N`: what `streams` clients saw alone, and in the storm.

    Both are taken from the moment on when each of them had its first token. `inter_token` is between two tokens of one
    stream; `tokens_per_s` counts these streams only; a ratio is the storm's over that alone. `left`: leavers that had
    their tokens and hung up. `feed_share`: device time of prefills in the storm, over all time: what the leavers'
    prompts cost, whoever comes. `leavers_tokens` were drawn for those who left or read slowly.
    """

    streams: int
    step_ms: float
    vocab: int
    leavers: int
    left: int
    slow_readers: int
    inter_token_ms_p50_alone: float
    inter_token_ms_p50_storm: float
    inter_token_p50_ratio: float
    inter_token_ms_p99_alone: float
    inter_token_ms_p99_storm: float
    inter_token_p99_ratio: float
    tokens_per_s_alone: float
    tokens_per_s_storm: float
    throughput_ratio: float
    feed_share: float
    leavers_tokens: int


def measure(case: Case, leavers: int) -> StormFigures:
    """Run both: twice the tokens of a stream, of `step_ms` each, and what the storm adds."""
    with TemporaryDirectory(prefix="neuronx-serve-bench-") as name:
        write_text_files(Path(name), case.vocab)
        return run_on_loop(_measure(case, leavers, Path(name)))


async def _measure(case: Case, leavers: int, directory: Path) -> StormFigures:
    if case.tokens < 2:
        raise RuntimeError(f"streams of {case.tokens} token have no time between tokens: ask for more with --tokens")
    run = Run(case, directory, slots=case.streams + SLOW + SPARE_SLOTS)
    lengths = [case.tokens] * case.streams
    async with run.served(), listening(run) as url:
        alone = seen_by(await read_from_outside(load(case, url, lengths)))
        before = len(run.metrics.steps)
        run.metrics.stepped.clear()
        async with _leavers() as raging:
            reading = asyncio.create_task(read_from_outside(load(case, url, lengths, first=case.streams)))
            await _begun(run, reading)
            _send(raging, case, leavers, int(url.rpartition(":")[2]))
            storm = seen_by(await reading)
            meanwhile = run.metrics.steps[before:]
            left = await _over(raging)
            drawn = sum(step.rows for step in run.metrics.steps[before:])
    return StormFigures(
        streams=case.streams,
        step_ms=case.step_ms,
        vocab=case.vocab,
        leavers=leavers,
        left=left.leavers,
        slow_readers=SLOW,
        inter_token_ms_p50_alone=alone.inter_token_ms_p50,
        inter_token_ms_p50_storm=storm.inter_token_ms_p50,
        inter_token_p50_ratio=storm.inter_token_ms_p50 / alone.inter_token_ms_p50,
        inter_token_ms_p99_alone=alone.inter_token_ms_p99,
        inter_token_ms_p99_storm=storm.inter_token_ms_p99,
        inter_token_p99_ratio=storm.inter_token_ms_p99 / alone.inter_token_ms_p99,
        tokens_per_s_alone=alone.tokens_per_s,
        tokens_per_s_storm=storm.tokens_per_s,
        throughput_ratio=storm.tokens_per_s / alone.tokens_per_s,
        feed_share=feed_share(meanwhile, case.streams),
        leavers_tokens=drawn - sum(lengths),
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """What the streams of one load saw from the moment on when each of them had its first token."""

    inter_token_ms_p50: float
    inter_token_ms_p99: float
    tokens_per_s: float


def seen_by(answers: Sequence[Answer]) -> Seen:
    """Pure. Before all have begun, each waits for the prompts of the others, which is no matter of who leaves."""
    began = max(each.token_at[0] for each in answers)
    after = [[at for at in each.token_at if at >= began] for each in answers]
    between = [1000 * (later - at) for each in after for at, later in itertools.pairwise(each)]
    seconds = max(each.ended_at for each in answers) - began
    return Seen(percentile(between, 50), percentile(between, 99), sum(map(len, after)) / seconds)


def feed_share(steps: Sequence[Step], streams: int) -> float:
    """Device time of what is no decode, over all time, from the first decode step of so many streams on."""
    first = next((i for i, step in enumerate(steps) if step.method == "decode" and step.rows >= streams), 0)
    later = steps[first:]
    return sum(step.device_s for step in later if step.method != "decode") / sum(step.total_s for step in later)


async def _begun(run: Run, reading: asyncio.Task[list[Answer]]) -> None:
    """The first step of these streams, or their end, if they have failed."""
    stepped = asyncio.create_task(run.metrics.stepped.wait())
    await asyncio.wait({stepped, reading}, return_when=asyncio.FIRST_COMPLETED)
    stepped.cancel()


@asynccontextmanager
async def _leavers() -> AsyncIterator[asyncio.subprocess.Process]:
    """Their process, which waits to be told of its storm; it is gone behind the block."""
    raging = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.bench.leavers"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield raging
    finally:
        if raging.returncode is None:
            raging.kill()
        await raging.wait()


def _send(raging: asyncio.subprocess.Process, case: Case, leavers: int, port: int) -> None:
    """Let the storm begin: it comes over the time that the streams take alone."""
    assert raging.stdin is not None
    storm = Storm(port, leavers, SLOW, seconds=case.tokens * case.step_s, tokens=case.tokens)
    raging.stdin.write(msgspec.json.encode(storm) + b"\n")


async def _over(raging: asyncio.subprocess.Process) -> Left:
    """Tell the storm that its streams are done. RuntimeError when it does not end."""
    try:
        said, _ = await asyncio.wait_for(raging.communicate(b""), 2 * ANSWER_S)
    except asyncio.TimeoutError:
        raise RuntimeError("the clients who leave did not end") from None
    if raging.returncode:
        raise RuntimeError(f"the clients who leave ended with exit code {raging.returncode}: see above")
    return msgspec.json.decode(said, type=Left)
