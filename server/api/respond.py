"""Responses: JSON, errors in TGI's two layers, and the headers of a generation's answer (wire contract, 2 and 6)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import ErrorResponse, encode
from server.api.call import Call, Held, unless_gone
from server.api.sse import EventStream
from server.core import Output
from server.errors import BodyError, IncompleteGeneration, ServeError, Unavailable


def json_response(answer: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Any struct, or list of structs, as JSON."""
    return Response(encode(answer), status, headers, media_type="application/json")


def error_response(error: ServeError) -> Response:
    """Plain text for a body that could not be read, TGI's two keys for everything else."""
    if isinstance(error, BodyError):
        return Response(error.text, error.status, media_type="text/plain")
    headers = {}
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return json_response(ErrorResponse(error.text, error.error_type), error.status, headers)


async def on_serve_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for the whole tree of server/errors.py."""
    assert isinstance(error, ServeError)
    return error_response(error)


async def on_unexpected(request: Request, error: Exception) -> Response:
    """A bug: Starlette raises it again behind this answer, and it is logged with its traceback."""
    return error_response(IncompleteGeneration())


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Unknown paths and wrong methods: the status and an empty body."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if "Allow" in headers:  # from a set: in another order each time
        headers["Allow"] = ",".join(sorted(headers["Allow"].split(", ")))
    return Response(status_code=error.status_code, headers=headers)


async def on_client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=499)


def event_stream(calls: Sequence[Call], events: AsyncGenerator[bytes, None]) -> Held:
    """The stream of a request's sequences: 200 and headers at once, the permits held until the end.

    The calls share one `held`. Unavailable is a real 503 where it is known from the start: clients may go elsewhere.
    """
    call = calls[0]
    with call.account.sequence():
        call.service.registry.check(call.model)
    server = call.service.settings.server
    stream = EventStream(
        events,
        keepalive_s=server.keepalive_interval,
        write_timeout_s=server.write_timeout,
        headers={
            "x-compute-type": server.compute_type,
            "x-compute-characters": str(sum(len(each.wanted.inputs) for each in calls)),
        },
    )
    return Held(stream, call.held)


async def plain_answer(request: Request, call: Call, answer: Callable[[Call, list[Output]], Any]) -> Held:
    """All outputs of one sequence as one JSON answer with TGI's headers."""

    async def collected() -> Response:
        outputs = await call.collect()
        return json_response(answer(call, outputs), headers=measurements(call, len(outputs)))

    return await held_answer(request, call.held, collected())


async def held_answer(request: Request, held: ExitStack, work: Awaitable[Response]) -> Held:
    """The response that `work` makes, the permits held until its end; cancelled when the client disconnects."""
    with held:
        response = await unless_gone(request.receive, work)
        return Held(response, held.pop_all())


def measurements(call: Call, generated: int) -> dict[str, str]:
    """TGI's headers of a plain answer."""
    total = time.monotonic() - call.timings.arrived
    headers = {"x-compute-type": call.service.settings.server.compute_type, "x-compute-time": f"{total:.9f}"}
    return headers | {name: str(int(value)) for name, value in _amounts(call, generated).items()}


def summed_measurements(calls: Sequence[tuple[Call, int]]) -> dict[str, str]:
    """The same over several sequences, each with its generated tokens; without x-compute-time, as in TGI."""
    amounts = [_amounts(call, generated) for call, generated in calls]
    headers = {"x-compute-type": calls[0][0].service.settings.server.compute_type}
    return headers | {name: str(int(sum(each[name] for each in amounts))) for name in amounts[0]}


def _amounts(call: Call, generated: int) -> dict[str, float]:
    """Characters, milliseconds and tokens by header."""
    timings, request = call.timings, call.admitted
    inference = 1000 * (timings.ended - timings.started)
    return {
        "x-compute-characters": len(request.text),
        "x-total-time": 1000 * (time.monotonic() - timings.arrived),
        "x-validation-time": 1000 * (timings.validated - timings.arrived),
        "x-queue-time": 1000 * (timings.started - timings.validated),
        "x-inference-time": inference,
        "x-time-per-token": inference / generated,
        "x-prompt-tokens": len(request.prompt),
        "x-generated-tokens": generated,
    }
