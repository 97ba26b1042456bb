"""A socket that was opened by somebody else: whose it is, and which one is refused."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server import listener
from server.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
PID = 4711
OURS = {"LISTEN_PID": str(PID), "LISTEN_FDS": "1"}
ONE_MODEL = """
[[models]]
id = "org/model"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 300
"""


@pytest.fixture
def pass_as_descriptor(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Takes the place of descriptor 3, which belongs to pytest here; closed in the end unless it was taken over."""
    passed: list[int] = []

    def as_descriptor(opened: socket.socket) -> int:
        passed.append(opened.detach())
        monkeypatch.setattr(listener, "PASSED_FD", passed[-1])
        return passed[-1]

    yield as_descriptor
    for descriptor in passed:
        if (Path("/proc/self/fd") / str(descriptor)).exists():
            os.close(descriptor)


@pytest.mark.parametrize("environment", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}])
def test_what_is_meant_for_another_process_is_left_alone(environment: dict[str, str]) -> None:
    assert listener.passed_socket(environment, PID) is None


def test_a_listening_socket_is_taken_and_kept_from_children(pass_as_descriptor) -> None:
    opened = socket.create_server(("127.0.0.1", 0))
    address = opened.getsockname()
    os.set_inheritable(pass_as_descriptor(opened), True)
    with listener.passed_socket(OURS, PID) as passed:
        assert passed.getsockname() == address
        assert not passed.get_inheritable()
        with socket.create_connection(address):
            passed.accept()[0].close()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_socket_that_does_not_listen_is_refused(pass_as_descriptor, kind: socket.SocketKind) -> None:
    pass_as_descriptor(socket.socket(socket.AF_INET, kind))
    with pytest.raises(ConfigurationError, match="allowed is a socket that listens for TCP"):
        listener.passed_socket(OURS, PID)


def test_several_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="LISTEN_FDS = '2'"):
        listener.passed_socket({**OURS, "LISTEN_FDS": "2"}, PID)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed")
def test_the_first_client_waits_while_the_server_starts(tiny_text_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text(ONE_MODEL.format(directory=tiny_text_directory))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serving = [sys.executable, "-m", "server.cli", "serve", "--port", "1", "--config", str(tmp_path / "server.toml")]
    activated = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", *(f"-E{name}" for name in os.environ)]
    process = subprocess.Popen([*activated, *serving], cwd=ROOT)
    try:
        while process.poll() is None:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/livez", timeout=60)
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        assert answer.status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
