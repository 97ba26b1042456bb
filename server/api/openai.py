"""OpenAI's routes as TGI speaks them: POST /v1/chat/completions, GET /v1/models (wire contract, sections 7 and 11)."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from server import core
from server.api.answers import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatError,
    ChatErrorEvent,
    ChatLogprob,
    ChatLogprobs,
    ChunkChoice,
    TextMessage,
    TopLogprob,
    Usage,
    encode,
    wire_logprob,
    wire_usage,
)
from server.api.call import Call, Held, refusals_counted
from server.api.respond import event_stream, json_response, plain_answer
from server.api.schema import ChatRequest, GenerateParameters
from server.api.service import TGI_VERSION, Service, read, service_of
from server.api.sse import DONE, event
from server.api.validation import Wanted
from server.errors import IncompleteGeneration, ServeError, ToolError, UnknownModel
from server.swap.model import Model

log = logging.getLogger(__name__)

FINGERPRINT = f"{TGI_VERSION}-native"


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
        description=f"{model.id} ({entry.family}): {_serving(entry.state, entry.active)}",
        providers=(Provider(model.limits.max_total_tokens),),
        state=entry.state,
    )


def _serving(state: str, active: bool) -> str:
    if state == "available" and active:
        return "available"
    return f"{state}, swaps in on first use" if state == "unloaded" else state


# --- POST /v1/chat/completions


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat request on its way, with what every piece of its answer repeats."""

    body: ChatRequest
    call: Call
    id: str
    created: int
    model: str


async def chat_completions(request: Request) -> Held:
    """POST /v1/chat/completions. Errors of the template and of tools come as HTTP statuses even with `stream`."""
    timings = core.Timings(time.monotonic())
    body = await read(request, ChatRequest)
    service = service_of(request)
    model = service.model_for(request, body.model)
    with refusals_counted(service.metrics):
        _check_tools(body)
        prompt = await _render(service, model, body)
    call = Call(
        service=service,
        model=model,
        wanted=Wanted(prompt, _parameters(body), body.presence_penalty or 0.0),
        add_special_tokens=False,
        stream=body.stream,
        timings=timings,
    )
    name = body.model if body.model and body.model != "tgi" else model.id
    chat = Chat(body, call, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), name)
    if body.stream:
        return event_stream(call, _events(chat))
    return await plain_answer(request, call, lambda _, outputs: _completion(chat, outputs))


def _check_tools(body: ChatRequest) -> None:
    if not body.tools:
        return
    if body.response_format is not None:
        raise ToolError("Grammar and tools are mutually exclusive")
    if body.tool_choice != "none":
        raise ToolError('tools are not available on this server yet: leave out `tools`, or set `tool_choice` to "none"')


async def _render(service: Service, model: Model, body: ChatRequest) -> str:
    text = await model.text()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(service.threads, text.template.render, body.messages)


def _parameters(body: ChatRequest) -> GenerateParameters:
    """The native parameters that mean the same. Temperature 0 is greedy whatever the filters say; top_p 1 is none."""
    greedy = body.temperature == 0
    return GenerateParameters(
        do_sample=not greedy,
        temperature=None if greedy else body.temperature,
        top_p=None if greedy or body.top_p == 1 else body.top_p,
        frequency_penalty=body.frequency_penalty,
        max_new_tokens=body.max_tokens,
        stop=body.stop or (),
        seed=body.seed,
        top_n_tokens=body.top_logprobs,
        grammar=body.response_format,
    )


def _finish_reason(finish: core.Finish) -> str:
    return "stop" if finish.reason == "eos_token" else finish.reason


def _usage(chat: Chat, finish: core.Finish) -> Usage:
    return wire_usage(core.Usage(len(chat.call.admitted.prompt), finish.generated_tokens))


def _logprobs(chat: Chat, outputs: list[core.Output]) -> ChatLogprobs | None:
    if not chat.body.logprobs:
        return None
    return ChatLogprobs(
        [
            ChatLogprob(
                output.token.text,
                wire_logprob(output.token.logprob),
                [TopLogprob(top.text, wire_logprob(top.logprob)) for top in output.top_tokens],
            )
            for output in outputs
        ]
    )


def _completion(chat: Chat, outputs: list[core.Output]) -> ChatCompletion:
    finish = outputs[-1].finish
    assert finish is not None, "outputs end with a finished one"
    choice = ChatChoice(
        message=TextMessage(content=finish.text),
        logprobs=_logprobs(chat, outputs),
        finish_reason=_finish_reason(finish),
    )
    return ChatCompletion(
        id=chat.id,
        created=chat.created,
        model=chat.model,
        system_fingerprint=FINGERPRINT,
        choices=[choice],
        usage=_usage(chat, finish),
    )


async def _events(chat: Chat) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(chat.call.outputs()) as outputs:
            async for output in outputs:
                yield event(encode(_chunk(chat, [_choice(chat, output)])))
                if output.finish and chat.body.stream_options.include_usage:
                    yield event(encode(_chunk(chat, [], _usage(chat, output.finish))))
    except ServeError as error:
        yield event(encode(ChatErrorEvent(ChatError(error.stream_text))))
    except Exception:
        log.exception("a chat stream was cut off by a bug")
        yield event(encode(ChatErrorEvent(ChatError(IncompleteGeneration().stream_text))))
    yield DONE


def _choice(chat: Chat, output: core.Output) -> ChunkChoice:
    return ChunkChoice(
        delta=TextMessage(content="" if output.token.special else output.token.text),
        logprobs=_logprobs(chat, [output]),
        finish_reason=_finish_reason(output.finish) if output.finish else None,
    )


def _chunk(chat: Chat, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
    return ChatCompletionChunk(
        id=chat.id,
        created=chat.created,
        model=chat.model,
        system_fingerprint=FINGERPRINT,
        choices=choices,
        usage=usage,
    )
