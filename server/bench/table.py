"""Figures as a table for people and as JSON for programs: one row a measurement, one column a field."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


def heading(kind: type[msgspec.Struct]) -> str:
    """The names of the columns."""
    return "  ".join(_fields(kind))


def line(row: msgspec.Struct) -> str:
    """One row, right-aligned under the names."""
    return "  ".join(_shown(getattr(row, name)).rjust(len(name)) for name in _fields(type(row)))


def to_json(rows: Sequence[msgspec.Struct]) -> bytes:
    """A list of objects. NaN, which JSON does not know, becomes null."""
    return msgspec.json.format(msgspec.json.encode(list(rows)), indent=2) + b"\n"


def _fields(kind: type[msgspec.Struct]) -> list[str]:
    return [name for name in kind.__struct_fields__ if name != "error"]


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"
