"""Responses: JSON, errors in TGI's two layers, and the headers of a generation's answer (wire contract, 2 and 6)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import ErrorResponse, encode
from server.api.call import Call, Held, refusals_counted, unless_gone
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


def event_stream(call: Call, events: AsyncGenerator[bytes, None]) -> Held:
    """The stream of a generation: 200 and headers at once, the permit held until the end.

    Unavailable is a real 503 where it is known from the start: clients may then go elsewhere.
    """
    with refusals_counted(call.service.metrics):
        call.service.registry.check(call.model)
    server = call.service.settings.server
    stream = EventStream(
        events,
        keepalive_s=server.keepalive_interval,
        write_timeout_s=server.write_timeout,
        headers={
            "x-compute-type": call.service.settings.server.compute_type,
            "x-compute-characters": str(len(call.wanted.inputs)),
        },
    )
    return Held(stream, call.held)


async def plain_answer(request: Request, call: Call, answer: Callable[[Call, list[Output]], Any]) -> Held:
    """All outputs as one JSON answer with TGI's headers; the sequence is cancelled when the client disconnects."""
    with call.held:
        outputs = await unless_gone(request.receive, call.collect())
        response = json_response(answer(call, outputs), headers=_measurements(call, len(outputs)))
        return Held(response, call.held.pop_all())


def _measurements(call: Call, generated: int) -> dict[str, str]:
    timings, request = call.timings, call.admitted
    total = time.monotonic() - timings.arrived
    inference = timings.ended - timings.started
    return {
        "x-compute-type": call.service.settings.server.compute_type,
        "x-compute-time": f"{total:.9f}",
        "x-compute-characters": str(len(request.text)),
        "x-total-time": _milliseconds(total),
        "x-validation-time": _milliseconds(timings.validated - timings.arrived),
        "x-queue-time": _milliseconds(timings.started - timings.validated),
        "x-inference-time": _milliseconds(inference),
        "x-time-per-token": _milliseconds(inference / generated),
        "x-prompt-tokens": str(len(request.prompt)),
        "x-generated-tokens": str(generated),
    }


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
