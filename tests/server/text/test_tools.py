"""Tools: what is forced, and how the call is read back, whole and as it grows (wire contract, section 12)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ToolError
from server.text.tools import Called, GrowingCall, offer, read_call


@dataclass(frozen=True)
class Function:
    name: str
    parameters: Any
    description: str | None = None


WEATHER = Function("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
CLOCK = Function("get_time", {"type": "object"}, "The time of day")


def branches(schema: Any) -> list[Any]:
    return list(schema["properties"]["function"]["anyOf"])


@pytest.mark.parametrize(("functions", "choice"), [([], None), ([], "auto"), ([WEATHER], "none"), ([], "none")])
def test_nothing_is_forced(functions: list[Function], choice: str | None) -> None:
    assert offer(functions, choice) is None


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, ["get_weather", "get_time", "no_tool"]),
        ("auto", ["get_weather", "get_time", "no_tool"]),
        ("required", ["get_weather", "get_time"]),
        ("get_time", ["get_time"]),
    ],
)
def test_what_may_be_called(choice: str | None, names: list[str]) -> None:
    offered = offer([WEATHER, CLOCK], choice)
    assert offered is not None
    assert [branch["properties"]["_name"]["const"] for branch in branches(offered.schema())] == names


def test_a_name_that_is_no_tool() -> None:
    with pytest.raises(ToolError, match="Tool error: Tool with name nope not found"):
        offer([WEATHER], "nope")


def test_the_name_is_written_first_and_the_arguments_are_the_functions_own() -> None:
    offered = offer([WEATHER], "required")
    assert offered is not None
    (branch,) = branches(offered.schema())
    assert list(branch["properties"]) == ["_name", "city"]
    assert branch["required"] == ["_name", "city"]
    assert branch["additionalProperties"] is False


def test_references_within_a_tools_schema_still_point_home() -> None:
    city = {"$defs": {"city": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/city"}}}
    offered = offer([WEATHER, Function("f", city)], "required")
    assert offered is not None
    schema = offered.schema()
    reference = branches(schema)[1]["properties"]["a"]["$ref"]
    found = schema
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    assert found == {"type": "string"}


@pytest.mark.parametrize("parameters", [None, [], "text", {"properties": []}, {"required": "city"}])
def test_parameters_that_are_no_schema(parameters: Any) -> None:
    offered = offer([Function("f", parameters)], "required")
    assert offered is not None
    with pytest.raises(ToolError, match="the parameters of 'f' are no JSON schema of an object"):
        offered.schema()


def test_a_whole_call() -> None:
    text = '{"function": {"_name": "get_weather", "city": "Zürich"}}'
    assert read_call(text) == Called("get_weather", '{"city":"Zürich"}')


@pytest.mark.parametrize("text", ["", "{", '{"function":{"_name":"get_wea', "[]", "null", '{"function":{}}', "words"])
def test_a_call_that_was_cut(text: str) -> None:
    with pytest.raises(ToolError, match="Tool error: Failed to parse generated text: "):
        read_call(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.text(min_size=1), st.dictionaries(st.text().filter(lambda key: key != "_name"), values), st.data())
def test_pieces_of_a_growing_call_join_to_its_arguments(name: str, arguments: dict[str, Any], data: Any) -> None:
    indent = data.draw(st.sampled_from([None, 0, 2]))
    text = json.dumps({"function": {"_name": name, **arguments}}, indent=indent, ensure_ascii=data.draw(st.booleans()))
    growing, pieces, rest = GrowingCall(), [], text
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        pieces.append(growing.push(rest[:cut]))
        assert growing.name is not None or not any(pieces), "nothing is sent before the name is known"
        rest = rest[cut:]
    assert growing.name == name == read_call(text).name
    assert json.loads("".join(pieces)) == arguments == json.loads(read_call(text).arguments)
