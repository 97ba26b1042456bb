"""Section 12 of the wire contract: tools, plain and streamed. The device's draws are wild: the grammar shapes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

ROUTE = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
LEVEL = {"type": "object", "properties": {"level": {"enum": ["low", "high"]}}, "required": ["level"]}
SET = {"type": "function", "function": {"name": "set", "description": "d", "parameters": LEVEL}}
GET = {"type": "function", "function": {"name": "get", "arguments": {"type": "object", "properties": {}}}}


MODEL = """
[[models]]
id = "org/model"
path = "{directory}"
[models.device]
kind = "simulated"
slots = 2
n_positions = 1000
vocab_size = 99
"""


@pytest.fixture(scope="module")
def wire(serve: Callable[..., Any], wire_to: Any, byte_tokenizer_directory: Path) -> Any:
    """A server whose context has room for tools."""
    server = serve(MODEL.format(directory=byte_tokenizer_directory))
    server.wait_available()
    return wire_to(server.url)


def chat(wire: Any, **fields: Any) -> Any:
    return wire.post(ROUTE, {"messages": MESSAGES, "max_tokens": 60, "tools": [SET], "tool_prompt": "p", **fields})


@pytest.mark.parametrize(
    "choice",
    ["required", "set", {"type": "function", "function": {"name": "set"}}],
    ids=["12-required", "12-name", "12-object"],
)
def test_a_call_byte_for_byte(wire: Any, choice: Any) -> None:
    answer = chat(wire, tool_choice=choice)
    assert answer.status == 200, answer.body
    golden = rb'.*"choices":\[\{"index":0,"message":\{"role":"assistant","tool_calls":\[\{"id":"0","type":"function",'
    golden += rb'"function":\{"description":null,"name":"set","arguments":"\{\\"level\\":\\"(low|high)\\"\}"\}\}\]\},'
    golden += rb'"logprobs":null,"finish_reason":"stop"\}\],"usage":.*'
    assert re.fullmatch(golden, answer.body), answer.body


def test_12_a_stream_names_the_function_first_and_then_writes_its_arguments(wire: Any) -> None:
    answer = chat(wire, tool_choice="required", stream=True)
    assert answer.chunks[-1] == b"data: [DONE]\n\n"
    choices = [event["choices"][0] for event in answer.events]
    calls = [choice["delta"]["tool_calls"][0] for choice in choices]
    assert [call["function"]["name"] for call in calls] == ["set"] + [None] * (len(calls) - 1)
    assert json.loads("".join(call["function"]["arguments"] for call in calls))["level"] in ("low", "high")
    assert {(call["index"], call["id"], call["type"]) for call in calls} == {(0, "0", "function")}
    assert all(choice["delta"].keys() == {"role", "tool_calls"} for choice in choices)
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


def test_12_a_streams_id_goes_on_from_the_conversations(wire: Any) -> None:
    def call_id(before: str) -> str:
        call = {"id": before, "type": "function", "function": {"name": "set", "arguments": "{}"}}
        messages = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "done"}]
        (first, *_) = chat(wire, messages=messages, tool_choice="required", stream=True).events
        return str(first["choices"][0]["delta"]["tool_calls"][0]["id"])

    assert call_id("4") == "5"
    assert re.fullmatch("[0-9a-f]{32}", call_id("call_abc"))


def test_12_several_tools_and_one_without_arguments(wire: Any) -> None:
    answer = chat(wire, tools=[SET, GET], tool_choice="get")
    (call,) = answer.json["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], call["function"]["arguments"]) == ("get", "{}")


def test_12_auto_ends_with_a_call_or_with_words(wire: Any) -> None:
    seen = set()
    for seed in range(40):
        message = chat(wire, seed=seed).json["choices"][0]["message"]
        assert message.keys() in ({"role", "tool_calls"}, {"role", "content"})
        seen |= message.keys()
        if "content" in message:
            assert not message["content"].startswith("{"), "the words are of a generation without a grammar"
    assert seen == {"role", "tool_calls", "content"}


def test_12_auto_streams_a_call_or_words(wire: Any) -> None:
    seen = set()
    for seed in range(40):
        plain = chat(wire, seed=seed).json["choices"][0]["message"]
        deltas = [event["choices"][0]["delta"] for event in chat(wire, seed=seed, stream=True).events]
        seen |= deltas[0].keys()
        assert {delta.keys() == deltas[0].keys() for delta in deltas} == {True}
        if "content" in plain:
            assert "".join(delta["content"] for delta in deltas) == plain["content"]
        else:
            pieces = [delta["tool_calls"][0]["function"]["arguments"] for delta in deltas]
            assert json.loads("".join(pieces)) == json.loads(plain["tool_calls"][0]["function"]["arguments"])
    assert seen == {"role", "tool_calls", "content"}


def test_12_auto_is_one_request_and_leaves_no_permit_behind(wire: Any) -> None:
    def count(name: str) -> float:
        found = re.search(rf"^{name} ([\d.]+)$", wire.get("/metrics").body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    before = count("tgi_request_count"), count("tgi_request_success")
    for seed in range(6):
        assert chat(wire, seed=seed).status == 200
    assert (count("tgi_request_count"), count("tgi_request_success")) == (before[0] + 6, before[1] + 6)


@pytest.mark.parametrize(
    "fields",
    [{"tool_choice": "none"}, {"tools": []}, {"tools": [], "tool_choice": "auto"}, {"tools": None}],
    ids=["12-none", "12-empty", "12-empty-auto", "12-null"],
)
def test_a_plain_chat(wire: Any, fields: dict[str, Any]) -> None:
    answer = chat(wire, **fields)
    assert answer.json["choices"][0]["message"].keys() == {"role", "content"}
    assert answer.json["usage"]["prompt_tokens"] == len("<user>hi\n<assistant>")


def test_12_a_template_without_tools_gets_them_in_the_last_message(wire: Any) -> None:
    text = wire.post("/chat_tokenize", {"messages": MESSAGES, "tools": [SET], "tool_prompt": "p"}).json[
        "templated_text"
    ]
    tools = json.dumps([SET], separators=(",", ":"))
    assert text == f"<user>hi\n---\n{tools}\np\n<assistant>"


@pytest.mark.parametrize("streamed", [False, True], ids=["12-plain", "12-stream"])
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"tool_choice": "nope"}, "Tool error: Tool with name nope not found"),
        ({"response_format": {"type": "regex", "value": "a"}}, "Tool error: Grammar and tools are mutually exclusive"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 1}}]},
         "Tool error: the parameters of 'f' are no JSON schema of an object"),
    ],
    ids=["unknown", "grammar", "schema"],
)  # fmt: skip
def test_refused(wire: Any, fields: dict[str, Any], text: str, streamed: bool) -> None:
    answer = chat(wire, stream=streamed, **fields)
    assert (answer.status, answer.json) == (422, {"error": text, "error_type": "tool_error"})


def test_12_a_call_that_max_tokens_cut_is_a_tool_error(wire: Any) -> None:
    answer = chat(wire, tool_choice="required", max_tokens=12)
    assert (answer.status, answer.json["error_type"]) == (422, "tool_error")
    assert answer.json["error"].startswith("Tool error: Failed to parse generated text: ")
    *_, last = chat(wire, tool_choice="required", max_tokens=12, stream=True).events
    assert last["error"]["message"].startswith("Tool error: Failed to parse generated text: ")


def test_12_openai_reads_a_call_of_the_real_model(smollm2: Any) -> None:
    city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 30}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": city}}
    question: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    with openai.OpenAI(base_url=smollm2.url + "/v1", api_key="-") as client:
        asked: Any = {
            "model": "tgi",
            "messages": question,
            "tools": [tool],
            "tool_choice": "required",
            "temperature": 0,
        }
        (call,) = client.chat.completions.create(**asked, max_tokens=100).choices[0].message.tool_calls
        assert call.function.name == "get_weather"
        assert "Paris" in json.loads(call.function.arguments)["city"]
        pieces = [
            piece.function.arguments
            for chunk in client.chat.completions.create(**asked, max_tokens=100, stream=True)
            for piece in chunk.choices[0].delta.tool_calls or ()
        ]
        assert json.loads("".join(pieces)) == json.loads(call.function.arguments)
