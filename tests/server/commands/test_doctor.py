"""The command on this machine: real probes, real ports, real interpreters."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.doctor import interpreter

ROOT = Path(__file__).resolve().parents[3]
CPU = """
[server]
port = {port}
[[models]]
id = "small"
path = "cache:SmolLM2-135M-Instruct"
[models.device]
kind = "cpu"
"""
SIMULATED = """
[server]
port = {port}
[[models]]
id = "simulated"
path = "{directory}"
[models.device]
kind = "simulated"
"""


def doctor(config: Path, *flags: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEURON")}
    run = subprocess.run(
        [sys.executable, "-m", "server.cli", "doctor", "--config", str(config), *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stderr == ""
    return run.returncode, run.stdout


def findings(config: Path) -> tuple[int, dict[str, list[Any]]]:
    code, text = doctor(config, "--json")
    report = json.loads(text)
    assert report["ok"] is (code == 0)
    found: dict[str, list[Any]] = {}
    for finding in report["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return code, found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(CPU.format(port=0))
    return path


def test_a_machine_without_neuron_can_serve_the_cpu_configuration(config: Path, embedded_set_up: None) -> None:
    code, text = doctor(config)
    lines = text.splitlines()
    assert code == 0, text
    assert lines[-1].endswith(" 0 fail")
    assert not any(line.startswith("fail") for line in lines)
    assert [line for line in lines if line.startswith("ok    model ")]


def test_json_says_the_same(config: Path, embedded_set_up: None) -> None:
    code, found = findings(config)
    assert code == 0
    assert found["worker.python"][0]["text"].startswith(sys.executable)
    assert "MB/s" in found["disk"][0]["text"]
    assert {each["level"] for group in found.values() for each in group} <= {"ok", "warn"}


def test_a_neuron_configuration_fails_here_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text(CPU.format(port=0).replace('kind = "cpu"', 'kind = "neuron"'))
    if any(Path("/dev").glob("neuron[0-9]*")):
        pytest.skip("this machine has a Neuron device")
    code, found = findings(path)
    assert code == 1
    assert found["devices"][0]["level"] == "fail"
    assert found["library"][0]["level"] == "fail"


def test_a_taken_port_names_its_holder(tmp_path: Path, tiny_text_directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        path = tmp_path / "server.toml"
        path.write_text(SIMULATED.format(port=taken.getsockname()[1], directory=tiny_text_directory))
        code, found = findings(path)
    assert code == 1
    assert f"taken by process {os.getpid()}" in found["port"][0]["text"]


def test_a_configuration_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("[server]\nprot = 1\n[[models]]\n")
    code, found = findings(path)
    assert code == 1
    assert "server.prot: unknown key" in found["configuration"][0]["text"]


def test_a_worker_python_that_is_not_there(tmp_path: Path, tiny_text_directory: Path) -> None:
    path = tmp_path / "server.toml"
    text = SIMULATED.format(port=0, directory=tiny_text_directory)
    path.write_text(f'[worker]\npython = "/nowhere/python"\n{text}')
    code, found = findings(path)
    assert code == 1
    assert "No such file" in found["worker.python"][0]["text"]


def test_the_placeholder_of_pypi_is_met_at_its_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that does what the placeholders do; the interpreter's own packages are asked beside it."""
    (tmp_path / "transformers_neuronx.py").write_text('raise ImportError("WRONG PACKAGE. Please install from AWS")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = interpreter.ask(sys.executable, for_neuron=True)
    assert found.import_error == "ImportError: WRONG PACKAGE. Please install from AWS"
    assert "msgspec" in found.packages
