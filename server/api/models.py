"""The models and their exchange: GET /models .., POST /models/{id}/activate and /unload, and every serving route
under /models/{id} (docs/architecture.md, Exchanging models)."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.access import check_admin
from server.api.answers import encode
from server.api.call import unless_gone
from server.api.respond import json_response
from server.api.service import Service, service_of
from server.api.sse import EventStream, event
from server.errors import UnknownModel
from server.swap.model import Model, ModelEntry

PREFIX = "/models/"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """GET /models."""

    object: str = "list"
    data: tuple[ModelEntry, ...]


class ModelRoutes:
    """Everything under /models/{id}: finds the model, whose id may contain slashes, and routes what follows the id.

    The rest of the path, "/" when there is none, is matched by `routes`; the model is in scope["model"].
    """

    def __init__(self, routes: Router) -> None:
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        registry = scope["app"].state.service.registry
        path: str = scope["path"].removeprefix(PREFIX)
        found = registry.route(path)
        if not path:
            raise HTTPException(404)
        if found is None:
            raise UnknownModel(path, tuple(model.id for model in registry.models))
        model, rest = found
        inside = "" if path.endswith("/") else "/" + rest  # "" matches no route: a trailing slash is 404 here too
        await self.routes({**scope, "model": model, "path": inside, "root_path": ""}, receive, send)


def is_admin_path(path: str) -> bool:
    """Whether a path steers the server, so that pages of other origins have no business there."""
    return path.startswith("/admin") or (path.startswith(PREFIX) and path.endswith(("/activate", "/unload")))


async def list_models(request: Request) -> Response:
    """GET /models: every configured model, in the order of the configuration."""
    registry = service_of(request).registry
    return json_response(ModelList(data=tuple(registry.entry(model) for model in registry.models)))


async def get_model(request: Request) -> Response:
    """GET /models/{id}."""
    return json_response(service_of(request).registry.entry(_model(request)))


async def activate(request: Request) -> Response:
    """POST /models/{id}/activate: 202 at once, 200 when it is available already.

    With ?wait=true: 200 when it has become available, 503 when it has not.
    """
    service, model = _admin(request)
    registry = service.registry
    registry.activate(model)
    if registry.entry(model).state == "available":
        return json_response(registry.entry(model))
    if request.query_params.get("wait") != "true":
        return json_response(registry.entry(model), 202)
    await unless_gone(request.receive, registry.settled(model))
    entry = registry.entry(model)
    return json_response(entry, 200 if entry.state == "available" else 503)


async def unload(request: Request) -> Response:
    """POST /models/{id}/unload: drain it, or cancel its staging or loading; 202 at once."""
    service, model = _admin(request)
    service.registry.unload(model)
    return json_response(service.registry.entry(model), 202)


async def events(request: Request) -> ASGIApp:
    """GET /models/events: every model once, then every change of state and progress, as server-sent events."""
    service = service_of(request)
    server = service.settings.server
    return EventStream(_changes(service), keepalive_s=server.keepalive_interval, write_timeout_s=server.write_timeout)


async def _changes(service: Service) -> AsyncGenerator[bytes, None]:
    async for entry in service.registry.events():
        yield event(encode(entry))


def _model(request: Request) -> Model:
    model: Model = request.scope["model"]
    return model


def _admin(request: Request) -> tuple[Service, Model]:
    service = service_of(request)
    check_admin(request, service.settings.server.admin_key)
    return service, _model(request)
