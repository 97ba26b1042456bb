"""TGI's native routes: POST /generate, /generate_stream and / (wire contract, sections 3, 6 and 7)."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import UNSET, UnsetType
from starlette.requests import Request

from server import core
from server.api.access import caller_of
from server.api.answers import (
    BestOfSequence,
    Details,
    ErrorResponse,
    GenerateResponse,
    StreamDetails,
    StreamResponse,
    Token,
    encode,
    wire_prefill,
    wire_token,
    wire_tokens,
)
from server.api.call import Account, Call, Held, Run
from server.api.line import line_of
from server.api.respond import event_stream, plain_answer
from server.api.schema import CompatGenerateRequest, GenerateRequest
from server.api.service import read, service_of
from server.api.sse import event
from server.api.validation import Wanted
from server.errors import IncompleteGeneration, ServeError

log = logging.getLogger(__name__)


async def generate(request: Request) -> Held:
    """POST /generate: one JSON object."""
    timings = core.Timings(time.monotonic())
    body = await read(request, GenerateRequest)
    return await plain_answer(request, _call(request, body, timings, stream=False), _answer)


async def generate_stream(request: Request) -> Held:
    """POST /generate_stream: one event a token; errors of validation and generation are events too."""
    timings = core.Timings(time.monotonic())
    body = await read(request, GenerateRequest)
    return _stream(_call(request, body, timings, stream=True))


async def compat_generate(request: Request) -> Held:
    """POST /: as /generate in an array of one, or as /generate_stream; the full text unless told otherwise."""
    timings = core.Timings(time.monotonic())
    return await answer_compat(request, await read(request, CompatGenerateRequest), timings)


async def answer_compat(request: Request, body: CompatGenerateRequest, timings: core.Timings) -> Held:
    """The answer of POST /, to a body that was read before."""
    call = _call(request, body, timings, stream=body.stream)
    if body.stream:
        return _stream(call, full_text_default=True)
    return await plain_answer(request, call, lambda call, outputs: [_answer(call, outputs, full_text_default=True)])


def _call(request: Request, body: GenerateRequest, timings: core.Timings, *, stream: bool) -> Call:
    service = service_of(request)
    model = service.model_for(request, body.parameters.model)
    return Call(
        service=service,
        model=model,
        wanted=Wanted(body.inputs, body.parameters),
        add_special_tokens=True,
        stream=stream,
        timings=timings,
        account=Account(
            service.metrics,
            line_of(request),
            model,
            sequences=body.parameters.best_of or 1,
            caller=caller_of(request.headers),
        ),
    )


def _generated_text(call: Call, finish: core.Finish, full_text_default: bool) -> str:
    wanted = call.wanted.parameters.return_full_text
    full = full_text_default if wanted is None else wanted
    return call.wanted.inputs + finish.text if full else finish.text


def _finish(outputs: list[core.Output]) -> core.Finish:
    finish = outputs[-1].finish
    assert finish is not None, "outputs end with a finished one"
    return finish


# --- plain


def _answer(call: Call, outputs: list[core.Output], full_text_default: bool = False) -> GenerateResponse:
    finish = _finish(outputs)
    text = _generated_text(call, finish, full_text_default)
    parameters = call.wanted.parameters
    if not (parameters.details or parameters.decoder_input_details):
        return GenerateResponse(text)
    others = [_other(call, run, full_text_default) for run in call.others]
    details = Details(
        finish_reason=finish.reason,
        generated_tokens=finish.generated_tokens,
        seed=call.admitted.seed,
        prefill=wire_prefill(finish.prompt),
        tokens=[wire_token(output.token) for output in outputs],
        top_tokens=_top_tokens(call, outputs),
        best_of_sequences=others or UNSET,
    )
    return GenerateResponse(text, details)


def _other(call: Call, run: Run, full_text_default: bool) -> BestOfSequence:
    finish = _finish(run.outputs)
    return BestOfSequence(
        generated_text=_generated_text(call, finish, full_text_default),
        finish_reason=finish.reason,
        generated_tokens=finish.generated_tokens,
        seed=run.request.seed,
        prefill=wire_prefill(finish.prompt),
        tokens=[wire_token(output.token) for output in run.outputs],
        top_tokens=_top_tokens(call, run.outputs),
    )


def _top_tokens(call: Call, outputs: list[core.Output]) -> list[list[Token]] | UnsetType:
    if not call.wanted.parameters.top_n_tokens:
        return UNSET
    return [wire_tokens(output.top_tokens) for output in outputs]


# --- streamed


def _stream(call: Call, full_text_default: bool = False) -> Held:
    return event_stream([call], _events(call, full_text_default))


async def _events(call: Call, full_text_default: bool) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(call.outputs()) as outputs:
            async for output in outputs:
                yield event(encode(_event(call, output, full_text_default)))
    except ServeError as error:
        yield event(encode(_stream_error(error)))
    except Exception:
        log.exception("a stream was cut off by a bug")
        yield event(encode(_stream_error(IncompleteGeneration())))


def _event(call: Call, output: core.Output, full_text_default: bool) -> StreamResponse:
    finish = output.finish
    return StreamResponse(
        index=output.index,
        token=wire_token(output.token),
        top_tokens=wire_tokens(output.top_tokens) if output.top_tokens else UNSET,
        generated_text=_generated_text(call, finish, full_text_default) if finish else None,
        details=_stream_details(call, finish) if finish and call.wanted.parameters.details else None,
    )


def _stream_details(call: Call, finish: core.Finish) -> StreamDetails:
    request = call.admitted
    return StreamDetails(finish.reason, finish.generated_tokens, request.seed, len(request.prompt))


def _stream_error(error: ServeError) -> ErrorResponse:
    return ErrorResponse(error.stream_text, error.stream_error_type)
