"""Section 9 of the wire contract: /tokenize and /chat_tokenize."""

from __future__ import annotations

from typing import Any

import pytest

MESSAGES = [{"role": "user", "content": "hi"}]


def test_9_a_bare_array_with_the_added_special_token(wire: Any) -> None:
    answer = wire.post("/tokenize", {"inputs": "a b"})
    golden = b'[{"id":1,"text":"","start":0,"stop":0},{"id":67,"text":"a","start":0,"stop":1},'
    golden += b'{"id":97,"text":" ","start":1,"stop":2},{"id":68,"text":"b","start":2,"stop":3}]'
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/json", golden)


@pytest.mark.parametrize(
    "text", ["naïve café", "日本語と中文", "👩‍👩‍👧 done 🎉", "a\u0301", "\n\t"], ids=lambda text: f"9-{text!r}"
)
def test_places_are_bytes_and_texts_are_their_slices(smollm2: Any, text: str) -> None:
    tokens = smollm2.post("/tokenize", {"inputs": text}).json()
    raw = text.encode()
    assert "".join(sorted({token["text"] for token in tokens})) != ""
    for token in tokens:
        assert token.keys() == {"id", "text", "start", "stop"}
        assert token["text"] == raw[token["start"] : token["stop"]].decode("utf-8", "replace")
    assert max(token["stop"] for token in tokens) == len(raw)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ""},
        {"inputs": "x" * 1500},
        {"inputs": "x", "parameters": {"truncate": 0, "temperature": -1, "best_of": 99}},
    ],
    ids=["9-empty", "9-longer-than-the-model-takes", "9-parameters-are-ignored"],
)
def test_no_limit_applies(wire: Any, body: dict[str, Any]) -> None:
    answer = wire.post("/tokenize", body)
    assert (answer.status, len(answer.json)) == (200, len(body["inputs"]) + 1)


def test_9_chat_tokenize_byte_for_byte(wire: Any) -> None:
    answer = wire.post("/chat_tokenize", {"messages": [{"role": "u", "content": ""}]})
    assert answer.status == 200
    assert answer.body.startswith(b'{"tokenize_response":[{"id":30,"text":"<","start":0,"stop":1},')
    assert answer.body.endswith(b'],"templated_text":"<u>\\n<assistant>"}')


def test_9_a_chat_has_no_token_on_top_of_its_template(wire: Any) -> None:
    answer = wire.post("/chat_tokenize", {"messages": MESSAGES}).json
    assert "".join(token["text"] for token in answer["tokenize_response"]) == answer["templated_text"]
    generated = wire.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1}).json
    assert generated["usage"]["prompt_tokens"] == len(answer["tokenize_response"])


def test_9_template_errors(wire: Any) -> None:
    answer = wire.post("/chat_tokenize", {"messages": [{"role": "forbidden", "content": "x"}]})
    assert (answer.status, answer.json["error_type"]) == (422, "template_error")


def test_1_tokenize_is_behind_the_key_and_chat_tokenize_is_not(guarded: Any) -> None:
    assert guarded.post("/tokenize", {"inputs": "x"}).status == 401
    assert guarded.post("/chat_tokenize", {"messages": MESSAGES}).status == 200


def test_6_no_header_of_a_generation(wire: Any) -> None:
    headers = wire.post("/tokenize", {"inputs": "x"}).headers
    assert not [name for name in headers if name.startswith("x-")]


def test_18_a_models_own_routes(wire: Any) -> None:
    assert wire.post("/models/org/model-2/tokenize", {"inputs": "x"}).status == 200
    assert wire.post("/models/org/model-2/chat_tokenize", {"messages": MESSAGES}).status == 200
