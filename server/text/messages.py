"""Chat messages as they come out of a request, and their plain text.

Knows no template. The shapes are those of the wire (contract, section 11): content is a string or a list of parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class ImageUrl(msgspec.Struct, frozen=True):
    url: str


class ImagePart(msgspec.Struct, frozen=True, tag_field="type", tag="image_url"):
    image_url: ImageUrl


Part = TextPart | ImagePart


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """`arguments` is a JSON string from OpenAI's clients, any JSON value from TGI's."""

    description: str | None = None
    name: str
    arguments: Any


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str = "function"
    function: FunctionCall


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message; `content` is None only beside `tool_calls`."""

    role: str
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None


def text_of_message(message: Message) -> str:
    """Parts joined without a separator, an image as `![](url)`, tool calls as their JSON (TGI's rules)."""
    if message.content is None:
        return msgspec.json.encode(message.tool_calls or ()).decode()
    if isinstance(message.content, str):
        return message.content
    return "".join(
        part.text if isinstance(part, TextPart) else f"![]({part.image_url.url})" for part in message.content
    )


_SYSTEM_ROLES = ("system", "developer")


def folded(messages: Sequence[Message]) -> list[Message]:
    """The same conversation for a template that knows no system role and wants turns to alternate.

    System texts move to the front of the first user turn (which is made up if there is none); then neighbours of one
    role become one turn. Texts are joined by an empty line; empty ones vanish.
    """
    system = [text_of_message(message) for message in messages if message.role in _SYSTEM_ROLES]
    turns = [message for message in messages if message.role not in _SYSTEM_ROLES]
    if any(system):
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            turns.insert(0, Message(role="user", content=_joined(system)))
        else:
            content = _joined([*system, text_of_message(turns[first])])
            turns[first] = msgspec.structs.replace(turns[first], content=content)
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            content = _joined([text_of_message(merged[-1]), text_of_message(turn)])
            merged[-1] = msgspec.structs.replace(merged[-1], content=content)
        else:
            merged.append(turn)
    return merged


def _joined(texts: Sequence[str]) -> str:
    return "\n\n".join(text for text in texts if text)
