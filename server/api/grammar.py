"""The grammar of a request: read, judged and put into the worker's terms (wire contract, rows 18 to 20, section 10).

Blocking: a hard grammar takes about 0.1 s, so it belongs on a thread. Knows no HTTP.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from models import grammar
from models.grammar import GrammarError
from models.protocol import Grammar
from server.api import shapes
from server.errors import ValidationError

_Type = Literal["array", "boolean", "integer", "null", "number", "object", "string"]


class _Schema(msgspec.Struct, frozen=True, rename="camel"):
    """What makes JSON a JSON schema (draft 2020-12's meta-schema), of the keywords that decide what an answer is."""

    type: _Type | tuple[_Type, ...] | UnsetType = UNSET
    properties: dict[str, bool | _Schema] | UnsetType = UNSET
    pattern_properties: dict[str, bool | _Schema] | UnsetType = UNSET
    additional_properties: bool | _Schema | UnsetType = UNSET
    required: tuple[str, ...] | UnsetType = UNSET
    items: bool | _Schema | tuple[bool | _Schema, ...] | UnsetType = UNSET
    prefix_items: tuple[bool | _Schema, ...] | UnsetType = UNSET
    any_of: tuple[bool | _Schema, ...] | UnsetType = UNSET
    one_of: tuple[bool | _Schema, ...] | UnsetType = UNSET
    all_of: tuple[bool | _Schema, ...] | UnsetType = UNSET
    enum: tuple[Any, ...] | UnsetType = UNSET
    pattern: str | UnsetType = UNSET
    min_length: int | UnsetType = UNSET
    max_length: int | UnsetType = UNSET
    min_items: int | UnsetType = UNSET
    max_items: int | UnsetType = UNSET
    minimum: float | UnsetType = UNSET
    maximum: float | UnsetType = UNSET
    defs: dict[str, bool | _Schema] | UnsetType = msgspec.field(default=UNSET, name="$defs")
    definitions: dict[str, bool | _Schema] | UnsetType = UNSET


def checked(given: shapes.Grammar) -> Grammar:
    """The grammar for the worker; ValidationError (rows 18 to 20) when no answer could follow it."""
    if given.type == "regex":
        return _followed(Grammar("regex", given.value), "grammar is not valid: {}")
    if given.type == "json_object":
        return Grammar("json", '{"type":"object"}')
    schema = _schema(given.value["schema"] if given.type == "json_schema" else given.value)
    text = msgspec.json.encode({"type": "object", **schema}).decode()
    return _followed(Grammar("json", text), "cannot compile regex from schema: {}")


def _schema(value: Any) -> dict[str, Any]:
    """Rows 18 and 19."""
    try:
        schema = msgspec.json.decode(value) if isinstance(value, str) else value
        msgspec.convert(schema, _Schema)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValidationError(f"grammar is not valid: {error}") from error
    if "properties" not in schema:
        raise ValidationError("grammar is not valid: Grammar must have a 'properties' field")
    assert isinstance(schema, dict)
    return schema


def _followed(wanted: Grammar, message: str) -> Grammar:
    try:
        grammar.check(wanted)
    except GrammarError as error:
        raise ValidationError(message.format(error)) from error
    return wanted
