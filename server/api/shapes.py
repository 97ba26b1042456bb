"""Fields of a request whose shape a type alone cannot say: grammars, chat messages, stop, tool_choice.

Each reader takes a JSON value and its path, as those of decode.py do, and raises Mismatch. A member that a shape knows
may not be repeated, as there; unknown ones may. In a user's own JSON (a schema, a call's arguments) the last counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import msgspec

from server.api.body import Members
from server.api.decode import Mismatch, child, plain, reader_of, wrong_type
from server.text.messages import Message

_GRAMMAR_TYPES = ("json", "regex", "json_schema")

# The members that a shape knows, each with the shape of what it holds, alone or in a list; a leaf is any JSON.
_Shape = Mapping[str, "_Shape"]
_LEAF: _Shape = {}
_PART: _Shape = {"type": _LEAF, "text": _LEAF, "image_url": {"url": _LEAF}}
_CALL: _Shape = {"id": _LEAF, "type": _LEAF, "function": {"description": _LEAF, "name": _LEAF, "arguments": _LEAF}}
_BODY: _Shape = {"content": _PART, "tool_calls": _CALL}
_CHOICE: _Shape = {"type": _LEAF, "function": {"name": _LEAF}, "name": _LEAF}


class Grammar(msgspec.Struct, frozen=True):
    """A constraint on the output. `value`: of "regex" the text; of "json" the schema or its text; of "json_schema" an
    object whose `schema` it is. "json_object" has none: any object will do (OpenAI's form)."""

    type: str
    value: Any


class GrammarType(msgspec.Struct, frozen=True):
    """A grammar as a request writes it; "json_object" is another name of "json"."""

    type: Literal["json", "regex", "json_schema", "json_object"]
    value: Any


class FunctionName(msgspec.Struct, frozen=True):
    """The function that is to be called."""

    name: str


class NamedFunction(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's way to name it."""

    type: str = "function"
    function: FunctionName


ToolChoice = str | NamedFunction


def read_grammar(value: Any, path: str) -> Grammar:
    """TGI's {"type", "value"}, `json_object` being another name of `json`."""
    members = _members(value, path, "adjacently tagged enum GrammarType", ("type", "value"))
    kind = reader_of(str)(_required(members, "type", path), child(path, "type"))
    if kind not in (*_GRAMMAR_TYPES, "json_object"):
        expected = ", ".join(f"`{name}`" for name in _GRAMMAR_TYPES)
        raise Mismatch(child(path, "type"), f"unknown variant `{kind}`, expected one of {expected}")
    inside = _required(members, "value", path)
    if kind == "regex":
        inside = reader_of(str)(inside, child(path, "value"))
    elif kind == "json_schema":
        inside = _with_schema(inside, child(path, "value"))
    return Grammar("json" if kind == "json_object" else kind, plain(inside))


def read_response_format(value: Any, path: str) -> Grammar | None:
    """A grammar; or OpenAI's own forms: json_schema beside its type, json_object alone, text for none."""
    if value is None:
        return None
    members = _members(value, path, "adjacently tagged enum GrammarType", ("type", "value", "json_schema"))
    kind = members.get("type")
    if kind == "text":
        return None
    if kind == "json_schema" and "value" not in members and "json_schema" in members:
        return Grammar("json_schema", _with_schema(members["json_schema"], child(path, "json_schema")))
    if kind == "json_object" and "value" not in members:
        return Grammar("json_object", None)
    return read_grammar(value, path)


def read_prompt(value: Any, path: str) -> tuple[str, ...]:
    """A text, or several, at least one; tokens are none."""
    if isinstance(value, str):
        return (value,)
    try:
        prompts: tuple[str, ...] = reader_of(tuple[str, ...])(value, path)
    except Mismatch:
        raise Mismatch(path, "data did not match any variant of untagged enum PromptDeserializer") from None
    if not prompts:
        raise Mismatch(path, "Empty array detected. Do not use an empty array for the prompt.")
    return prompts


def read_stop(value: Any, path: str) -> tuple[str, ...] | None:
    """A list of strings or null, as TGI; a bare string too, as OpenAI."""
    if value is None:
        return None
    if isinstance(value, str):
        return (value,)
    stop: tuple[str, ...] = reader_of(tuple[str, ...])(value, path)
    return stop


def read_tool_choice(value: Any, path: str) -> str | None:
    """A mode ("auto", "none", "required"), or the name of a function, bare or in OpenAI's object; None for auto."""
    if value is None:
        return None
    members = plain(value)
    if isinstance(members, dict):
        members = members.get("function", members)
        members = members.get("name") if isinstance(members, dict) else members
    if not isinstance(members, str) or _repeats(value, _CHOICE):
        raise Mismatch(path, "data did not match any variant of untagged enum ToolType")
    return members


def read_message(value: Any, path: str) -> Message:
    """A message with content or tool calls; serde tries both and names neither when none fits."""
    members = _members(value, path, "struct Message", ("role", "name", "tool_call_id"))
    reader_of(str)(_required(members, "role", path), child(path, "role"))
    try:
        message = msgspec.convert(plain(value), Message)
    except msgspec.ValidationError:
        message = None
    if message is None or _repeats(value, _BODY) or (message.content is None and message.tool_calls is None):
        raise Mismatch(path, "data did not match any variant of untagged enum MessageBody")
    return message


def _with_schema(value: Any, path: str) -> dict[str, Any]:
    _required(_members(value, path, "struct JsonSchemaConfig", ("name", "schema")), "schema", path)
    config: dict[str, Any] = plain(value)
    return config


def _members(value: Any, path: str, expected: str, known: Collection[str]) -> dict[str, Any]:
    """The members of an object, as they are in the tree."""
    if not isinstance(value, Members):
        raise wrong_type(value, path, expected)
    members: dict[str, Any] = {}
    for key, member in value:
        if key in members and key in known:
            raise Mismatch(path, f"duplicate field `{key}`")
        members[key] = member
    return members


def _repeats(value: Any, shape: _Shape) -> bool:
    """Whether a member that its shape knows is repeated, at any depth."""
    if isinstance(value, Members):
        known = [(key, member) for key, member in value if key in shape]
        return len(known) > len(dict(known)) or any(_repeats(member, shape[key]) for key, member in known)
    return isinstance(value, list) and any(_repeats(item, shape) for item in value)


def _required(members: dict[str, Any], name: str, path: str) -> Any:
    if name not in members:
        raise Mismatch(path, f"missing field `{name}`")
    return members[name]
