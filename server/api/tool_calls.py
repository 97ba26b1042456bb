"""Chats that may call a tool: one forced generation, and for "auto" perhaps a second, plain one (contract, section 12).

What is forced and how it is read is text/tools.py's; this is what the client sees of it.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server import core
from server.api.answers import (
    CalledFunction,
    ChatCompletion,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
    ToolMessage,
    encode,
)
from server.api.call import Held
from server.api.chat import (
    Asked,
    Chat,
    chat_of,
    chunk_events,
    completion,
    finish_of,
    stream_events,
    text_completion,
    text_events,
)
from server.api.respond import event_stream, held_answer, json_response, measurements
from server.api.schema import ChatRequest
from server.api.shapes import Grammar
from server.errors import ToolError
from server.swap.model import Model
from server.text.messages import Message, text_of_message
from server.text.tools import DEFAULT_PROMPT, NO_TOOL, Called, GrowingCall, Offer, offer, read_call, unreadable


@dataclass(frozen=True, slots=True)
class ToolChat:
    """A chat whose next generation is forced to be a call; `words` is the same without tools, for `no_tool`."""

    chat: Chat
    words: Chat | None
    call_id: str


def offer_of(body: ChatRequest, model: Model) -> Offer | None:
    """What the model is to be forced to; None for a plain chat. ToolError when that cannot be."""
    if body.tools is None:
        return None
    offered = offer([tool.function for tool in body.tools], body.tool_choice)
    if offered is None:
        return None
    if body.response_format is not None:
        raise ToolError("Grammar and tools are mutually exclusive")
    if not model.limits.grammar:
        raise ToolError('this model takes no grammars, so no tools: leave out `tools`, or set `tool_choice` to "none"')
    return offered


async def answer_tool_chat(request: Request, asked: Asked, offered: Offer) -> Held:
    """The answer to a chat that may, or must, call one of the offered tools."""
    with asked.account.sequence():
        tool_chat = await _prepared(asked, offered)
    call = tool_chat.chat.call
    if asked.body.stream:
        return event_stream([call], stream_events(_events(tool_chat)))
    return await held_answer(request, call.held, _answer(tool_chat))


async def _prepared(asked: Asked, offered: Offer) -> ToolChat:
    body = asked.body
    prompt = await instructed_prompt(asked)
    chat = chat_of(body, asked.call(prompt, Grammar("json", offered.schema()), ExitStack()))
    words = None
    if offered.optional:
        asked.account.expect()
        plain = await asked.render(body.messages)
        words = replace(chat, call=asked.call(plain, None, chat.call.held))
    return ToolChat(chat, words, _next_id(body.messages) if body.stream else "0")


async def instructed_prompt(asked: Asked) -> str:
    """The prompt that shows the tools and asks for a call. TemplateError."""
    template = (await asked.model.text()).template
    return await asked.render(_instructed(asked.body, template.uses_tools), asked.body.tools or ())


def _instructed(body: ChatRequest, in_template: bool) -> list[Message]:
    """The messages, the last with the instruction to call a tool; with the tools too where the template has none."""
    if not body.messages:
        return []
    *earlier, last = body.messages
    tools = "" if in_template else encode(body.tools).decode() + "\n"
    text = f"{text_of_message(last)}\n---\n{tools}{body.tool_prompt or DEFAULT_PROMPT}"
    return [*earlier, msgspec.structs.replace(last, content=text, tool_calls=None)]


def _next_id(messages: Sequence[Message]) -> str:
    """Behind the last call of the conversation: "0" for the first; numbers go on, other ids are made up."""
    calls = [call for message in messages for call in message.tool_calls or ()]
    if not calls:
        return "0"
    last = calls[-1].id
    return str(int(last) + 1) if last.isascii() and last.isdecimal() and len(last) < 10 else uuid.uuid4().hex


# --- plain


async def _answer(tool_chat: ToolChat) -> Response:
    chat = tool_chat.chat
    outputs = await chat.call.collect()
    called = read_call(finish_of(outputs).text)
    if called.name == NO_TOOL and tool_chat.words is not None:
        chat = _second(tool_chat.words)
        outputs = await chat.call.collect()
        answer = text_completion(chat, outputs)
    else:
        _chosen(tool_chat)
        answer = _tool_completion(chat, outputs, called, tool_chat.call_id)
    return json_response(answer, headers=measurements(chat.call, len(outputs)))


def _tool_completion(chat: Chat, outputs: list[core.Output], called: Called, call_id: str) -> ChatCompletion:
    call = ToolCall(id=call_id, function=CalledFunction(name=called.name, arguments=called.arguments))
    return completion(chat, outputs, ToolMessage(tool_calls=[call]))


def _second(words: Chat) -> Chat:
    """The plain generation takes over the permit of the forced one."""
    words.call.held.close()
    return words


def _chosen(tool_chat: ToolChat) -> None:
    """A tool is called: there will be no second generation."""
    if tool_chat.words is not None:
        tool_chat.chat.call.account.waive()


# --- streamed


async def _events(tool_chat: ToolChat) -> AsyncGenerator[bytes, None]:
    """Events of the arguments as they grow, the first with the name; or the events of the words."""
    growing = GrowingCall()
    async with aclosing(_call_events(tool_chat, growing)) as events:
        async for each in events:
            yield each
    if growing.name is None:
        raise unreadable(growing.text)
    if growing.name != NO_TOOL or tool_chat.words is None:
        return
    async with aclosing(text_events(_second(tool_chat.words))) as events:
        async for each in events:
            yield each


async def _call_events(tool_chat: ToolChat, growing: GrowingCall) -> AsyncGenerator[bytes, None]:
    chat = tool_chat.chat
    async with aclosing(chat.call.outputs()) as outputs:
        async for output in outputs:
            known = growing.name
            piece = "" if output.token.special else growing.push(output.token.text)
            if growing.name is None or (growing.name == NO_TOOL and tool_chat.words is not None):
                continue
            if known is None:
                _chosen(tool_chat)
            elif not piece and not output.finish:
                continue
            for each in chunk_events(chat, output, _delta(tool_chat.call_id, None if known else growing.name, piece)):
                yield each


def _delta(call_id: str, name: str | None, piece: str) -> ToolMessage:
    return ToolMessage(tool_calls=[ToolCallDelta(id=call_id, function=FunctionDelta(name=name, arguments=piece))])
