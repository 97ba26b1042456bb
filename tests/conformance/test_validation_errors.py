"""Section 4 of the wire contract: every row over the wire, plain (422) and streamed (an event), and their order."""

from __future__ import annotations

import json
from typing import Any

import pytest

LONG = "x" * 150

# (row, parameters, inputs, message); the server allows 100 tokens in, 200 in all, best_of 2, 4 stops, 5 top tokens.
ROWS: list[tuple[str, dict[str, Any], str, str]] = [
    ("2", {"temperature": 0}, "x", "`temperature` must be strictly positive"),
    ("2", {"temperature": -1.5}, "x", "`temperature` must be strictly positive"),
    ("3", {"repetition_penalty": 0.0}, "x", "`repetition_penalty` must be strictly positive"),
    ("4", {"frequency_penalty": 2.1}, "x", "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ("4", {"frequency_penalty": -2.1}, "x", "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ("5", {"top_p": 1.0}, "x", "`top_p` must be > 0.0 and < 1.0"),
    ("5", {"top_p": 0}, "x", "`top_p` must be > 0.0 and < 1.0"),
    ("6", {"typical_p": 1.0}, "x", "`typical_p` must be > 0.0 and < 1.0"),
    ("7", {"top_k": 0}, "x", "`top_k` must be strictly positive"),
    ("7", {"top_k": -1}, "x", "`top_k` must be strictly positive"),
    ("8", {"max_new_tokens": 0}, "x", "`max_new_tokens` must be strictly positive"),
    ("9", {"stop": list("abcde")}, "x", "`stop` supports up to 4 stop sequences. Given: 5"),
    ("11", {"top_n_tokens": 6}, "x", "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ("12", {}, "", "`inputs` cannot be empty"),
    ("13", {"truncate": 0}, "x", "`truncate` must be strictly positive and less than 100. Given: 0"),
    ("13", {"truncate": 5000}, "x", "`truncate` must be strictly positive and less than 100. Given: 5000"),
    ("15", {"max_new_tokens": 199}, "x", "`inputs` tokens + `max_new_tokens` must be <= 200. "
     "Given: 2 `inputs` tokens and 199 `max_new_tokens`"),
    ("15", {"max_new_tokens": 100000}, "x", "`inputs` tokens + `max_new_tokens` must be <= 200. "
     "Given: 2 `inputs` tokens and 1024 `max_new_tokens`"),
    ("15", {}, "x" * 300, "`inputs` tokens + `max_new_tokens` must be <= 200. "
     "Given: 301 `inputs` tokens and 0 `max_new_tokens`"),
    ("15", {"max_new_tokens": 150, "truncate": 60}, LONG, "`inputs` tokens + `max_new_tokens` must be <= 200. "
     "Given: 60 `inputs` tokens and 150 `max_new_tokens`"),
    ("16", {}, LONG, "`inputs` must have less than 100 tokens. Given: 151"),
    ("16", {"max_new_tokens": 10}, "x" * 100, "`inputs` must have less than 100 tokens. Given: 101"),
    ("18", {"grammar": {"type": "regex", "value": "a("}}, "x", "grammar is not valid: unclosed group"),
    ("18", {"grammar": {"type": "regex", "value": "(?=a)b"}}, "x",
     "grammar is not valid: look-around, including look-ahead and look-behind, is not supported"),
    ("18", {"grammar": {"type": "json", "value": 5}}, "x", "grammar is not valid: Expected `object`, got `int`"),
    ("18", {"grammar": {"type": "json", "value": "{"}}, "x", "grammar is not valid: Input data was truncated"),
    ("18", {"grammar": {"type": "json", "value": {"type": "strin"}}}, "x",
     "grammar is not valid: Invalid enum value 'strin' - at `$.type`"),
    ("19", {"grammar": {"type": "json", "value": {"type": "object"}}}, "x",
     "grammar is not valid: Grammar must have a 'properties' field"),
    ("19", {"grammar": {"type": "json_object", "value": "{}"}}, "x",
     "grammar is not valid: Grammar must have a 'properties' field"),
    ("19", {"grammar": {"type": "json_schema", "value": {"schema": {}}}}, "x",
     "grammar is not valid: Grammar must have a 'properties' field"),
    ("20", {"grammar": {"type": "json", "value": {"properties": {"a": {"not": {}}}}}}, "x",
     'cannot compile regex from schema: Unimplemented keys: ["not"]'),
    ("20", {"grammar": {"type": "json", "value": {"properties": {"a": {"$ref": "#/$defs/b"}}}}}, "x",
     "cannot compile regex from schema: Pointer '/$defs/b' does not exist"),
]  # fmt: skip

# (row, parameters that break two rows, which is reported)
ORDER: list[tuple[str, dict[str, Any], str, str]] = [
    ("2<5", {"top_p": 1, "temperature": 0}, "x", "`temperature` must be strictly positive"),
    ("3<4", {"frequency_penalty": 3, "repetition_penalty": 0}, "x", "`repetition_penalty` must be strictly positive"),
    ("4<5", {"top_p": 1, "frequency_penalty": 3}, "x", "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ("6<7", {"top_k": 0, "typical_p": 1}, "x", "`typical_p` must be > 0.0 and < 1.0"),
    ("7<8", {"max_new_tokens": 0, "top_k": 0}, "x", "`top_k` must be strictly positive"),
    ("8<9", {"stop": list("abcde"), "max_new_tokens": 0}, "x", "`max_new_tokens` must be strictly positive"),
    ("9<11", {"top_n_tokens": 6, "stop": list("abcde")}, "x", "`stop` supports up to 4 stop sequences. Given: 5"),
    ("11<12", {"top_n_tokens": 6}, "", "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ("12<13", {"truncate": 0}, "", "`inputs` cannot be empty"),
    ("13<15", {"truncate": 0, "max_new_tokens": 500}, "x", "`truncate` must be strictly positive and less than 100. "
     "Given: 0"),
    ("15<16", {"max_new_tokens": 50}, "x" * 170, "`inputs` tokens + `max_new_tokens` must be <= 200. "
     "Given: 171 `inputs` tokens and 50 `max_new_tokens`"),
    ("18<19", {"grammar": {"type": "json", "value": {"type": "strin"}}}, "x",
     "grammar is not valid: Invalid enum value 'strin' - at `$.type`"),
    ("19<20", {"grammar": {"type": "json", "value": {"not": {}}}}, "x",
     "grammar is not valid: Grammar must have a 'properties' field"),
    ("16<18", {"grammar": {"type": "regex", "value": "a("}}, LONG,
     "`inputs` must have less than 100 tokens. Given: 151"),
]  # fmt: skip

CASES = [pytest.param(p, i, m, id=f"4-row{row}-{n}") for n, (row, p, i, m) in enumerate(ROWS + ORDER)]


def error(message: str) -> bytes:
    return json.dumps(
        {"error": f"Input validation error: {message}", "error_type": "validation"}, separators=(",", ":")
    ).encode()


@pytest.mark.parametrize(("parameters", "inputs", "message"), CASES)
def test_plain(wire: Any, parameters: dict[str, Any], inputs: str, message: str) -> None:
    answer = wire.post("/generate", {"inputs": inputs, "parameters": parameters})
    assert (answer.status, answer.headers["content-type"], answer.body) == (422, "application/json", error(message))


@pytest.mark.parametrize(("parameters", "inputs", "message"), CASES)
def test_streamed(wire: Any, parameters: dict[str, Any], inputs: str, message: str) -> None:
    answer = wire.post("/", {"inputs": inputs, "parameters": parameters, "stream": True})
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.body == b"data: " + error(message) + b"\n\n"


ROUTE_ROWS: list[tuple[str, str, dict[str, Any], str]] = [
    ("1", "/generate", {"best_of": 2, "temperature": None}, "you must use sampling when `best_of` is > 1"),
    ("10", "/", {"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
    ("1<2", "/", {"best_of": 2, "repetition_penalty": 0}, "you must use sampling when `best_of` is > 1"),
    ("9<10", "/generate", {"stop": list("abcde"), "best_of": 2, "do_sample": True, "seed": 1},
     "`stop` supports up to 4 stop sequences. Given: 5"),
    ("10<11", "/generate", {"top_n_tokens": 6, "best_of": 2, "do_sample": True, "seed": 1},
     "`seed` must not be set when `best_of` > 1"),
    ("0b<1", "/generate", {"best_of": 3}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ("0b", "/", {"best_of": 100, "temperature": 0}, "`best_of` must be > 0 and <= 2. Given: 100"),
    ("0c", "/generate_stream", {"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
    ("0c", "/generate_stream", {"best_of": 0}, "`best_of` != 1 is not supported when streaming tokens"),
    ("0d", "/generate_stream", {"decoder_input_details": True, "temperature": 0},
     "`decoder_input_details` == true is not supported when streaming tokens"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("route", "parameters", "message"), [pytest.param(*case, id=f"4-row{row}-{case[0]}") for row, *case in ROUTE_ROWS]
)
def test_rows_of_a_route(wire: Any, route: str, parameters: dict[str, Any], message: str) -> None:
    answer = wire.post(route, {"inputs": "x", "parameters": parameters})
    stream = route == "/generate_stream"
    assert answer.status == (200 if stream else 422)
    assert answer.body == (b"data: " + error(message) + b"\n\n" if stream else error(message))


ACCEPTED: list[tuple[str, dict[str, Any], str]] = [
    ("4-best_of-0-plain", {"best_of": 0, "max_new_tokens": 1}, "x"),
    ("4-exactly-max-input", {"max_new_tokens": 1}, "x" * 99),
    ("4-truncate-exactly-max-input", {"max_new_tokens": 1, "truncate": 100}, "x" * 500),
    ("4-exactly-max-total", {"max_new_tokens": 101}, "x" * 98),
    ("4-frequency-at-its-bounds", {"max_new_tokens": 1, "frequency_penalty": -2}, "x"),
    ("4-whitespace", {"max_new_tokens": 1}, " \n"),
    ("3-top_n_tokens-0", {"max_new_tokens": 1, "top_n_tokens": 0}, "x"),
    ("3-stop-empty", {"max_new_tokens": 1, "stop": []}, "x"),
]


@pytest.mark.parametrize(("parameters", "inputs"), [pytest.param(p, i, id=name) for name, p, i in ACCEPTED])
def test_values_on_the_border_are_accepted(wire: Any, parameters: dict[str, Any], inputs: str) -> None:
    assert wire.post("/generate", {"inputs": inputs, "parameters": parameters}).status == 200
