"""What is wrong with a text that is no JSON, in the words of serde_json: from the complaint of Python's own parser.

Positions are Python's, which are serde's or close to them.
"""

from __future__ import annotations

import json
import re

_BLANK = " \t\r\n"
# A string, whole or cut off by the end, or a bracket outside of one. Cut-off strings must match too: each of their
# escaped quotes would else be tried as the beginning of another, which takes quadratic time.
STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)
_WORDS = {
    "Expecting value": "expected value",
    "Unexpected UTF-8 BOM (decode using utf-8-sig)": "expected value",
    "Expecting property name enclosed in double quotes": "key must be a string",
    "Expecting ':' delimiter": "expected `:`",
    "Illegal trailing comma before end of object": "trailing comma",  # Python 3.13
    "Illegal trailing comma before end of array": "trailing comma",
    "Extra data": "trailing characters",
    "Invalid control character at": r"control character (\u0000-\u001F) found while parsing a string",
    "Invalid \\escape": "invalid escape",
    "Invalid \\uXXXX escape": "invalid escape",
}


def reason_of(error: json.JSONDecodeError) -> str:
    """serde_json's message, its place included."""
    text = error.doc
    said = error.msg.removesuffix(": ")
    if said == "Unterminated string starting at":
        return f"EOF while parsing a string at {_place(text, len(text))}"
    if error.pos >= len(text.rstrip(_BLANK)):
        return f"EOF while parsing {_unfinished(said, text)} at {_place(text, error.pos)}"
    return f"{_wrong(said, text, error.pos)} at {_place(text, error.pos, 1)}"


def _unfinished(said: str, text: str) -> str:
    """What the end of the text cuts off."""
    last = text.rstrip(_BLANK)[-1:]
    if last in ("[", "{"):
        return "a list" if last == "[" else "an object"
    if said == "Expecting ':' delimiter":
        return "an object"
    if said == "Expecting ',' delimiter":
        return "a list" if _container(text) == "[" else "an object"
    return "a value"


def _wrong(said: str, text: str, pos: int) -> str:
    if said == "Expecting ',' delimiter":
        return "expected `,` or `]`" if _container(text[:pos]) == "[" else "expected `,` or `}`"
    if text[pos] in "]}" and text[:pos].rstrip(_BLANK).endswith(","):
        return "trailing comma"
    return _WORDS.get(said, said)


def _container(text: str) -> str:
    """The bracket that opened what the text ends in."""
    opened = [""]
    for match in STRUCTURE.finditer(text):
        token = match.group()
        if token in "[{":
            opened.append(token)
        elif token in "]}":
            opened.pop()
    return opened[-1]


def _place(text: str, end: int, beyond: int = 0) -> str:
    """serde's place of the byte before `end`, or so many `beyond` it: columns are bytes, from 1."""
    line = text[:end].rpartition("\n")[2]
    return f"line {text.count(chr(10), 0, end) + 1} column {len(line.encode()) + beyond}"
