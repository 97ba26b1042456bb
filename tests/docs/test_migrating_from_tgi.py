"""The way from TGI: every variable of its launcher has a place in the tables, and what they name on our side exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest

from models.protocol import DeviceOptions
from server.cli import COMMANDS
from server.settings import Settings
from server.variables import MODEL_ID, VARIABLES, WITHOUT_EFFECT

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/migrating-from-tgi.md").read_text("utf-8")


def table(title: str) -> dict[str, list[str]]:
    """By the variables of the first column, the cells behind it."""
    section = GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [row.split("|") for row in re.findall(r"^\|(.+)\|$", section, re.MULTILINE)[2:]]
    return {name.strip(): [cell.strip() for cell in row[1:]] for row in rows for name in row[0].split(",")}


def quoted(text: str) -> list[str]:
    """What stands between backquotes, blocks of code apart."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def exists(key: str) -> bool:
    """Whether the settings have this dotted key; of a device, whether one of the kinds has it."""
    kinds: list[Any] = [Settings]
    for name in key.split("."):
        found = [field.type for kind in kinds for field in msgspec.structs.fields(kind) if field.name == name]
        if not found:
            return False
        kinds = [kind for annotation in found for kind in _structs(annotation)]
    return True


def _structs(annotation: Any) -> list[Any]:
    if annotation == DeviceOptions:
        return list(get_args(DeviceOptions))
    inner = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return [inner] if isinstance(inner, type) and issubclass(inner, msgspec.Struct) else []


def test_every_variable_that_works_is_told_with_its_keys() -> None:
    told = {name: sorted(quoted(cells[0])) for name, cells in table("What has a counterpart").items()}
    expected = {name: sorted(variable.keys) for variable in VARIABLES for name in variable.names}
    assert told == {**expected, **{name: ["models"] for name in MODEL_ID.names}}


def test_every_variable_without_effect_is_told() -> None:
    assert sorted(table("What has none")) == sorted(WITHOUT_EFFECT)


def test_every_setting_that_is_named_exists() -> None:
    sections = "|".join(field.name for field in msgspec.structs.fields(Settings))
    keys = [each for each in quoted(GUIDE) if re.fullmatch(rf"(?:{sections})\.[a-z_.]+", each)]
    assert len(keys) > 30
    assert [key for key in keys if not exists(key)] == []


@pytest.mark.parametrize("key", ["server.hots", "models.device.batch_size", "limit.max_best_of"])
def test_a_setting_that_does_not_exist_is_found(key: str) -> None:
    assert not exists(key)


def test_every_command_that_is_named_exists() -> None:
    assert set(re.findall(r"neuronx-serve ([a-z]+)", GUIDE)) <= set(COMMANDS)


def test_every_flag_of_ours_in_the_example_is_a_variable() -> None:
    flags = re.findall(r"^neuronx-serve serve .*$", GUIDE, re.MULTILINE)[0].split()[2:]
    names = {flag for flag in flags if flag.startswith("--")} - {"--config"}
    assert {name[2:].upper().replace("-", "_") for name in names} <= {variable.name for variable in VARIABLES}
