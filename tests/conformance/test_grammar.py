"""Grammars over the wire (wire contract, sections 4, 10, 11): on the simulated device and on the real small model."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["good", "bad"]},
    },
    "required": ["name", "age", "mood"],
}
NESTED = {
    "properties": {
        "where": {"$ref": "#/$defs/place"},
        "seen": {"type": "array", "items": {"$ref": "#/$defs/place"}, "minItems": 1, "maxItems": 2},
        "left": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["where", "seen", "left"],
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}, "on": {"type": "boolean"}},
            "required": ["x", "on"],
        }
    },
}
FORMATS = {
    "properties": {
        "day": {"type": "string", "format": "date"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        "kind": {"const": "x"},
    },
    "required": ["day", "code", "kind"],
}
REGEXES = [r"[a-z]{3,8}@[a-z]{3,8}\.(com|org)", r"\d{4}-\d{2}-\d{2}", r"(yes|no)", r"^[A-F0-9]{8}$", r"[äöü]{2} ☃?"]


def text(server: Any, grammar: Any, **parameters: Any) -> tuple[str, str]:
    """(generated text, finish reason) of an answer that must follow `grammar`."""
    parameters = {"grammar": grammar, "max_new_tokens": 150, "details": True, **parameters}
    answer = server.post("/generate", {"inputs": "Describe a person as JSON:", "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()["generated_text"], answer.json()["details"]["finish_reason"]


class TestRealModel:
    @pytest.mark.parametrize("schema", [PERSON, NESTED, FORMATS], ids=["flat", "nested", "formats"])
    @pytest.mark.parametrize("parameters", [{}, {"seed": 5, "temperature": 1.5, "top_p": 0.9}], ids=["greedy", "wild"])
    def test_10_json_parses_and_has_the_shape(self, smollm2: Any, schema: Any, parameters: dict[str, Any]) -> None:
        generated, reason = text(smollm2, {"type": "json", "value": schema}, **parameters)
        assert reason == "eos_token"
        assert list(json.loads(generated)) == schema["required"]

    @pytest.mark.parametrize("regex", REGEXES)
    @pytest.mark.parametrize("parameters", [{}, {"seed": 5, "temperature": 2.0}], ids=["greedy", "wild"])
    def test_10_a_regex_matches_the_whole_answer(self, smollm2: Any, regex: str, parameters: dict[str, Any]) -> None:
        generated, reason = text(smollm2, {"type": "regex", "value": regex}, **parameters)
        assert reason == "eos_token"
        assert re.fullmatch(regex, generated), generated

    def test_10_a_schema_may_come_as_text_or_under_another_name(self, smollm2: Any) -> None:
        expected = text(smollm2, {"type": "json", "value": PERSON})
        assert text(smollm2, {"type": "json", "value": json.dumps(PERSON)}) == expected
        assert text(smollm2, {"type": "json_object", "value": PERSON}) == expected
        assert text(smollm2, {"type": "json_schema", "value": {"name": "p", "schema": PERSON}}) == expected

    @pytest.mark.parametrize(
        "response_format",
        [
            {"type": "json_object", "value": PERSON},
            {"type": "json_schema", "value": {"name": "person", "schema": PERSON}},
            {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}},
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_11_response_format(
        self, smollm2: Any, read_events: Callable[..., Any], response_format: Any, stream: bool
    ) -> None:
        body = {
            "messages": [{"role": "user", "content": "Invent a person."}],
            "response_format": response_format,
            "max_tokens": 150,
            "stream": stream,
            "temperature": 0,
        }
        answer = smollm2.post("/v1/chat/completions", body)
        if stream:
            content = "".join(event["choices"][0]["delta"]["content"] for event in read_events(answer))
        else:
            content = answer.json()["choices"][0]["message"]["content"]
        assert list(json.loads(content)) == PERSON["required"]

    def test_11_openais_json_object_is_any_object(self, smollm2: Any) -> None:
        body = {
            "messages": [{"role": "user", "content": 'Answer with {"ok": true} and nothing else.'}],
            "response_format": {"type": "json_object"},
            "max_tokens": 200,
            "temperature": 0,
        }
        choice = smollm2.post("/v1/chat/completions", body).json()["choices"][0]
        assert choice["message"]["content"].startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)

    def test_a_grammar_goes_on_behind_a_killed_worker(self, smollm2: Any, read_events: Callable[..., Any]) -> None:
        parameters = {"grammar": {"type": "json", "value": NESTED}, "max_new_tokens": 150, "seed": 9, "do_sample": True}
        body = {"inputs": "Describe two places:", "parameters": parameters}
        expected = smollm2.post("/generate", body).json()["generated_text"]
        events: list[Any] = []
        with httpx.stream("POST", f"{smollm2.url}/generate_stream", json=body, timeout=120) as answer:
            for event in read_events(answer):
                events.append(event)
                if len(events) == 8:
                    os.kill(smollm2.worker_pid(), signal.SIGKILL)
        assert [event["index"] for event in events] == list(range(1, len(events) + 1))
        assert "".join(event["token"]["text"] for event in events if not event["token"]["special"]) == expected
        assert events[-1]["generated_text"] == expected
        assert list(json.loads(expected)) == NESTED["required"]


@pytest.fixture(scope="module")
def restricted(serve: Callable[..., Any], byte_tokenizer_directory: Path) -> Any:
    """A server without grammars and with best_of 1."""
    toml = f"""
[[models]]
id = "org/model"
path = "{byte_tokenizer_directory}"
[models.device]
kind = "simulated"
slots = 2
vocab_size = 99
"""
    server = serve(toml, env={"DISABLE_GRAMMAR_SUPPORT": "true", "MAX_BEST_OF": "1"})
    server.wait_available()
    return server


@pytest.mark.parametrize(
    "grammar", [{"type": "regex", "value": "a+"}, {"type": "json", "value": {}}, {"type": "regex", "value": "("}]
)
def test_4_row_17_a_server_without_grammars_says_so(restricted: Any, grammar: Any) -> None:
    answer = restricted.post("/generate", {"inputs": "x", "parameters": {"grammar": grammar}})
    assert answer.status_code == 422
    assert answer.json() == {
        "error": "Input validation error: grammar is not supported",
        "error_type": "validation",
    }


def test_4_row_0a_a_server_without_best_of_says_so(restricted: Any) -> None:
    answer = restricted.post("/generate", {"inputs": "x", "parameters": {"best_of": 2, "temperature": 0}})
    assert answer.json()["error"] == "Input validation error: `best_of` != 1 is not allowed for this endpoint"


def test_a_hard_grammar_disturbs_nobody(wire: Any) -> None:
    """It is judged, and given up, on threads of its own."""
    answers: list[Any] = []
    hard = {"grammar": {"type": "regex", "value": "(a{1000}){1000}"}, "max_new_tokens": 5}
    asked = threading.Thread(target=lambda: answers.append(wire.post("/generate", {"inputs": "x", "parameters": hard})))
    asked.start()
    while not answers and asked.is_alive():
        assert wire.post("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 5}}).status == 200
        time.sleep(0.01)
    asked.join()
    assert (answers[0].status, answers[0].json["error_type"]) == (424, "generation")
    assert "the grammar cannot be followed" in answers[0].json["error"]
