"""A real server under a service manager: what it says from start to end, and with which code it exits.

The rules, on a virtual clock: tests/simulation/test_service_manager.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ONE_MODEL = """
[[models]]
id = "org/model"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 300
load_s = 0.3
faults = {faults}
"""
WATCHDOG_USEC = 100_000


@pytest.mark.parametrize("service_manager", ["abstract"], indirect=True)
def test_from_start_to_stop(serve: Callable[..., Any], tiny_text_directory: Path, service_manager: Any) -> None:
    config = ONE_MODEL.format(directory=tiny_text_directory, faults=[])
    server = serve(config, env=service_manager.environment(WATCHDOG_USEC))
    assert service_manager.wait_for("READY") == {"READY": "1", "STATUS": "serving org/model"}
    assert server.get("/health").status_code == 200
    assert "loading org/model: staging 100%" in service_manager.said("STATUS")
    assert service_manager.said("EXTEND_TIMEOUT_USEC")
    service_manager.wait_for("WATCHDOG")
    server.process.send_signal(signal.SIGTERM)
    service_manager.wait_for("STOPPING")
    assert server.process.wait(30) == 0
    assert service_manager.said("READY") == ["1"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "code"), [("load:0=configuration", os.EX_CONFIG), ("load:0=device", 1), ("load:0=exit", 1)]
)
def test_a_first_load_that_fails_is_an_exit_code(
    serve: Callable[..., Any], tiny_text_directory: Path, service_manager: Any, fault: str, code: int
) -> None:
    config = ONE_MODEL.format(directory=tiny_text_directory, faults=[fault])
    server = serve(config, env=service_manager.environment())
    service_manager.wait_for("STOPPING")
    assert server.process.wait(30) == code
    assert service_manager.said("READY") == []


@pytest.mark.long
def test_a_model_that_is_not_there_exits_with_78(serve: Callable[..., Any], service_manager: Any) -> None:
    config = ONE_MODEL.format(directory="missing", faults=[])
    server = serve(config, env=service_manager.environment())
    assert "tokenizer.json: cannot be read" in service_manager.wait_for("STOPPING")["STATUS"]
    assert server.process.wait(30) == os.EX_CONFIG
