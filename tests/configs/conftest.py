"""What a server exports, for whatever is configured in terms of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

TOML = """
[limits]
max_concurrent_requests = 1

[[models]]
id = "org/model"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 256
eos_token = 255
step_s = 0.01
answer_tokens = 1500
faults = ["decode:2=exit:once"]
"""


@dataclass(frozen=True)
class Exported:
    """A series of /metrics, by the very name that is written there."""

    name: str
    labels: dict[str, str]


@pytest.fixture(scope="session")
def exported(
    serve: Callable[..., Any],
    tiny_text_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
    neuron_monitor_path: str,
) -> list[Exported]:
    """Samples of a server to which everything has happened: answers, refusals, a lost worker, a client that left."""
    directory = tmp_path_factory.mktemp("exporting") / "model"
    shutil.copytree(tiny_text_directory, directory)  # the device notes there that it has failed once
    server = serve(TOML.format(directory=directory), env={"PATH": neuron_monitor_path})
    server.wait_available()
    answer = {"inputs": "x", "parameters": {"max_new_tokens": 5}}
    assert server.post("/generate", answer).status_code == 200  # its worker is lost on the way
    assert server.post("/generate", {"inputs": ""}).status_code == 422
    long_answer = {"inputs": "x", "parameters": {"max_new_tokens": 1000}}
    with httpx.stream("POST", f"{server.url}/generate_stream", json=long_answer, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert server.post("/generate", answer).status_code == 429
    while "neuronx_serve_dropped_tokens_total" not in (text := server.get("/metrics").text):
        assert server.process.poll() is None
    lines = re.findall(r"^(\w+)(\{.*\})? \S+$", text, re.MULTILINE)
    return [Exported(name, dict(re.findall(r'(\w+)="([^"]*)"', labels))) for name, labels in lines]


@pytest.fixture(scope="session")
def promtool() -> str:
    """The program's path."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not there: scripts/test unpacks it on Debian and Ubuntu")
    return path


_MATCHERS = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"((?:[^"\\]|\\.)*)"')
_PARTS = re.compile(
    r"""
    (?: \b(?:on|ignoring|group_left|group_right)\s*\([^)]*\) | \boffset\s+\w+ | \[[^]]*\] | \d[\w.]* )
    | (?P<name> [a-zA-Z_:][\w:]* ) \s*
      (?P<call> \( | (?:by|without)\s*\([^)]*\) )?
      (?P<matchers> \{ (?: "(?:[^"\\]|\\.)*" | [^}"] )* \} )?
    """,
    re.VERBOSE,
)
_WORDS = {"and", "or", "unless", "bool"}


def _selectors(expression: str) -> list[tuple[str, str]]:
    """Every (metric name, label matchers) of an expression of PromQL."""
    parts = (part for part in _PARTS.finditer(expression) if part["name"] and not part["call"])
    return [(part["name"], part["matchers"] or "") for part in parts if part["name"] not in _WORDS]


@pytest.fixture(scope="session")
def unknown_in(exported: list[Exported]) -> Callable[[str], list[str]]:
    """unknown_in(PromQL) -> the series it selects that no server exports: by name, and by the values of its labels."""

    def unknown(expression: str) -> list[str]:
        problems = []
        for name, matchers in _selectors(expression):
            series = [each for each in exported if each.name == name]
            if not series:
                problems.append(name)
            for label, operator, pattern in _MATCHERS.findall(matchers):
                if label in ("job", "instance") or operator.startswith("!"):
                    continue
                values = {each.labels.get(label, "") for each in series}
                wanted = pattern.split("|") if operator == "=~" else [pattern]
                problems += [f'{name}{{{label}="{value}"}}' for value in wanted if value not in values]
        return problems

    return unknown
