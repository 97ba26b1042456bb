"""What a grammar allows, in the terms of the llguidance library: its source, its limits, and whether it can be used.

Both processes import this module: the API checks a grammar here before it admits the request, and the worker follows
it in models/matcher.py. The library is imported when the first grammar comes. Knows no tokenizer and no slot.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec

from models.protocol import Grammar

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

# As TGI's schemas: at most one space between two tokens of the JSON, so that no model can spend its answer on them.
_WHITESPACE = "[ ]?"
# Bounds what building a lexer may cost in the worker, whose other sequences wait for it: about 0.1 s.
_LEXER_FUEL = 200_000

_ONE = ("items", "additionalProperties")
_LISTED = ("prefixItems", "anyOf", "oneOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
# Beside one of these, `properties` is not the whole list of what an object may have.
_OPENING = ("additionalProperties", "patternProperties", "unevaluatedProperties", "anyOf", "oneOf", "$ref")


class GrammarError(ValueError):
    """The grammar cannot be used; the text is the reason, on one line."""


def limits() -> LLParserLimits:
    """What following a grammar may cost; beyond it the matcher stops with an error."""
    from llguidance import LLParserLimits

    return LLParserLimits(initial_lexer_fuel=_LEXER_FUEL, verbose_errors=False)


def source_of(grammar: Grammar) -> str:
    """The grammar as the library's matcher takes it. A schema must be JSON text."""
    from llguidance import LLMatcher

    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    schema = closed(msgspec.json.decode(grammar.text))
    return LLMatcher.grammar_from_json_schema(
        msgspec.json.encode(schema).decode(),
        # TGI's grammars take oneOf for anyOf too: what fits two of them is let through.
        overrides={"whitespace_pattern": _WHITESPACE, "coerce_one_of": True},
    )


def check(grammar: Grammar) -> None:
    """GrammarError when `grammar` cannot be followed by any model, or costs too much. Takes up to about 0.1 s."""
    from llguidance import LLMatcher

    try:
        source = source_of(grammar)
    except (ValueError, RecursionError) as error:
        raise GrammarError(one_line(str(error))) from error
    # Over bare bytes: what is wrong here is wrong over every vocabulary.
    matcher = LLMatcher(_bytes(), source, log_level=0, limits=limits())
    matcher.compute_bitmask()
    if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
        raise GrammarError(one_line(matcher.get_error()) or "no text matches it")


@functools.cache
def _bytes() -> LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def one_line(reason: str) -> str:
    """The library draws carets under the place of an error; the last line of its own words says what is wrong."""
    lines = [line.strip() for line in reason.splitlines()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return said[-1] if said else next((line for line in lines if line), "")


def closed(schema: Any) -> Any:
    """`schema` with every object that names its properties limited to them, as in TGI's grammars.

    JSON schema itself allows any others, which an unsure model would go on inventing. Where `allOf` composes objects
    out of several schemas, none of them knows all names, so such a schema stays open.
    """
    return schema if _composes(schema) else _closed(schema)


def _composes(schema: Any) -> bool:
    return isinstance(schema, dict) and ("allOf" in schema or any(map(_composes, _children(schema))))


def _children(schema: dict[str, Any]) -> list[Any]:
    children = [schema[key] for key in _ONE if key in schema]
    for key in _LISTED:
        children += schema[key] if isinstance(schema.get(key), list) else []
    for key in _NAMED:
        children += schema[key].values() if isinstance(schema.get(key), dict) else []
    return children


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    result = dict(schema)
    for key in _ONE:
        if key in schema:
            result[key] = _closed(schema[key])
    if "properties" not in schema:
        for key in _LISTED:
            if isinstance(schema.get(key), list):
                result[key] = [_closed(each) for each in schema[key]]
    for key in _NAMED:
        if isinstance(schema.get(key), dict):
            result[key] = {name: _closed(each) for name, each in schema[key].items()}
    if "properties" in schema and not any(key in schema for key in _OPENING):
        result.setdefault("type", "object")
        result["additionalProperties"] = False
    return result
