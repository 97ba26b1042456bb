"""Tools as TGI runs them: the model is forced to write one call as JSON, and the JSON is read back.

    {"function": {"_name": "get_weather", "city": "Paris"}}

Pure: the schema of what is forced, the reading of a whole text, and of one that grows. Knows no request and no engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from server.errors import ToolError

# The way out of tool_choice "auto": picking it means answering in words.
NO_TOOL = "no_tool"
DEFAULT_PROMPT = (
    "Given the functions available, please respond with a JSON for a function call with its proper arguments that best "
    "answers the given prompt. Respond in the format {name: function name, parameters: dictionary of its argument and "
    "its value}.Do not use variables."
)
_NAME_MEMBER = "_name"
_OPENING = re.compile(r'\s*\{\s*"function"\s*:\s*\{\s*"_name"\s*:\s*("(?:[^"\\]|\\.)*")\s*([,}])')


class Function(Protocol):
    """A function that can be called; `parameters` is a JSON schema of its arguments."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str | None: ...
    @property
    def parameters(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Offer:
    """The functions of which exactly one is to be called; `optional`: or none."""

    functions: tuple[Function, ...]
    optional: bool

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the forced text."""
        places = [f"#/$defs/tool_{i}" for i in range(len(self.functions))]
        parameters = [_parameters(each, place) for each, place in zip(self.functions, places, strict=True)]
        calls = [_call(each, schema) for each, schema in zip(self.functions, parameters, strict=True)]
        if self.optional:
            calls.append(_object({_NAME_MEMBER: {"const": NO_TOOL}}, [_NAME_MEMBER]))
        schema = _object({"function": {"anyOf": calls}}, ["function"])
        if any(map(_refers, parameters)):
            schema["$defs"] = {f"tool_{i}": each for i, each in enumerate(parameters)}
        return schema


def offer(functions: Sequence[Function], choice: str | None) -> Offer | None:
    """What `tool_choice` makes of the tools; None when the answer is to be plain text. ToolError for an unknown name.

    `choice` is a mode ("auto", also None; "none"; "required") or a function's name.
    """
    if choice == "none" or (not functions and choice in (None, "auto")):
        return None
    if choice in (None, "auto", "required"):
        if not functions:
            raise ToolError('`tool_choice` is "required", but `tools` is empty')
        return Offer(tuple(functions), optional=choice != "required")
    named = tuple(each for each in functions if each.name == choice)
    if not named:
        raise ToolError(f"Tool with name {choice} not found")
    return Offer(named[:1], optional=False)


@dataclass(frozen=True, slots=True)
class Called:
    """The function a model called; `arguments` is the JSON text of an object."""

    name: str
    arguments: str


def read_call(text: str) -> Called:
    """The call in a whole forced text; ToolError when it is none, as when it was cut by max_tokens."""
    try:
        members = json.loads(text)["function"]
        name = members.pop(_NAME_MEMBER)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(text) from error
    return Called(name, json.dumps(members, ensure_ascii=False, separators=(",", ":")))


def unreadable(text: str) -> ToolError:
    """What is said of a text that holds no call."""
    return ToolError(f"Failed to parse generated text: {text[:200]!r} is no complete call of a tool")


class GrowingCall:
    """A forced text as it is generated. `name` is known first; the pieces of `push` concatenate to the arguments."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.text = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str) -> str:
        """Take more text; the piece of the arguments that it brings, "" before the name and behind the end."""
        self.text += text
        if self.name is not None:
            return self._inside(text)
        opening = _OPENING.match(self.text)
        if opening is None:
            return ""
        self.name = json.loads(opening[1])
        if opening[2] == "}":
            return "{}"
        self._depth = 1
        return "{" + self._inside(self.text[opening.end() :])

    def _inside(self, text: str) -> str:
        """As much of `text` as belongs to the arguments' object."""
        for place, character in enumerate(text):
            if self._depth == 0:
                return text[:place]
            self._step(character)
        return text

    def _step(self, character: str) -> None:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1


def _parameters(function: Function, place: str) -> Mapping[str, Any]:
    """The schema of a function's arguments; its references to itself point to `place`, where it will be."""
    given = function.parameters
    if not isinstance(given, Mapping):
        raise ToolError(f"the parameters of {function.name!r} are no JSON schema of an object")
    schema: Mapping[str, Any] = {key: value for key, value in given.items() if key not in ("$schema", "$id")}
    if not isinstance(schema.get("properties", {}), Mapping) or not isinstance(schema.get("required", []), list):
        raise ToolError(f"the parameters of {function.name!r} are no JSON schema of an object")
    return _moved(schema, place) if _refers(schema) else schema


def _call(function: Function, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of one function's call: its name, then its arguments."""
    named = {_NAME_MEMBER: {"const": function.name}, **parameters.get("properties", {})}
    schema = _object(named, [_NAME_MEMBER, *parameters.get("required", [])])
    schema["additionalProperties"] = parameters.get("additionalProperties", False)
    if function.description:
        schema["description"] = function.description
    return schema


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _refers(schema: Any) -> bool:
    return '"$ref"' in json.dumps(schema)


def _moved(schema: Any, place: str) -> Any:
    """The schema with its references to itself pointing to where it is now defined."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: _moved_reference(value, place) if key == "$ref" else _moved(value, place) for key, value in schema.items()
    }


def _moved_reference(reference: Any, place: str) -> Any:
    return place + reference[1:] if isinstance(reference, str) and reference.startswith("#") else reference
