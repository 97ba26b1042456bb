"""A real server under a service manager: what it says from start to end, how it reloads, with which code it exits.

The rules, on a virtual clock: tests/simulation/test_service_manager.py.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
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
# The leader of a session whose terminal is its standard input: when that closes, it gets SIGHUP.
IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_IGN if int(sys.argv[1]) else signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""
# Put in the place of GET /livez, in the server's process alone: it blocks the loop.
HANGING_ROUTE = """
import sys
if "serve" in sys.orig_argv:
    import time
    import server.api.ops
    async def hang(request):
        time.sleep(3600)
    server.api.ops.live = hang
"""
WATCHDOG_USEC = 100_000
KEY = '[server]\napi_key = "sesame"\n'


def change(server: Any, config: str) -> None:
    """Another configuration, and SIGHUP."""
    (server.log.parent / "server.toml").write_text(config)
    server.process.send_signal(signal.SIGHUP)


@pytest.mark.parametrize("service_manager", ["abstract"], indirect=True)
def test_from_start_to_stop(serve: Callable[..., Any], tiny_text_directory: Path, service_manager: Any) -> None:
    config = ONE_MODEL.format(directory=tiny_text_directory, faults=[])
    server = serve(config, env=service_manager.environment(WATCHDOG_USEC))
    assert service_manager.wait_for("READY") == {"READY": "1", "STATUS": "serving org/model"}
    assert server.get("/info").status_code == 200
    assert "loading org/model" in service_manager.said("STATUS")
    assert service_manager.said("EXTEND_TIMEOUT_USEC")
    service_manager.wait_for("WATCHDOG")

    change(server, KEY + config)
    assert service_manager.wait_for("RELOADING").keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert service_manager.wait_for("READY")["STATUS"] == "serving org/model"
    assert server.get("/models").json()["data"][0]["state"] == "available"
    assert server.post("/generate", {"inputs": "hello"}).status_code == 401

    change(server, config.replace("vocab_size", "vocabulary"))
    service_manager.wait_for("RELOADING")
    assert "; not reloaded: " in service_manager.wait_for("READY")["STATUS"]
    assert server.post("/generate", {"inputs": "hello"}).status_code == 401
    assert "models[0].device.vocabulary: unknown key" in server.log.read_text()

    server.process.send_signal(signal.SIGTERM)
    service_manager.wait_for("STOPPING")
    assert server.process.wait(30) == 0
    assert service_manager.said("READY") == ["1"] * 3


@pytest.mark.long
def test_a_loop_that_hangs_is_silent_and_says_where_it_hung_when_it_is_ended(
    serve: Callable[..., Any], tiny_text_directory: Path, tmp_path: Path, service_manager: Any
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGING_ROUTE)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    env = {**service_manager.environment(WATCHDOG_USEC), "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"}
    server = serve(ONE_MODEL.format(directory=tiny_text_directory, faults=[]), env=env)
    service_manager.wait_for("READY")
    worker = server.worker_pid()
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(server.url + "/livez", timeout=1)
    service_manager.receive_all()
    with pytest.raises(TimeoutError):
        service_manager.receive(20 * WATCHDOG_USEC / 1e6)
    server.process.send_signal(signal.SIGABRT)
    assert server.process.wait(30) == -signal.SIGABRT
    assert "in hang" in server.log.read_text()
    while Path(f"/proc/{worker}").exists() and "State:\tZ" not in Path(f"/proc/{worker}/status").read_text():
        time.sleep(0.05)


@pytest.mark.long
def test_a_reload_needs_no_service_manager(serve: Callable[..., Any], tiny_text_directory: Path) -> None:
    config = ONE_MODEL.format(directory=tiny_text_directory, faults=[])
    server = serve(config)
    server.wait_available()
    change(server, config + config.replace("org/model", "org/another") + "\n[scheduler]\ndecode_per_feed = 3\n")
    while len(server.get("/v1/models").json()["data"]) == 1:
        time.sleep(0.05)
    answer = server.post("/models/org/another/generate", {"inputs": "hello", "parameters": {"max_new_tokens": 3}})
    assert answer.status_code == 200
    assert "scheduler.decode_per_feed has changed and takes effect after a restart only" in server.log.read_text()
    assert server.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("under_nohup", [False, True])
def test_a_terminal_that_closes_ends_the_server_unless_nohup_says_otherwise(
    tiny_text_directory: Path, tmp_path: Path, under_nohup: bool
) -> None:
    (tmp_path / "server.toml").write_text(ONE_MODEL.format(directory=tiny_text_directory, faults=[]))
    log = tmp_path / "server.log"
    serving = [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--config", str(tmp_path / "server.toml")]
    ours, terminal = pty.openpty()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL, str(int(under_nohup)), *serving],
            cwd=ROOT,
            stdin=terminal,
            stdout=terminal,
            stderr=out,
        )
    os.close(terminal)
    while "is available" not in log.read_text():
        time.sleep(0.05)
    os.close(ours)
    awaited = "the configuration was reloaded" if under_nohup else "SIGHUP: running work is finished first"
    while awaited not in log.read_text():
        time.sleep(0.05)
    if under_nohup:
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


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
    assert "there is no such directory: neuronx-serve models pull" in service_manager.wait_for("STOPPING")["STATUS"]
    assert server.process.wait(30) == os.EX_CONFIG
