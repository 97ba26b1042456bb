"""The routes that SageMaker and Vertex AI call: POST /invocations and /vertex (wire contract, section 14)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server import core
from server.api.access import caller_of
from server.api.answers import ErrorResponse
from server.api.call import Account, Call, Held
from server.api.chat import Asked, finish_of
from server.api.completions import answer_completion, collect_all
from server.api.decode import decode_first
from server.api.line import line_of
from server.api.openai import answer_chat
from server.api.respond import held_answer, json_response
from server.api.schema import (
    ChatRequest,
    CompatGenerateRequest,
    CompletionRequest,
    GenerateParameters,
    SagemakerRequest,
    VertexInstance,
    VertexRequest,
)
from server.api.service import Service, read, read_json, service_of
from server.api.tgi import answer_compat
from server.api.validation import Wanted
from server.errors import IncompleteGeneration, ServeError
from server.swap.model import Model


class VertexResponse(msgspec.Struct, frozen=True):
    """The text of each instance, in their order."""

    predictions: list[str]


async def invocations(request: Request) -> Held:
    """POST /invocations: as POST / if the body has `inputs`, else as a chat by its `messages`, else by its `prompt`."""
    timings = core.Timings(time.monotonic())
    body = decode_first(await read_json(request), get_args(SagemakerRequest), "SagemakerRequest")
    if isinstance(body, CompatGenerateRequest):
        return await answer_compat(request, body, timings)
    if isinstance(body, ChatRequest):
        return await answer_chat(request, body, timings)
    assert isinstance(body, CompletionRequest), "the last of them"
    return await answer_completion(request, body, timings)


async def vertex(request: Request) -> Response:
    """POST /vertex: all instances side by side; whatever fails is 500 `Incomplete generation`, as in TGI."""
    timings = core.Timings(time.monotonic())
    body = await read(request, VertexRequest)
    if not body.instances:
        return json_response(ErrorResponse("Input validation error", "Input validation error"), 422)
    service = service_of(request)
    model = service.model_for(request)
    account = Account(service.metrics, line_of(request), model, len(body.instances), caller=caller_of(request.headers))
    asked = Vertex(service, model, timings, account, ExitStack())
    try:
        return await held_answer(request, asked.held, asked.predicted(body.instances))
    except ServeError as error:
        raise IncompleteGeneration() from error


@dataclass(frozen=True, slots=True)
class Vertex:
    """What the instances of one request share."""

    service: Service
    model: Model
    timings: core.Timings
    account: Account
    held: ExitStack

    async def predicted(self, instances: Sequence[VertexInstance]) -> Response:
        """The texts of all instances."""
        answers = await collect_all([await self._call(instance) for instance in instances])
        return json_response(VertexResponse([finish_of(outputs).text for outputs in answers]))

    async def _call(self, instance: VertexInstance) -> Call:
        if isinstance(instance, ChatRequest):
            with self.account.sequence():
                body = msgspec.structs.replace(instance, stream=False)
                asked = Asked(self.service, self.model, body, self.timings, self.account)
                prompt = await asked.render(body.messages)
            return asked.call(prompt, body.response_format, self.held)
        given = instance.parameters or GenerateParameters()
        return Call(
            service=self.service,
            model=self.model,
            wanted=Wanted(
                instance.inputs,
                GenerateParameters(do_sample=True, max_new_tokens=given.max_new_tokens, seed=given.seed),
            ),
            add_special_tokens=True,
            stream=False,
            timings=replace(self.timings),
            account=self.account,
            held=self.held,
        )
