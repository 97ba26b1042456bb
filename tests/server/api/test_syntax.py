"""serde_json's words for what is no JSON, each with its place (wire contract, section 2a)."""

from __future__ import annotations

import json

import pytest

from server.api.body import parse_json
from server.api.syntax import reason_of
from server.errors import MalformedJSON

SAYS = {
    "": "EOF while parsing a value at line 1 column 0",
    " ": "EOF while parsing a value at line 1 column 1",
    "{": "EOF while parsing an object at line 1 column 1",
    '{"a"': "EOF while parsing an object at line 1 column 4",
    '{"a":': "EOF while parsing a value at line 1 column 5",
    '{"a":1': "EOF while parsing an object at line 1 column 6",
    '{"a":1,': "EOF while parsing a value at line 1 column 7",
    "[": "EOF while parsing a list at line 1 column 1",
    "[1": "EOF while parsing a list at line 1 column 2",
    "[1,": "EOF while parsing a value at line 1 column 3",
    '[{"a":[1]}': "EOF while parsing a list at line 1 column 10",
    '{"[{":1': "EOF while parsing an object at line 1 column 7",
    '{"inputs":"ab': "EOF while parsing a string at line 1 column 13",
    '{"inputs":\n"é': "EOF while parsing a string at line 2 column 3",
    "nope": "expected value at line 1 column 1",
    "\ufeff{}": "expected value at line 1 column 1",
    "{'a':1}": "key must be a string at line 1 column 2",
    "{1:1}": "key must be a string at line 1 column 2",
    '{"a" 1}': "expected `:` at line 1 column 6",
    '{"a":1 "b":2}': "expected `,` or `}` at line 1 column 8",
    "[1 2]": "expected `,` or `]` at line 1 column 4",
    '{"a":[1],}': "trailing comma at line 1 column 10",
    "[1, ]": "trailing comma at line 1 column 5",
    "{}x": "trailing characters at line 1 column 3",
    '"\n"': r"control character (\u0000-\u001F) found while parsing a string at line 1 column 2",
    '"\\x"': "invalid escape at line 1 column 3",
    '"\\u12"': "invalid escape at line 1 column 4",
}


@pytest.mark.parametrize("text", SAYS)
def test_2a_what_is_no_json(text: str) -> None:
    with pytest.raises(json.JSONDecodeError) as complaint:
        json.loads(text)
    said, _, column = reason_of(complaint.value).rpartition(" ")
    expected, _, place = SAYS[text].rpartition(" ")
    assert said == expected
    assert abs(int(column) - int(place)) <= ("escape" in said)  # Python's own places of escapes differ by version


def test_2a_is_what_a_client_reads() -> None:
    with pytest.raises(MalformedJSON) as refused:
        parse_json(b'{"a":[1],}')
    assert refused.value.text == "Failed to parse the request body as JSON: trailing comma at line 1 column 10"
