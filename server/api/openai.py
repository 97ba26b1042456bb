"""OpenAI's routes: GET /v1/models, POST /v1/chat/completions (wire contract, sections 8, 11 and 12).

Which way a chat goes is decided here: chat.py answers in words, tool_calls.py with a call. /v1/completions has a
module of its own.
"""

from __future__ import annotations

import time

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server import core
from server.api.access import caller_of
from server.api.call import Account, Held
from server.api.chat import Asked, answer_text
from server.api.line import line_of
from server.api.respond import json_response
from server.api.schema import ChatRequest
from server.api.service import Service, read, service_of
from server.api.tool_calls import answer_tool_chat, offer_of
from server.errors import UnknownModel
from server.swap.model import Model


class Provider(msgspec.Struct, frozen=True):
    """What Chat UI reads to keep a conversation within the context."""

    context_length: int
    provider: str = "local"


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of GET /v1/models; `description`, `providers` and `state` are ours."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str
    description: str
    providers: tuple[Provider, ...]
    state: str


class ModelCards(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/models; the first is the default model."""

    object: str = "list"
    data: tuple[ModelCard, ...]


async def list_models(request: Request) -> Response:
    """GET /v1/models: every configured model, loaded or not, in the order of the configuration."""
    service = service_of(request)
    return json_response(ModelCards(data=tuple(_card(service, model) for model in service.registry.models)))


async def get_model(request: Request) -> Response:
    """GET /v1/models/{id}; UnknownModel when it is not configured."""
    service = service_of(request)
    name: str = request.path_params["id"]
    if not name:
        raise HTTPException(404)
    model = service.registry.find(name)
    if model is None:
        raise UnknownModel(name, tuple(known.id for known in service.registry.models))
    return json_response(_card(service, model))


def _card(service: Service, model: Model) -> ModelCard:
    entry = service.registry.entry(model)
    return ModelCard(
        id=model.id,
        owned_by=model.id,
        description=_description(service, entry.family, model),
        providers=(Provider(model.limits.max_total_tokens),),
        state=entry.state,
    )


def _description(service: Service, family: str, model: Model) -> str:
    """What lasts: Chat UI reads it once, shows it under the id from then on, and never asks for the state."""
    text = f"{family}, {model.limits.max_total_tokens} tokens of context"
    exchanged = len(service.registry.models) > service.settings.swap.residents
    return text + (", comes when it is asked for" if exchanged and service.settings.swap.on_request else "")


async def chat_completions(request: Request) -> Held:
    """POST /v1/chat/completions. Errors of the template and of tools come as HTTP statuses even with `stream`."""
    timings = core.Timings(time.monotonic())
    return await answer_chat(request, await read(request, ChatRequest), timings)


async def answer_chat(request: Request, body: ChatRequest, timings: core.Timings) -> Held:
    """The answer to a body that was read before."""
    service = service_of(request)
    model = service.model_for(request, body.model)
    account = Account(service.metrics, line_of(request), model, caller=caller_of(request.headers))
    with account.sequence():
        offered = offer_of(body, model)
    asked = Asked(service, model, body, timings, account)
    return await (answer_text(request, asked) if offered is None else answer_tool_chat(request, asked, offered))
