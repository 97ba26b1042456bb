"""POST /tokenize and /chat_tokenize: how a model cuts a text into tokens (wire contract, section 9).

Nothing is generated, no limit but the size of the body applies, and no permit is taken.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server import core
from server.api.call import Account
from server.api.chat import Asked
from server.api.line import line_of
from server.api.respond import json_response
from server.api.schema import ChatRequest, GenerateRequest
from server.api.service import Service, read, service_of
from server.api.tool_calls import instructed_prompt, offer_of
from server.swap.model import Model
from server.text.tokenizer import SimpleToken


class ChatTokenizeResponse(msgspec.Struct, frozen=True):
    """The prompt that a chat becomes, and its tokens."""

    tokenize_response: list[SimpleToken]
    templated_text: str


async def tokenize(request: Request) -> Response:
    """POST /tokenize: a bare array; special tokens that the tokenizer adds are ("", 0, 0)."""
    body = await read(request, GenerateRequest)
    service = service_of(request)
    model = service.model_for(request, body.parameters.model)
    line_of(request).model = model.id
    return json_response(await _tokens(service, model, body.inputs, add_special_tokens=True))


async def chat_tokenize(request: Request) -> Response:
    """POST /chat_tokenize: the template wrote the special tokens already. TemplateError, ToolError."""
    timings = core.Timings(time.monotonic())
    body = await read(request, ChatRequest)
    service = service_of(request)
    model = service.model_for(request, body.model)
    account = Account(service.metrics, line_of(request), model)
    with account.sequence():
        asked = Asked(service, model, body, timings, account)
        tools = offer_of(body, model) is not None
        prompt = await (instructed_prompt(asked) if tools else asked.render(body.messages))
        tokens = await _tokens(service, model, prompt, add_special_tokens=False)
    return json_response(ChatTokenizeResponse(tokens, prompt))


async def _tokens(service: Service, model: Model, text: str, *, add_special_tokens: bool) -> list[SimpleToken]:
    tokenizer = (await model.text()).tokenizer
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(service.threads, tokenizer.offsets, text, add_special_tokens)
