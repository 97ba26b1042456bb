"""A running server under load, as its clients see it: `concurrency` streams at once, each followed by the next."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from server.bench.device import PROMPT_TOKENS
from server.bench.spent import NOT_TOLD, Spent, read
from server.bench.streams import Answer, Route, Stream, answer, client, count_tokens, metrics
from server.bench.timeline import percentile

_SENTENCES = (
    "Write a story for children of ten to twelve years.",
    "A young woman named Lila finds out that she can command the weather.",
    "She lives in a small town in which everybody knows everybody else.",
    "Tell how she learns to use her gift, and what it costs her.",
    "Be kind to every person in the story, and use no harsh words.",
    "Let the sea, the wind and an old lighthouse have a part in it.",
    "Begin on a grey morning in autumn, and end on the first day of spring.",
    "The story shall have at least five hundred words.",
)


class ClientFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What the clients of one concurrency saw; seconds, but for the names that say milliseconds.

    `tokens_per_s`: new tokens of all streams, over the time from the first request to the last token. A latency runs
    from the request to the end of the answer, `ttft` to its first token; `inter_token` is between two tokens of one
    stream. `tokens_per_min` counts prompts too, as the published benchmark does. `failed` requests count nowhere else.

    `device_share` is the part of the time in which the server's device computed, by its own `/metrics`: what comes over
    HTTP, of the rate that its step and prefill times would give without a pause between them. `sampling_share` is what
    its sampling took. NaN where the server does not tell.
    """

    concurrency: int
    requests: int
    failed: int
    new_tokens: int
    seconds: float
    tokens_per_s: float
    device_share: float
    sampling_share: float
    latency_avg: float
    latency_p50: float
    latency_p90: float
    ttft_p50: float
    ttft_p90: float
    inter_token_ms_p50: float
    inter_token_ms_p99: float
    requests_per_min: float
    tokens_per_min: float
    error: str = ""


def figures(concurrency: int, seen: Sequence[Answer], spent: Spent = NOT_TOLD) -> ClientFigures:
    """Pure. `spent` in the time of these answers. RuntimeError when none of them came to its end."""
    whole = [each for each in seen if not each.error]
    if not whole:
        raise RuntimeError(f"none of {len(seen)} requests was answered: {seen[0].error}")
    latencies = [each.ended_at - each.asked_at for each in whole]
    first = [each.token_at[0] - each.asked_at for each in whole]
    between = [1000 * (b - a) for each in whole for a, b in zip(each.token_at, each.token_at[1:], strict=False)]
    seconds = max(each.ended_at for each in whole) - min(each.asked_at for each in whole)
    new_tokens = sum(each.tokens for each in whole)
    return ClientFigures(
        concurrency=concurrency,
        requests=len(whole),
        failed=len(seen) - len(whole),
        new_tokens=new_tokens,
        seconds=seconds,
        tokens_per_s=new_tokens / seconds,
        device_share=spent.device / seconds,
        sampling_share=spent.sampling / seconds,
        latency_avg=sum(latencies) / len(latencies),
        latency_p50=percentile(latencies, 50),
        latency_p90=percentile(latencies, 90),
        ttft_p50=percentile(first, 50),
        ttft_p90=percentile(first, 90),
        inter_token_ms_p50=percentile(between, 50) if between else math.nan,
        inter_token_ms_p99=percentile(between, 99) if between else math.nan,
        requests_per_min=60 * len(whole) / seconds,
        tokens_per_min=60 * (new_tokens + sum(each.prompt_tokens for each in whole)) / seconds,
        error=next((each.error for each in seen if each.error), ""),
    )


async def measure(
    url: str,
    route: Route,
    *,
    concurrency: int,
    requests: int,
    tokens: int,
    seconds: float,
    api_key: str = "",
    greedy: bool = False,
    first: int,
    progress: Callable[[int], None],
) -> ClientFigures:
    """Ask `requests` times, `concurrency` at once, with no new request after `seconds`. RuntimeError: see figures().

    The prompts are numbered from `first` on: callers take ranges that do not overlap.
    """
    seen: list[Answer] = []
    end = time.monotonic() + seconds
    places = iter(range(requests))
    async with client(concurrency, api_key) as http:
        usual = round(PROMPT_TOKENS / 1.2)  # words of English
        counted = await count_tokens(http, url, _prompt(first, usual))
        words = round(usual * PROMPT_TOKENS / counted) if counted else usual

        before = read(await metrics(http, url))

        async def one_client() -> None:
            for place in places:
                if time.monotonic() >= end:
                    return
                prompt = _prompt(first + place, words)
                seen.append(await answer(http, url, route, _stream(route, place, prompt, tokens, greedy)))
                progress(len(seen))

        await asyncio.gather(*(one_client() for _ in range(concurrency)))
        spent = read(await metrics(http, url)).since(before)
    return figures(concurrency, seen, spent)


def _stream(route: Route, place: int, prompt: str, tokens: int, greedy: bool) -> Stream:
    parameters: dict[str, Any]
    if route == "openai":
        parameters = {"temperature": 0} if greedy else {}
    else:
        parameters = {} if greedy else {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "seed": place + 1}
    return Stream(prompt, tokens, parameters)


def _prompt(number: int, words: int) -> str:
    """A number in front, its fastest digit first, so that a server that reuses prefixes finds no more in a prompt than
    what a chat's template puts before it, and a digit or two."""
    story = itertools.islice(itertools.cycle(" ".join(_SENTENCES).split()), max(1, words))
    return f"{number}"[::-1] + ". " + " ".join(story)
