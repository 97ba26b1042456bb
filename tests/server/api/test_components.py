"""Types become schemas of OpenAPI 3.0.3."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest

from server.api.components import Components
from server.api.decode import U64, Body, ReadBy


class Inner(msgspec.Struct, tag_field="type", tag="inner"):
    """An inner one."""

    text: str | None
    more: list[Inner] = []


class Other(msgspec.Struct):
    number: float


def as_is(value: Any, path: str) -> Any:
    return value


class Outer(Body, kw_only=True):
    """Over
    two lines."""

    inner: Inner | None = None
    either: Inner | Other | None = None
    number: U64 = 3
    flags: tuple[bool, ...] = ()
    choice: Literal["a", "b"] = "a"
    shaped: Annotated[int, ReadBy(as_is, str | None)]


@pytest.fixture
def schemas() -> dict[str, Any]:
    components = Components({})
    assert components.schema(Outer) == {"$ref": "#/components/schemas/Outer"}
    return components.schemas


def test_every_struct_is_a_component_even_if_it_refers_to_itself(schemas: dict[str, Any]) -> None:
    assert sorted(schemas) == ["Inner", "Other", "Outer"]
    assert schemas["Inner"]["properties"]["more"] == {"type": "array", "items": {"$ref": "#/components/schemas/Inner"}}
    assert schemas["Inner"]["properties"]["type"] == {"type": "string", "enum": ["inner"]}
    assert schemas["Inner"]["required"] == ["type", "text"]


def test_fields(schemas: dict[str, Any]) -> None:
    outer = schemas["Outer"]["properties"]
    inner, other = {"$ref": "#/components/schemas/Inner"}, {"$ref": "#/components/schemas/Other"}
    assert outer["inner"] == {"allOf": [inner], "nullable": True}
    assert outer["either"] == {"anyOf": [inner, other], "nullable": True}
    assert outer["number"] == {"type": "integer", "format": "int64", "minimum": 0, "default": 3}
    assert outer["flags"] == {"type": "array", "items": {"type": "boolean"}}
    assert outer["choice"] == {"type": "string", "enum": ["a", "b"], "default": "a"}
    assert schemas["Outer"]["description"] == "Over two lines."


def test_a_field_with_a_reader_of_its_own_shows_what_that_reads(schemas: dict[str, Any]) -> None:
    assert schemas["Outer"]["properties"]["shaped"] == {"type": "string", "nullable": True}


def test_names_for_types_that_have_none() -> None:
    components = Components({str | Other: "Choice"})
    assert components.schema(str | Other | None) == {
        "allOf": [{"$ref": "#/components/schemas/Choice"}],
        "nullable": True,
    }


def test_two_types_of_one_name_are_refused() -> None:
    components = Components({Inner: "Other"})
    components.schema(Other)
    with pytest.raises(TypeError, match="two types want to be the component Other"):
        components.schema(Inner)


def test_an_unknown_annotation_is_refused() -> None:
    with pytest.raises(TypeError, match="no schema for"):
        Components({}).schema(bytes)
