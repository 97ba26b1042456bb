"""docs/compatibility.md: every field that a body may have has its row."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from server.api.schema import ChatRequest, CompatGenerateRequest, CompletionRequest, GenerateParameters

TEXT = (Path(__file__).resolve().parents[2] / "docs/compatibility.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("title", "kinds"),
    [
        ("Parameters of the native routes", [CompatGenerateRequest, GenerateParameters]),
        ("Chat", [ChatRequest]),
        ("Completions", [CompletionRequest]),
    ],
)
def test_every_field_has_its_row(title: str, kinds: list[type[msgspec.Struct]]) -> None:
    section = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (.+?) \|", section, re.MULTILINE)
    told = {name for cell in cells for path in re.findall(r"`([\w.]+)`", cell) for name in path.split(".")}
    fields = {field.encode_name for kind in kinds for field in msgspec.structs.fields(kind)}
    assert fields - told == set()
