"""Section 11 of the wire contract: /v1/chat/completions, plain and streamed, and its errors (section 7)."""

from __future__ import annotations

import re
from typing import Any

import pytest

MESSAGES = [{"role": "user", "content": "hi"}]
PROMPT = "<user>hi\n<assistant>"
ROUTE = "/v1/chat/completions"
TEXT = rb'"(?:[^"\\]|\\.)*"'
FLOAT = rb"-?\d+\.\d+(?:e-?\d+)?"
HEAD = rb'"id":"chatcmpl-[0-9a-f]{32}","created":\d{10},"model":"org/model","system_fingerprint":"3\.3\.6-dev0-native",'


def chat(wire: Any, messages: Any = MESSAGES, **fields: Any) -> Any:
    return wire.post(ROUTE, {"messages": messages, "max_tokens": 3, **fields})


def test_11_plain_byte_for_byte(wire: Any) -> None:
    answer = chat(wire)
    golden = rb'\{"object":"chat\.completion",' + HEAD
    golden += rb'"choices":\[\{"index":0,"message":\{"role":"assistant","content":' + TEXT + rb'\},"logprobs":null,'
    golden += rb'"finish_reason":"length"\}\],'
    golden += rb'"usage":\{"prompt_tokens":20,"completion_tokens":3,"total_tokens":23\}\}'
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert re.fullmatch(golden, answer.body)


def test_11_events_byte_for_byte(wire: Any) -> None:
    *chunks, done = chat(wire, stream=True).chunks
    assert done == b"data: [DONE]\n\n"
    for reason, chunk in zip([b"null", b"null", b'"length"'], chunks, strict=True):
        golden = rb'data: \{"object":"chat\.completion\.chunk",' + HEAD + rb'"choices":\[\{"index":0,'
        golden += rb'"delta":\{"role":"assistant","content":' + TEXT + rb'\},"logprobs":null,"finish_reason":' + reason
        assert re.fullmatch(golden + rb'\}\],"usage":null\}\n\n', chunk)


def test_11_all_events_have_one_id(wire: Any) -> None:
    assert len({event["id"] for event in chat(wire, stream=True).events}) == 1


def test_11_usage_is_one_more_event(wire: Any) -> None:
    answer = chat(wire, stream=True, stream_options={"include_usage": True})
    *chunks, last = answer.events
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    assert answer.chunks[-1] == b"data: [DONE]\n\n"


def test_11_stream_and_plain_say_the_same(wire: Any) -> None:
    fields = {"max_tokens": 40, "temperature": 0}
    text = chat(wire, **fields).json["choices"][0]["message"]["content"]
    deltas = [event["choices"][0]["delta"]["content"] for event in chat(wire, stream=True, **fields).events]
    assert "".join(deltas) == text


def test_11_logprobs(wire: Any) -> None:
    golden = rb'.*"logprobs":\{"content":\[' + rb",".join(
        [rb'\{"token":' + TEXT + rb',"logprob":' + FLOAT + rb',"top_logprobs":\['
         + rb",".join([rb'\{"token":' + TEXT + rb',"logprob":' + FLOAT + rb"\}"] * 2) + rb"\]\}"] * 3
    ) + rb'\]\},"finish_reason".*'  # fmt: skip
    assert re.fullmatch(golden, chat(wire, logprobs=True, top_logprobs=2).body)
    for event in chat(wire, logprobs=True, stream=True).events:
        (content,) = event["choices"][0]["logprobs"]["content"]
        assert content["top_logprobs"] == []


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (None, "org/model"),
        ("tgi", "org/model"),
        ("", "org/model"),
        ("org/model", "org/model"),
        ("dummy", "dummy"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ],
    ids=lambda value: f"11-18-model-{value}",
)
def test_any_model_name_is_served_and_shown_again(wire: Any, asked: str | None, shown: str) -> None:
    answer = chat(wire, model=asked)
    assert (answer.status, answer.json["model"]) == (200, shown)


def test_11_headers_count_the_templated_prompt(wire: Any) -> None:
    headers = chat(wire).headers
    assert headers["x-compute-characters"] == str(len(PROMPT))
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"]) == ("20", "3")


def test_3_no_bos_is_added_on_top_of_the_template(wire: Any) -> None:
    assert chat(wire).json["usage"]["prompt_tokens"] == len(PROMPT)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}],
        [{"role": "user", "content": "hi", "name": "somebody", "extra": [1]}],
        [{"role": "user", "content": "hi", "tool_calls": None}],
    ],
    ids=["11-parts", "11-unknown-fields", "11-null-tool-calls"],
)
def test_messages_that_mean_the_same(wire: Any, messages: Any) -> None:
    got = chat(wire, messages, temperature=0).json["choices"]
    assert got == chat(wire, temperature=0).json["choices"]


def test_11_a_last_assistant_message_is_continued(wire: Any) -> None:
    answer = chat(wire, [*MESSAGES, {"role": "assistant", "content": "so  "}], temperature=0)
    assert answer.headers["x-compute-characters"] == str(len(PROMPT) + len("so"))


