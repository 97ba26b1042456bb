"""Typed reading: serde's strictness and serde's words (wire contract, section 2a)."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.decode import I32, U32, U64, Body, decode
from server.errors import WrongType


class Inner(Body, frozen=True, kw_only=True):
    count: U32 | None = None
    signed: I32 | None = None
    seed: U64 | None = None
    ratio: float | None = None
    flag: bool = False
    words: tuple[str, ...] = ()
    anything: Any = None

    @classmethod
    def aliases(cls) -> dict[str, str]:
        return {"number": "count"}


class Outer(Body, frozen=True, kw_only=True):
    name: str
    inner: Inner = Inner()
    many: tuple[Inner, ...] | None = None


def refusal(body: str) -> str:
    with pytest.raises(WrongType) as error:
        decode(body.encode(), Outer)
    prefix = "Failed to deserialize the JSON body into the target type: "
    assert error.value.text.startswith(prefix)
    return error.value.text.removeprefix(prefix)


def inner(body: str) -> Inner:
    return decode(f'{{"name":"x","inner":{body}}}'.encode(), Outer).inner


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("[]", "invalid type: sequence, expected struct Outer at line 1 column 2"),
        ("null", "invalid type: null, expected struct Outer at line 1 column 4"),
        ('"x"', 'invalid type: string "x", expected struct Outer at line 1 column 3'),
        ("{}", "missing field `name` at line 1 column 2"),
        ('{"name":null}', "name: invalid type: null, expected a string at line 1 column 13"),
        ('{"name":1}', "name: invalid type: integer `1`, expected a string at line 1 column 10"),
        ('{"name":["x"]}', "name: invalid type: sequence, expected a string at line 1 column 14"),
        ('{"name":"x","name":"y"}', "duplicate field `name` at line 1 column 23"),
        ('{"name":"x",\n"inner":null}', "inner: invalid type: null, expected struct Inner at line 2 column 13"),
    ],
)
def test_the_outer_shape(body: str, reason: str) -> None:
    assert refusal(body) == reason


@pytest.mark.parametrize(
    ("member", "path", "reason"),
    [
        ('"count":-1', "count", "invalid value: integer `-1`, expected u32"),
        ('"count":4294967296', "count", "invalid value: integer `4294967296`, expected u32"),
        ('"count":20.0', "count", "invalid type: floating point `20.0`, expected u32"),
        ('"count":"20"', "count", 'invalid type: string "20", expected u32'),
        ('"count":true', "count", "invalid type: boolean `true`, expected u32"),
        ('"count":{}', "count", "invalid type: map, expected u32"),
        ('"number":-1', "number", "invalid value: integer `-1`, expected u32"),
        ('"signed":2147483648', "signed", "invalid value: integer `2147483648`, expected i32"),
        ('"seed":-1', "seed", "invalid value: integer `-1`, expected u64"),
        ('"seed":18446744073709551616', "seed", "invalid type: floating point `18446744073709552000.0`, expected u64"),
        ('"ratio":"1"', "ratio", 'invalid type: string "1", expected f32'),
        ('"ratio":true', "ratio", "invalid type: boolean `true`, expected f32"),
        ('"flag":null', "flag", "invalid type: null, expected a boolean"),
        ('"flag":1', "flag", "invalid type: integer `1`, expected a boolean"),
        ('"flag":"true"', "flag", 'invalid type: string "true", expected a boolean'),
        ('"words":null', "words", "invalid type: null, expected a sequence"),
        ('"words":"x"', "words", 'invalid type: string "x", expected a sequence'),
        ('"words":{}', "words", "invalid type: map, expected a sequence"),
        ('"words":["x",1]', "words[1]", "invalid type: integer `1`, expected a string"),
    ],
)
def test_a_member_of_another_type(member: str, path: str, reason: str) -> None:
    assert refusal(f'{{"name":"x","inner":{{{member}}}}}').startswith(f"inner.{path}: {reason} at line 1 column ")


def test_repeated_members_are_refused_also_by_their_other_name() -> None:
    assert "inner: duplicate field `count`" in refusal('{"name":"x","inner":{"count":1,"count":1}}')
    assert "inner: duplicate field `count`" in refusal('{"name":"x","inner":{"count":1,"number":2}}')


def test_the_path_leads_into_lists() -> None:
    assert refusal('{"name":"x","many":[{},{"count":-1}]}').startswith("many[1].count: invalid value")


def test_unknown_members_are_ignored_at_every_level_even_repeated() -> None:
    body = b'{"name":"x","extra":{"deep":[1]},"extra":2,"inner":{"other":null,"other":1,"count":3}}'
    assert decode(body, Outer) == Outer(name="x", inner=Inner(count=3))


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ('{"count":null}', Inner()),
        ('{"count":4294967295}', Inner(count=2**32 - 1)),
        ('{"number":7}', Inner(count=7)),
        ('{"signed":-1}', Inner(signed=-1)),
        ('{"seed":18446744073709551615}', Inner(seed=2**64 - 1)),
        ('{"ratio":1}', Inner(ratio=1.0)),
        ('{"ratio":1e-3}', Inner(ratio=0.001)),
        ('{"words":["a","计"]}', Inner(words=("a", "计"))),
        ('{"anything":{"a":[{"b":null}]}}', Inner(anything={"a": [{"b": None}]})),
    ],
)
def test_values_within_their_types(body: str, value: Inner) -> None:
    assert inner(body) == value


def test_floats_are_floats_whatever_was_written() -> None:
    assert isinstance(inner('{"ratio":1}').ratio, float)
