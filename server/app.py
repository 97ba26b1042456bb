"""The map of the server: every route, what stands before the routes, and how errors become answers.

POST /generate, /generate_stream, /               TGI                   api/tgi.py
POST /v1/chat/completions, GET /v1/models         OpenAI                api/openai.py, chat.py, tool_calls.py
POST /v1/completions                              OpenAI                api/completions.py
POST /tokenize, /chat_tokenize                    tokens                api/tokens.py
POST /invocations, /vertex                        SageMaker, Vertex AI  api/platforms.py
GET  /models, POST /models/{id}/activate, ...     exchanging models     api/models.py
GET  /admin, /admin/logs                          the admin page        api/admin.py, web/
GET  /health, /info, /metrics, ...                operations            api/ops.py
GET  /docs/, /api-doc/openapi.json                documentation         api/openapi.py
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route, Router, request_response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api import admin, completions, models, openai, openapi, ops, platforms, respond, tgi, tokens
from server.api.access import RequireKey
from server.api.body import ClientGone
from server.api.cors import Cors
from server.api.line import LogRequests
from server.api.service import Service
from server.errors import ServeError
from server.observe.metrics import Metrics
from server.observe.neuron_monitor import followed, installed
from server.observe.tracing import traces_to
from server.settings import Settings
from server.swap.registry import Registry


def create_app(settings: Settings, registry: Registry, metrics: Metrics) -> Starlette:
    """The ASGI app. Its lifespan starts the registry and closes it; it listens to no signal. ConfigurationError when
    traces are wanted and their extra is not installed.

    `app.state.service` holds the settings in force, which server/reload.py replaces.
    """
    server = settings.server
    service = Service(
        settings,
        registry,
        metrics,
        ThreadPoolExecutor(settings.limits.validation_workers, "text"),
        traces=traces_to(server.otlp_endpoint, server.otlp_service_name),
    )
    metrics.cover([model.limits for model in registry.models])

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with service.recent.attached():
            async with followed(metrics.neuron, installed()):
                await registry.start()
                yield
                await registry.close()
        await service.traces.close()
        service.threads.shutdown(wait=False, cancel_futures=True)

    app = Starlette(
        routes=routes(lambda: app.state.service.settings.server.api_key),
        middleware=[Middleware(Cors, origins=server.cors_allow_origin, closed=models.is_admin_path)],
        exception_handlers={
            ServeError: respond.on_serve_error,
            ClientGone: respond.on_client_gone,
            HTTPException: respond.on_http_exception,
            Exception: respond.on_unexpected,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


def routes(api_key: Callable[[], str]) -> list[BaseRoute]:
    """Every route, guarded by the key that `api_key` tells. The serving ones exist once more under every model."""
    logged = [Middleware(LogRequests)]
    keyed = [*logged, Middleware(RequireKey, key=api_key)]
    compat = LogRequests(RequireKey(request_response(tgi.compat_generate), api_key))
    serving = [
        Route("/generate", tgi.generate, methods=["POST"], middleware=keyed),
        Route("/generate_stream", tgi.generate_stream, methods=["POST"], middleware=keyed),
        Route("/v1/chat/completions", openai.chat_completions, methods=["POST"], middleware=keyed),
        Route("/v1/completions", completions.completions, methods=["POST"], middleware=keyed),
        Route("/invocations", platforms.invocations, methods=["POST"], middleware=keyed),
        Route("/vertex", platforms.vertex, methods=["POST"], middleware=keyed),
        Route("/tokenize", tokens.tokenize, methods=["POST"], middleware=keyed),
        Route("/chat_tokenize", tokens.chat_tokenize, methods=["POST"], middleware=logged),
        Route("/v1/models", openai.list_models),
        Route("/v1/models/{id:path}", openai.get_model),
        Route("/info", ops.info),
        Route("/health", ops.health),
        Route("/ping", ops.health),
    ]
    of_a_model = [
        *serving,
        Route("/", ByMethod(GET=request_response(models.get_model), POST=compat), methods=["GET", "POST"]),
        Route("/activate", models.activate, methods=["POST"]),
        Route("/unload", models.unload, methods=["POST"]),
    ]
    return [
        *serving,
        Route("/", ByMethod(GET=request_response(ops.health), POST=compat), methods=["GET", "POST"]),
        Route("/livez", ops.live),
        Route("/readyz", ops.health),
        Route("/metrics", ops.metrics),
        Route("/docs", openapi.to_docs),
        Route("/docs/", openapi.docs),
        Route("/api-doc/openapi.json", openapi.openapi),
        *admin.routes(),
        Route("/models", models.list_models),
        Route("/models/events", models.events),
        Route("/models/{rest:path}", models.ModelRoutes(Router(of_a_model, redirect_slashes=False))),
    ]


class ByMethod:
    """One path, another route a method: GET (and HEAD) and POST."""

    def __init__(self, *, GET: ASGIApp, POST: ASGIApp) -> None:
        self._get = GET
        self._post = POST

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._post if scope["method"] == "POST" else self._get)(scope, receive, send)
