"""POST /v1/completions: several prompts in one request, plain or interleaved in one stream (contract, section 13)."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response

from server import core
from server.api.access import caller_of
from server.api.answers import Chunk, CompletionChoice, CompletionFinal, encode, wire_usage
from server.api.call import Account, Call, Held
from server.api.chat import FINGERPRINT, finish_of, finish_reason, stream_events, tokens_of, usage_of
from server.api.line import line_of
from server.api.respond import event_stream, held_answer, json_response, summed_measurements
from server.api.schema import CompletionRequest, GenerateParameters
from server.api.service import read, service_of
from server.api.sse import event
from server.api.validation import Wanted
from server.errors import BatchTooLarge, UnsupportedSuffix


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion request on its way: a call for each prompt, with what every piece of the answer repeats."""

    calls: tuple[Call, ...]
    id: str
    created: int
    model: str


async def completions(request: Request) -> Held:
    """POST /v1/completions. A suffix and too many prompts come as HTTP statuses even with `stream`."""
    timings = core.Timings(time.monotonic())
    return await answer_completion(request, await read(request, CompletionRequest), timings)


async def answer_completion(request: Request, body: CompletionRequest, timings: core.Timings) -> Held:
    """The answer to a body that was read before."""
    completion = _completion(request, body, timings)
    if body.stream:
        return event_stream(completion.calls, stream_events(_events(completion)))
    return await held_answer(request, completion.calls[0].held, _answer(completion))


def _completion(request: Request, body: CompletionRequest, timings: core.Timings) -> Completion:
    service = service_of(request)
    model = service.model_for(request, body.model)
    account = Account(service.metrics, line_of(request), model, len(body.prompt), caller=caller_of(request.headers))
    with account.sequence():
        if body.suffix is not None:
            raise UnsupportedSuffix()
        if len(body.prompt) > model.limits.max_client_batch_size:
            raise BatchTooLarge(model.limits.max_client_batch_size)
    held = ExitStack()
    calls = tuple(
        Call(
            service=service,
            model=model,
            wanted=Wanted(prompt, _parameters(body), body.presence_penalty or 0.0),
            add_special_tokens=True,
            stream=body.stream,
            timings=replace(timings),
            account=account,
            held=held,
        )
        for prompt in body.prompt
    )
    return Completion(calls, f"cmpl-{uuid.uuid4().hex}", int(time.time()), model.id)


def _parameters(body: CompletionRequest) -> GenerateParameters:
    """The native parameters that mean the same. Temperature 0 is greedy whatever the filters say; top_p 1 is none."""
    greedy = body.temperature == 0
    return GenerateParameters(
        do_sample=not greedy,
        temperature=None if greedy else body.temperature,
        top_p=None if greedy or body.top_p == 1 else body.top_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        max_new_tokens=body.max_tokens,
        stop=body.stop or (),
        seed=body.seed,
    )


# --- plain


async def _answer(completion: Completion) -> Response:
    answers = await collect_all(completion.calls)
    finishes = [finish_of(outputs) for outputs in answers]
    costs = [tokens_of(call, finish) for call, finish in zip(completion.calls, finishes, strict=True)]
    answer = CompletionFinal(
        id=completion.id,
        created=completion.created,
        model=completion.model,
        system_fingerprint=FINGERPRINT,
        choices=[
            CompletionChoice(index=index, text=finish.text, finish_reason=finish_reason(finish))
            for index, finish in enumerate(finishes)
        ],
        usage=wire_usage(_summed(costs)),
    )
    counted = zip(completion.calls, map(len, answers), strict=True)
    return json_response(answer, headers=summed_measurements(list(counted)))


async def collect_all(calls: Sequence[Call]) -> list[list[core.Output]]:
    """The outputs of each call, all running side by side; the first that fails ends the others."""
    running = [asyncio.ensure_future(call.collect()) for call in calls]
    try:
        return await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _summed(costs: Sequence[core.Usage]) -> core.Usage:
    return core.Usage(
        sum(cost.prompt_tokens for cost in costs),
        sum(cost.completion_tokens for cost in costs),
        sum(cost.cached_tokens for cost in costs),
    )


# --- streamed


async def _events(completion: Completion) -> AsyncGenerator[bytes, None]:
    """One event a token of any prompt, as they come."""
    async with aclosing(_interleaved(completion.calls)) as outputs:
        async for index, output in outputs:
            yield event(encode(_chunk(completion, index, output)))


async def _interleaved(calls: tuple[Call, ...]) -> AsyncGenerator[tuple[int, core.Output], None]:
    """The outputs of all calls with their indices, each in its own order; the first error of any ends all."""
    arrived: asyncio.Queue[tuple[int, core.Output] | None] = asyncio.Queue()

    async def run(index: int, call: Call) -> None:
        try:
            async with aclosing(call.outputs()) as outputs:
                async for output in outputs:
                    arrived.put_nowait((index, output))
        finally:
            arrived.put_nowait(None)

    running = [asyncio.ensure_future(run(index, call)) for index, call in enumerate(calls)]
    try:
        left = len(running)
        while left:
            item = await arrived.get()
            if item is not None:
                yield item
                continue
            left -= 1
            for task in running:
                if task.done():
                    task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _chunk(completion: Completion, index: int, output: core.Output) -> Chunk:
    finish = output.finish
    choice = CompletionChoice(
        index=index,
        text="" if output.token.special else output.token.text,
        finish_reason=finish.reason if finish else "",
    )
    return Chunk(
        id=completion.id,
        created=completion.created,
        model=completion.model,
        system_fingerprint=FINGERPRINT,
        choices=[choice],
        usage=usage_of(completion.calls[index], finish) if finish else None,
    )