def test_11_an_image_is_a_link(wire: Any) -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]
    assert chat(wire, image).headers["x-compute-characters"] == str(len("<user>![](u)\n<assistant>"))


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 0, "top_p": 0.5}], ids=["11-t0", "11-t0-top_p"])
def test_temperature_0_is_greedy(wire: Any, fields: dict[str, Any]) -> None:
    answers = {chat(wire, max_tokens=30, **fields).json["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(answers) == 1


def test_11_without_temperature_it_samples(wire: Any) -> None:
    answers = {chat(wire, max_tokens=30).json["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(answers) == 3


def test_11_a_seed_reproduces(wire: Any) -> None:
    answers = {chat(wire, max_tokens=30, seed=5).json["choices"][0]["message"]["content"] for _ in range(2)}
    assert len(answers) == 1


def test_11_without_max_tokens_the_context_is_filled(wire: Any) -> None:
    assert chat(wire, max_tokens=None).json["usage"]["total_tokens"] == 200


def test_11_max_completion_tokens_is_an_alias(wire: Any) -> None:
    answer = wire.post(ROUTE, {"messages": MESSAGES, "max_completion_tokens": 7})
    assert answer.json["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize("bare", [True, False], ids=["11-stop-string", "11-stop-list"])
def test_a_stop_string_ends_with_its_own_reason_and_stays(wire: Any, bare: bool) -> None:
    text = chat(wire, max_tokens=30, temperature=0).json["choices"][0]["message"]["content"]
    stop = text[5:8]
    choice = chat(wire, max_tokens=30, temperature=0, stop=stop if bare else [stop]).json["choices"][0]
    assert choice["finish_reason"] == "stop_sequence"
    assert choice["message"]["content"] == text[: text.index(stop) + 3]


IGNORED: list[dict[str, Any]] = [
    {"n": 3},
    {"logit_bias": {"5": -100}},
    {"user": "u", "store": True, "metadata": {}},
    {"top_p": 1},
    {"presence_penalty": 0.5, "frequency_penalty": 1.1},
    {"response_format": {"type": "text"}},
    {"tools": []},
    {"tools": None, "tool_choice": "auto"},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "none"},
]


@pytest.mark.parametrize("fields", IGNORED, ids=lambda fields: "11-" + "-".join(fields))
def test_fields_that_do_no_harm(wire: Any, fields: dict[str, Any]) -> None:
    answer = chat(wire, **fields)
    assert (answer.status, len(answer.json["choices"])) == (200, 1)


REFUSED = [
    ({"temperature": -1}, "`temperature` must be strictly positive"),
    ({"top_p": 1.5}, "`top_p` must be > 0.0 and < 1.0"),
    ({"frequency_penalty": 3}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"presence_penalty": 3}, "`presence_penalty` must be >= -2.0 and <= 2.0"),
    ({"max_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"logprobs": True, "top_logprobs": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"max_tokens": 190}, "`inputs` tokens + `max_new_tokens` must be <= 200. "
     "Given: 20 `inputs` tokens and 190 `max_new_tokens`"),
    ({"response_format": {"type": "regex", "value": "["}}, "grammar is not valid: unclosed character class"),
    ({"response_format": {"type": "json", "value": {}}},
     "grammar is not valid: Grammar must have a 'properties' field"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
     "grammar is not valid: Grammar must have a 'properties' field"),
]  # fmt: skip
REFUSED_CASES = [pytest.param(f, m, id=f"7-11-{n}-{'-'.join(f)}") for n, (f, m) in enumerate(REFUSED)]


@pytest.mark.parametrize(("fields", "message"), REFUSED_CASES)
def test_refused_plain(wire: Any, fields: dict[str, Any], message: str) -> None:
    answer = chat(wire, **fields)
    assert (answer.status, answer.headers["content-type"]) == (422, "application/json")
    assert answer.json == {"error": f"Input validation error: {message}", "error_type": "validation"}


@pytest.mark.parametrize(("fields", "message"), REFUSED_CASES)
def test_refused_streamed(wire: Any, fields: dict[str, Any], message: str) -> None:
    answer = chat(wire, stream=True, **fields)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    golden = f'data: {{"error":{{"message":"Input validation error: {message}","http_status_code":422}}}}\n\n'
    assert answer.chunks == (golden.encode(), b"data: [DONE]\n\n")


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
PROMPT_ERRORS: list[tuple[str, dict[str, Any], str, str]] = [
    ("7-template", {"messages": [{"role": "forbidden", "content": "x"}]}, "template_error",
     "Template error: this role is forbidden"),
    ("7-no-messages", {"messages": []}, "template_error", "Template error: `messages` cannot be empty"),
    ("11-tools-and-grammar", {"tools": [TOOL], "response_format": {"type": "regex", "value": "a"}}, "tool_error",
     "Tool error: Grammar and tools are mutually exclusive"),
    ("12-unknown-tool", {"tools": [TOOL], "tool_choice": "g"}, "tool_error", "Tool error: Tool with name g not found"),
]  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("fields", "kind", "text"), [pytest.param(*c, id=i) for i, *c in PROMPT_ERRORS])
def test_errors_of_the_prompt_are_422_even_with_stream(
    wire: Any, fields: dict[str, Any], kind: str, text: str, streamed: bool
) -> None:
    answer = wire.post(ROUTE, {"messages": MESSAGES, "stream": streamed, **fields})
    assert (answer.status, answer.headers["content-type"]) == (422, "application/json")
    assert answer.json == {"error": text, "error_type": kind}
