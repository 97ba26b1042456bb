"""Chats in words: messages to a prompt, tokens to OpenAI's JSON (wire contract, sections 7 and 11).

A request with tools takes another way from the prompt on, and shares the shapes: tool_calls.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace

from starlette.requests import Request

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
    ToolMessage,
    TopLogprob,
    Usage,
    encode,
    wire_logprob,
    wire_usage,
)
from server.api.call import Account, Call, Held
from server.api.respond import event_stream, plain_answer
from server.api.schema import ChatRequest, GenerateParameters, Tool
from server.api.service import TGI_VERSION, Service
from server.api.shapes import Grammar
from server.api.sse import DONE, event
from server.api.validation import Wanted
from server.errors import IncompleteGeneration, ServeError
from server.swap.model import Model
from server.text.messages import Message

log = logging.getLogger(__name__)

FINGERPRINT = f"{TGI_VERSION}-native"


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat request on its way, with what every piece of its answer repeats."""

    body: ChatRequest
    call: Call
    id: str
    created: int
    model: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat request as it was read, nothing rendered."""

    service: Service
    model: Model
    body: ChatRequest
    timings: core.Timings
    account: Account

    async def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The prompt, made in a thread: templates can be slow. TemplateError."""
        template = (await self.model.text()).template
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.service.threads, template.render, messages, tools)

    def call(self, prompt: str, grammar: Grammar | None, held: ExitStack) -> Call:
        """The sequence behind a rendered prompt: the template wrote the special tokens already."""
        return Call(
            service=self.service,
            model=self.model,
            wanted=Wanted(
                prompt,
                _parameters(self.body, grammar),
                self.body.presence_penalty or 0.0,
                logprobs=bool(self.body.logprobs),
            ),
            add_special_tokens=False,
            stream=self.body.stream,
            timings=replace(self.timings),
            account=self.account,
            held=held,
        )


async def answer_text(request: Request, asked: Asked) -> Held:
    """The answer to a chat without tools."""
    with asked.account.sequence():
        prompt = await asked.render(asked.body.messages)
    chat = chat_of(asked.body, asked.call(prompt, asked.body.response_format, ExitStack()))
    if asked.body.stream:
        return event_stream([chat.call], stream_events(text_events(chat)))
    return await plain_answer(request, chat.call, lambda _, outputs: text_completion(chat, outputs))


def chat_of(body: ChatRequest, call: Call) -> Chat:
    """A chat with an id and a time of its own. The model's name is shown as it was asked for."""
    name = body.model if body.model and body.model != "tgi" else call.model.id
    return Chat(body, call, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), name)


def _parameters(body: ChatRequest, grammar: Grammar | None) -> GenerateParameters:
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
        grammar=grammar,
    )


# --- plain


def text_completion(chat: Chat, outputs: list[core.Output]) -> ChatCompletion:
    """The whole answer as text."""
    return completion(chat, outputs, TextMessage(content=finish_of(outputs).text))


def completion(chat: Chat, outputs: list[core.Output], message: TextMessage | ToolMessage) -> ChatCompletion:
    """A plain answer around its message."""
    finish = finish_of(outputs)
    choice = ChatChoice(message=message, logprobs=_logprobs(chat, outputs), finish_reason=finish_reason(finish))
    return ChatCompletion(
        id=chat.id,
        created=chat.created,
        model=chat.model,
        system_fingerprint=FINGERPRINT,
        choices=[choice],
        usage=usage_of(chat.call, finish),
    )


def finish_of(outputs: Sequence[core.Output]) -> core.Finish:
    """The end of a sequence that ran to its end."""
    finish = outputs[-1].finish
    assert finish is not None, "outputs end with a finished one"
    return finish


def finish_reason(finish: core.Finish) -> str:
    """As plain answers and chat events name it."""
    return "stop" if finish.reason == "eos_token" else finish.reason


def usage_of(call: Call, finish: core.Finish) -> Usage:
    """The tokens of one sequence."""
    return wire_usage(tokens_of(call, finish))


def tokens_of(call: Call, finish: core.Finish) -> core.Usage:
    """What an answer cost."""
    return core.Usage(len(call.admitted.prompt), finish.generated_tokens, finish.reused_tokens)


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


# --- streamed


async def stream_events(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """`events`, what went wrong with them as one more, and [DONE]."""
    try:
        async with aclosing(events) as running:
            async for each in running:
                yield each
    except ServeError as error:
        yield event(encode(ChatErrorEvent(ChatError(error.stream_text))))
    except Exception:
        log.exception("a stream was cut off by a bug")
        yield event(encode(ChatErrorEvent(ChatError(IncompleteGeneration().stream_text))))
    yield DONE


async def text_events(chat: Chat) -> AsyncGenerator[bytes, None]:
    """One event a token, of its text."""
    async with aclosing(chat.call.outputs()) as outputs:
        async for output in outputs:
            text = "" if output.token.special else output.token.text
            for each in chunk_events(chat, output, TextMessage(content=text)):
                yield each


def chunk_events(chat: Chat, output: core.Output, delta: TextMessage | ToolMessage) -> list[bytes]:
    """The event of a token, and behind the last one that of the usage, if asked for."""
    finish = output.finish
    choice = ChunkChoice(
        delta=delta,
        logprobs=_logprobs(chat, [output]),
        finish_reason=finish_reason(finish) if finish else None,
    )
    events = [event(encode(_chunk(chat, [choice])))]
    if finish and chat.body.stream_options.include_usage:
        events.append(event(encode(_chunk(chat, [], usage_of(chat.call, finish)))))
    return events


def _chunk(chat: Chat, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
    return ChatCompletionChunk(
        id=chat.id,
        created=chat.created,
        model=chat.model,
        system_fingerprint=FINGERPRINT,
        choices=choices,
        usage=usage,
    )
