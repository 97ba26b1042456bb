"""Section 14 of the wire contract: /invocations by the shape of its body, and /vertex."""

from __future__ import annotations

from typing import Any

import pytest

MESSAGES = [{"role": "user", "content": "hi"}]
NATIVE = {"inputs": "hello", "parameters": {"max_new_tokens": 3}}


def test_14_inputs_are_answered_as_the_root_route_does(wire: Any) -> None:
    answer = wire.post("/invocations", NATIVE)
    assert (answer.status, answer.json) == (200, wire.post("/", NATIVE).json)
    assert answer.json[0]["generated_text"].startswith("hello")


def test_14_inputs_streamed(wire: Any) -> None:
    answer = wire.post("/invocations", {**NATIVE, "stream": True})
    assert [event["index"] for event in answer.events] == [1, 2, 3]
    assert b"[DONE]" not in answer.body


def test_14_messages_are_a_chat(wire: Any) -> None:
    body = {"messages": MESSAGES, "max_tokens": 2}
    assert wire.post("/invocations", body).json["object"] == "chat.completion"
    chunks = wire.post("/invocations", {**body, "stream": True}).chunks
    assert (len(chunks), chunks[-1]) == (3, b"data: [DONE]\n\n")


def test_14_a_prompt_is_a_completion(wire: Any) -> None:
    assert wire.post("/invocations", {"prompt": ["a", "b"], "max_tokens": 2}).json["object"] == "text_completion"


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ({**NATIVE, "messages": MESSAGES, "prompt": "x"}, "array"),
        ({"messages": MESSAGES, "prompt": "x", "max_tokens": 1}, "chat.completion"),
        ({"inputs": 1, "messages": MESSAGES, "max_tokens": 1}, "chat.completion"),
        ({"messages": None, "prompt": "x", "max_tokens": 1}, "text_completion"),
    ],
    ids=["14-inputs-first", "14-then-messages", "14-wrong-inputs-fall-through", "14-wrong-messages-too"],
)
def test_the_first_shape_that_fits_wins(wire: Any, body: dict[str, Any], shape: str) -> None:
    answer = wire.post("/invocations", body)
    assert (answer.status, "array" if isinstance(answer.json, list) else answer.json["object"]) == (200, shape)


@pytest.mark.parametrize(
    "body",
    ["{}", "[]", "1", '{"inputs":1}', '{"inputs":"x","parameters":{"max_new_tokens":-1}}', '{"messages":[{}]}'],
    ids=lambda body: f"14-2a-{body}",
)
def test_a_body_of_no_shape(wire: Any, body: str) -> None:
    answer = wire.post("/invocations", body)
    assert (answer.status, answer.headers["content-type"]) == (422, "text/plain; charset=utf-8")
    prefix = b"Failed to deserialize the JSON body into the target type: "
    assert answer.body == prefix + b"data did not match any variant of untagged enum SagemakerRequest"


def test_14_errors_are_those_of_the_route_it_went_to(wire: Any) -> None:
    assert wire.post("/invocations", {"inputs": ""}).json["error_type"] == "validation"
    assert wire.post("/invocations", {"prompt": "x", "suffix": "y"}).json["error_type"] == "suffix not supported"
    assert wire.post("/invocations", "{").status == 400


def instance(text: str, **parameters: Any) -> dict[str, Any]:
    return {"inputs": text, "parameters": parameters}


def test_14_vertex_answers_every_instance_in_order(wire: Any) -> None:
    instances = [instance("one", max_new_tokens=2, seed=1), instance("two", max_new_tokens=9, seed=1)]
    answer = wire.post("/vertex", {"instances": instances})
    assert (answer.status, list(answer.json)) == (200, ["predictions"])
    alone = [wire.post("/vertex", {"instances": [each]}).json["predictions"][0] for each in instances]
    assert answer.json["predictions"] == alone
    assert [len(text) for text in alone] == [2, 9]


@pytest.mark.parametrize(
    "other", [{"do_sample": False}, {"top_k": 1}, {"temperature": 9.0}, {"best_of": 2}, {"return_full_text": True}]
)
def test_14_vertex_looks_at_no_other_parameter(wire: Any, other: dict[str, Any]) -> None:
    alone, beside = instance("one", max_new_tokens=9, seed=1), instance("one", max_new_tokens=9, seed=1, **other)
    first, second = wire.post("/vertex", {"instances": [alone, beside]}).json["predictions"]
    assert first == second


def test_14_vertex_answers_a_chat_in_words(wire: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    plain = {"messages": MESSAGES, "max_tokens": 9, "seed": 1}
    calling = {**plain, "tools": [tool], "tool_choice": "required", "model": "org/model-2"}
    first, second = wire.post("/vertex", {"instances": [plain, calling]}).json["predictions"]
    assert first == second


def test_14_vertex_samples(wire: Any) -> None:
    body = {"instances": [instance("x", max_new_tokens=30)] * 3}
    assert len(set(wire.post("/vertex", body).json["predictions"])) == 3


def test_14_vertex_takes_chats(wire: Any) -> None:
    body = {"instances": [{"messages": MESSAGES, "max_tokens": 2, "seed": 1, "stream": True}]}
    assert len(wire.post("/vertex", body).json["predictions"][0]) == 2


def test_14_vertex_without_instances(wire: Any) -> None:
    answer = wire.post("/vertex", {"instances": []})
    golden = b'{"error":"Input validation error","error_type":"Input validation error"}'
    assert (answer.status, answer.body) == (422, golden)


@pytest.mark.parametrize(
    "instances",
    [[instance("")], [instance("x"), instance("x" * 300)], [{"messages": [{"role": "forbidden", "content": "x"}]}]],
    ids=["14-empty", "14-one-of-two-too-long", "14-template"],
)
def test_vertex_says_incomplete_generation_whatever_fails(wire: Any, instances: list[Any]) -> None:
    answer = wire.post("/vertex", {"instances": instances})
    assert (answer.status, answer.json) == (
        500,
        {"error": "Incomplete generation", "error_type": "incomplete_generation"},
    )


def test_14_2a_an_instance_of_no_shape(wire: Any) -> None:
    answer = wire.post("/vertex", {"instances": [{}]})
    assert answer.status == 422
    assert b"instances[0]: data did not match any variant of untagged enum VertexInstance" in answer.body


def test_8_every_instance_takes_a_permit_and_gives_it_back(slow: Any) -> None:
    for _ in range(2):
        assert slow.post("/vertex", {"instances": [instance("x", max_new_tokens=1)] * 3}).status == 500
    assert slow.post("/vertex", {"instances": [instance("x", max_new_tokens=1)] * 2}).status == 200


@pytest.mark.parametrize("path", ["/invocations", "/vertex"])
def test_1_behind_the_key(guarded: Any, path: str) -> None:
    assert guarded.post(path, NATIVE).status == 401
