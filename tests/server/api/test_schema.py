"""The fields of the bodies: defaults, and shapes that a type alone cannot say (wire contract, sections 3, 10, 11)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.api.decode import decode
from server.api.schema import ChatRequest, CompatGenerateRequest, GenerateParameters, GenerateRequest
from server.api.shapes import Grammar
from server.errors import WrongType
from server.text.messages import text_of_message


def native(**fields: Any) -> GenerateRequest:
    return decode(json.dumps({"inputs": "x", **fields}).encode(), GenerateRequest)


def chat(**fields: Any) -> ChatRequest:
    return decode(json.dumps({"messages": [], **fields}).encode(), ChatRequest)


def test_without_parameters_sampling_is_on_and_with_empty_ones_it_is_off() -> None:
    assert native().parameters == GenerateParameters(do_sample=True)
    assert native(parameters={}).parameters == GenerateParameters(do_sample=False)


def test_stream_belongs_to_the_root_route() -> None:
    assert decode(b'{"inputs":"x","stream":true}', CompatGenerateRequest).stream is True
    assert decode(b'{"inputs":"x"}', CompatGenerateRequest).stream is False
    assert decode(b'{"inputs":"x","stream":"no bool"}', GenerateRequest).inputs == "x"
    with pytest.raises(WrongType, match="stream: invalid type: null, expected a boolean"):
        decode(b'{"inputs":"x","stream":null}', CompatGenerateRequest)


@pytest.mark.parametrize(
    ("grammar", "read"),
    [
        ({"type": "json", "value": {"properties": {"a": {"b": 1}}}}, Grammar("json", {"properties": {"a": {"b": 1}}})),
        ({"type": "json", "value": '{"properties":{}}'}, Grammar("json", '{"properties":{}}')),
        ({"type": "json_object", "value": {}}, Grammar("json", {})),
        ({"type": "regex", "value": "a+"}, Grammar("regex", "a+")),
        ({"type": "json_schema", "value": {"schema": {}}}, Grammar("json_schema", {"schema": {}})),
        (None, None),
    ],
)
def test_grammars(grammar: Any, read: Grammar | None) -> None:
    assert native(parameters={"grammar": grammar}).parameters.grammar == read
    assert chat(response_format=grammar).response_format == read


@pytest.mark.parametrize(
    ("response_format", "read"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar("json_object", None)),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
         Grammar("json_schema", {"name": "n", "schema": {}})),
    ],
)  # fmt: skip
def test_openais_own_response_formats(response_format: Any, read: Grammar | None) -> None:
    assert chat(response_format=response_format).response_format == read


@pytest.mark.parametrize(
    "response_format",
    [
        *({}, {"type": "xml"}, [], "json", {"type": ["text"]}, {"type": "json_schema"}),
        *({"type": "json_schema", "value": {}}, {"type": "json_schema", "json_schema": {"name": "n"}}),
    ],
)
def test_response_formats_that_are_none(response_format: Any) -> None:
    with pytest.raises(WrongType, match="response_format"):
        chat(response_format=response_format)


@pytest.mark.parametrize(("stop", "read"), [(None, None), ("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())])
def test_stop_of_a_chat(stop: Any, read: Any) -> None:
    assert chat(stop=stop).stop == read


@pytest.mark.parametrize(
    ("choice", "read"),
    [
        (None, None),
        ("auto", "auto"),
        ("f", "f"),
        ({"type": "function", "function": {"name": "f"}}, "f"),
        ({"function": {"name": "f"}}, "f"),
        ({"name": "f"}, "f"),
    ],
)
def test_tool_choice(choice: Any, read: str | None) -> None:
    assert chat(tool_choice=choice).tool_choice == read


@pytest.mark.parametrize("choice", [1, True, [], {}, {"function": {}}, {"function": {"name": 1}}])
def test_tool_choices_that_are_none(choice: Any) -> None:
    with pytest.raises(WrongType, match="ToolType"):
        chat(tool_choice=choice)


@pytest.mark.parametrize(
    "members",
    [
        '"messages":[{"role":"user","content":"x","extra":1,"extra":2}]',
        '"messages":[{"role":"user","content":[{"type":"text","text":"x","extra":1,"extra":2}]}]',
        '"messages":[],"response_format":{"type":"text","extra":1,"extra":2}',
        '"messages":[],"response_format":{"type":"regex","value":"a","extra":1,"extra":2}',
        '"messages":[],"tool_choice":{"name":"f","extra":1,"extra":2}',
    ],
)
def test_members_that_no_type_knows_may_be_repeated(members: str) -> None:
    decode(f"{{{members}}}".encode(), ChatRequest)


@pytest.mark.parametrize(
    "response_format",
    [
        '{"type":"json","value":{"type":"object","type":"string"}}',
        '{"type":"json_schema","value":{"schema":{"type":"object","type":"string"}}}',
        '{"type":"json_schema","json_schema":{"schema":{"type":"object","type":"string"}}}',
    ],
)
def test_of_what_a_users_schema_repeats_the_last_counts(response_format: str) -> None:
    grammar = decode(f'{{"messages":[],"response_format":{response_format}}}'.encode(), ChatRequest).response_format
    assert grammar is not None
    assert grammar.value in ({"type": "string"}, {"schema": {"type": "string"}})


def test_of_what_the_arguments_of_a_call_repeat_the_last_counts() -> None:
    call = '{"id":"1","function":{"name":"f","arguments":{"name":"a","name":"b"}}}'
    body = f'{{"messages":[{{"role":"assistant","tool_calls":[{call}]}}]}}'
    (message,) = decode(body.encode(), ChatRequest).messages
    assert [each.function.arguments for each in message.tool_calls or ()] == [{"name": "b"}]


def test_a_tools_schema_is_called_parameters_or_arguments() -> None:
    for name in ("parameters", "arguments"):
        (tool,) = chat(tools=[{"type": "function", "function": {"name": "f", name: {"type": "object"}}}]).tools or ()
        assert (tool.function.name, tool.function.parameters) == ("f", {"type": "object"})
    with pytest.raises(WrongType, match=r"tools\[0\].function: missing field `parameters`"):
        chat(tools=[{"type": "function", "function": {"name": "f"}}])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi", "hi"),
        ("", ""),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}], "a![](u)"),
    ],
)
def test_content_of_a_message(content: Any, text: str) -> None:
    (message,) = chat(messages=[{"role": "user", "content": content}]).messages
    assert (message.role, text_of_message(message)) == ("user", text)


def test_null_content_is_fine_beside_tool_calls() -> None:
    calls = [{"id": "0", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    (message,) = chat(messages=[{"role": "assistant", "content": None, "tool_calls": calls}]).messages
    assert json.loads(text_of_message(message))[0]["function"]["name"] == "f"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": 1},
        {"role": "user", "content": {"type": "text", "text": "a"}},
        {"role": "user", "content": ["a"]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": "u"}]},
        {"role": "assistant", "tool_calls": [{}]},
    ],
)
def test_messages_that_are_none(message: Any) -> None:
    with pytest.raises(WrongType, match=r"messages\[0\]: data did not match any variant of untagged enum MessageBody"):
        chat(messages=[message])
