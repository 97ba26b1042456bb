"""For operators and load balancers: GET /health, /ping, /livez, /readyz, /info, /metrics (wire contract, section 8)."""

from __future__ import annotations

import asyncio
from typing import get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.api.answers import ErrorResponse
from server.api.respond import json_response
from server.api.service import TGI_VERSION, service_of
from server.observe.metrics import CONTENT_TYPE
from server.swap.model import State


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """GET /info; the last two keys are those of TGI 1.x and 2.x."""

    model_id: str
    model_sha: str | None = None
    model_pipeline_tag: str | None = "text-generation"
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str = "text-generation-router"
    version: str = TGI_VERSION
    sha: str | None = None
    docker_label: str | None = None
    model_dtype: str | None
    model_device_type: str | None


async def health(request: Request) -> Response:
    """200 and nothing when a model can serve, else TGI's 503 with the reason in a header of ours. Under /models/{id}:
    when requests for that model are served."""
    reason = service_of(request).registry.unhealthy(request.scope.get("model"))
    if reason is None:
        return Response()
    header = "".join(c if " " <= c <= "~" else "?" for c in reason)
    return json_response(ErrorResponse("unhealthy", "healthcheck"), 503, {"x-unhealthy-reason": header})


async def live(request: Request) -> Response:
    """The process answers."""
    return Response()


async def info(request: Request) -> Response:
    """The active model, or the one that the path or the query names, and what requests to it may ask for."""
    service = service_of(request)
    model = service.model_for(request)
    limits, description = model.limits, model.description
    return json_response(
        Info(
            model_id=model.id,
            max_concurrent_requests=limits.max_concurrent_requests,
            max_best_of=limits.max_best_of,
            max_stop_sequences=limits.max_stop_sequences,
            max_input_tokens=limits.max_input_tokens,
            max_total_tokens=limits.max_total_tokens,
            validation_workers=service.settings.limits.validation_workers,
            max_client_batch_size=limits.max_client_batch_size,
            model_dtype=description.dtype if description else None,
            model_device_type=description.device if description else None,
        )
    )


async def metrics(request: Request) -> Response:
    """Prometheus text."""
    series, registry = service_of(request).metrics, service_of(request).registry
    series.queue_size(registry.queued)
    series.batch_size(registry.running)
    series.batch_tokens(*registry.batch_tokens)
    states = {model.id: model.state for model in registry.models}
    series.model_states(states, get_args(State), healthy=registry.unhealthy() is None)
    series.api_process(len(asyncio.all_tasks()))
    return Response(series.render(), headers={"content-type": CONTENT_TYPE})
