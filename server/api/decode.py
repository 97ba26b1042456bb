"""From a JSON tree to typed structs, as strict as serde and with serde's words (wire contract, section 2a).

Rules: unknown members are ignored; a known one may not be repeated; integers refuse floats, booleans and strings and
have a width; floats accept integers; null is a value only where the type says `| None`. Knows no HTTP and no field.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec

from server.api.body import Members, end_of, parse_json
from server.errors import WrongType

T = TypeVar("T")
Reader = Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class Width:
    """An integer's type as serde names it, and its inclusive bounds."""

    name: str
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class ReadBy:
    """A field with a shape of its own: `read(value, path)` returns it, or raises Mismatch.

    `wire` is the annotation that documents what it reads, where that is not the annotation of the field.
    """

    read: Reader
    wire: Any = None


I32 = Annotated[int, Width("i32", -(2**31), 2**31 - 1)]
U32 = Annotated[int, Width("u32", 0, 2**32 - 1)]
U64 = Annotated[int, Width("u64", 0, 2**64 - 1)]
USIZE = Annotated[int, Width("usize", 0, 2**64 - 1)]


class Mismatch(Exception):
    """The value at `path` ("" is the whole body) is not what the type says."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every struct that is read from a request; `aliases` maps a second name to a field's first."""

    @classmethod
    def aliases(cls) -> dict[str, str]:
        return {}


def decode(body: bytes, kind: type[T]) -> T:
    """`body` as `kind`; MalformedJSON when it is no JSON, WrongType when it is JSON of another shape."""
    tree = parse_json(body)
    try:
        value: T = reader_of(kind)(tree, "")
    except Mismatch as error:
        where = f"{error.path}: " if error.path else ""
        raise WrongType(f"{where}{error.reason} at {end_of(body)}") from None
    return value


def decode_first(body: bytes, kinds: Sequence[type[Body]], enum: str) -> Body:
    """`body` as the first of `kinds` that it fits: serde's untagged `enum`."""
    tree = parse_json(body)
    try:
        value: Body = _first_of(kinds, enum)(tree, "")
    except Mismatch as error:
        raise WrongType(error.reason) from None
    return value


def first_of(*kinds: type[Body], enum: str) -> ReadBy:
    """A field that is read as the first of `kinds` which it fits."""
    return ReadBy(_first_of(kinds, enum))


def _first_of(kinds: Sequence[type[Body]], enum: str) -> Reader:
    def read(value: Any, path: str) -> Any:
        for kind in kinds:
            try:
                return reader_of(kind)(value, path)
            except Mismatch:
                continue
        raise Mismatch(path, f"data did not match any variant of untagged enum {enum}")

    return read


def reader_of(kind: Any) -> Reader:
    """The reader of a type annotation, made once; KeyError for one that this module does not know."""
    return _reader(kind)


@functools.cache
def _reader(kind: Any) -> Reader:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _annotated(args[1])
    if origin in (Union, types.UnionType):
        (inner,) = (a for a in args if a is not type(None))
        return _nullable(reader_of(inner))
    if origin is tuple:
        return _sequence(reader_of(args[0]))
    if kind is Any:
        return lambda value, path: plain(value)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(kind)
    return {str: _string, bool: _boolean, float: _float}[kind]


def plain(value: Any) -> Any:
    """The tree with ordinary dicts; of a repeated key the last value."""
    if isinstance(value, Members):
        return {key: plain(member) for key, member in value}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def unexpected(value: Any) -> str:
    """What serde calls a value that it did not expect."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{_decimal(value)}`"
    if isinstance(value, str):
        return f'string "{value}"'
    return "map" if isinstance(value, (Members, dict)) else "sequence"


def _decimal(value: float) -> str:
    """As Rust writes it: never with an exponent."""
    digits = f"{Decimal(repr(value)):f}"
    return digits if "." in digits else f"{digits}.0"


def wrong_type(value: Any, path: str, expected: str) -> Mismatch:
    """serde's `invalid type`."""
    return Mismatch(path, f"invalid type: {unexpected(value)}, expected {expected}")


def child(path: str, name: str) -> str:
    """The path of a member."""
    return f"{path}.{name}" if path else name


def _annotated(rule: Width | ReadBy) -> Reader:
    return rule.read if isinstance(rule, ReadBy) else _integer(rule)


def _integer(width: Width) -> Reader:
    def read(value: Any, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(value, path, width.name)
        if not width.low <= value <= width.high:
            raise Mismatch(path, f"invalid value: integer `{value}`, expected {width.name}")
        return value

    return read


def _nullable(inner: Reader) -> Reader:
    return lambda value, path: None if value is None else inner(value, path)


def _sequence(inner: Reader) -> Reader:
    def read(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or isinstance(value, Members):
            raise wrong_type(value, path, "a sequence")
        return tuple(inner(item, f"{path}[{index}]") for index, item in enumerate(value))

    return read


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(value, path, "a string")
    return value


def _boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise wrong_type(value, path, "a boolean")
    return value


def _float(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(value, path, "f32")
    return float(value)


def _struct(kind: type[msgspec.Struct]) -> Reader:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    readers = {name: reader_of(field.type) for name, field in fields.items()}
    aliases = kind.aliases() if issubclass(kind, Body) else {}

    def read(value: Any, path: str) -> msgspec.Struct:
        if not isinstance(value, Members):
            raise wrong_type(value, path, f"struct {kind.__name__}")
        found: dict[str, Any] = {}
        for key, member in value:
            name = aliases.get(key, key)
            if name in found:
                raise Mismatch(path, f"duplicate field `{name}`")
            if name in readers:
                found[name] = readers[name](member, child(path, key))
        for name, field in fields.items():
            if field.required and name not in found:
                raise Mismatch(path, f"missing field `{name}`")
        return kind(**found)

    return read
