"""Real servers for the tests: the command line in a process of its own, on a free port of the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Programs that scripts/test unpacks for the tests (scripts/programs.sh); the machine's own come first.
os.environ["PATH"] += f"{os.pathsep}{Path(sys.prefix) / 'tools'}"


# A shell that runs the tests in the background has interrupts ignored, and programs started from here would inherit
# that: those that a test interrupts would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A test never asserts a time, of an example neither. The emulator's environment has no hypothesis.
with contextlib.suppress(ImportError):
    from hypothesis import HealthCheck, settings

    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="run the simulations with this one seed")


@dataclass
class Server:
    """A running `neuronx-serve serve`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=headers, timeout=300)

    def wait_available(self, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not available after {seconds} s:\n{self.log.read_text()}")

    def worker_pid(self) -> int:
        """The device worker: the child that runs models/__main__.py."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(pid) for pid in children if b"models/__main__.py" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Serve = Callable[..., Server]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """serve(toml text, *flags, env={}) -> Server, listening; the model may still be loading."""
    servers: list[Server] = []

    def start(toml: str, *flags: str, env: dict[str, str] | None = None) -> Server:
        directory = tmp_path_factory.mktemp("serve")
        (directory / "server.toml").write_text(toml)
        port = free_port()
        log = directory / "server.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "server.cli", "serve", "--config", str(directory / "server.toml")),
                    *("--port", str(port), *flags),
                ],
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
        server = Server(f"http://127.0.0.1:{port}", process, log)
        servers.append(server)
        return server

    start.servers = servers  # type: ignore[attr-defined]  # for servers_of_the_test
    yield start
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def servers_of_the_test(serve: Any) -> Iterator[None]:
    """Stop the servers that a test, or a fixture of its own, has started; those of wider fixtures serve on."""
    before = len(serve.servers)
    yield
    for server in serve.servers[before:]:
        server.stop()
    del serve.servers[before:]


class ServiceManager:
    """The receiving end of NOTIFY_SOCKET, as systemd has it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.received: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def environment(self, watchdog_usec: int = 0) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, **({"WATCHDOG_USEC": str(watchdog_usec)} if watchdog_usec else {})}

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self, timeout: float | None = None) -> dict[str, str]:
        """The next message."""
        self._socket.settimeout(timeout)
        message = dict(line.split("=", 1) for line in self._socket.recv(65536).decode().splitlines())
        self.received.append(message)
        return message

    def receive_all(self) -> None:
        """Every message that is there."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.receive(0)

    def wait_for(self, key: str, timeout: float = 60) -> dict[str, str]:
        """The next message that has `key`."""
        while key not in (message := self.receive(timeout)):
            pass
        return message

    def said(self, key: str) -> list[str]:
        """Every value of `key` so far."""
        return [message[key] for message in self.received if key in message]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path"])
def service_manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    """A service manager that waits for messages, at a path, or at an abstract address (parametrised indirectly)."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@neuronx-serve-test-{os.getpid()}"
    manager = ServiceManager(address)
    yield manager
    manager.close()


def events(response: httpx.Response) -> Iterator[Any]:
    """The JSON of each SSE event of a streamed response."""
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[len("data: ") :])


@pytest.fixture(scope="session")
def read_events() -> Callable[[httpx.Response], Iterator[Any]]:
    return events


@pytest.fixture(scope="session")
def neuron_report() -> Callable[[str], bytes]:
    """neuron_report("serving") -> a line of neuron-monitor's output, out of tests/neuron_monitor."""

    def line(name: str) -> bytes:
        document = json.loads((ROOT / "tests" / "neuron_monitor" / f"{name}.json").read_text())
        return json.dumps(document).encode() + b"\n"

    return line


@pytest.fixture(scope="session")
def neuron_monitor_path(tmp_path_factory: pytest.TempPathFactory, neuron_report: Callable[[str], bytes]) -> str:
    """A PATH on which neuron-monitor reports, once, a chip that serves."""
    directory = tmp_path_factory.mktemp("neuron-monitor")
    (directory / "report.json").write_bytes(neuron_report("serving"))
    program = directory / "neuron-monitor"
    program.write_text(f'#!/bin/sh\ncat "{directory}/report.json"\nexec sleep 600\n')
    program.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


CPU_TOML = """
[worker]
restarts = 20
restart_window = 60

[[models]]
id = "HuggingFaceTB/SmolLM2-135M-Instruct"
path = "cache:SmolLM2-135M-Instruct"
[models.device]
kind = "cpu"
slots = 8
n_positions = 1024
dtype = "float32"
layout = "fixed"
"""


@pytest.fixture(scope="session")
def smollm2(serve: Serve, embedded_set_up: None) -> Server:
    """A server of the real small model in the guaranteed mode, available."""
    server = serve(CPU_TOML)
    server.wait_available()
    return server


@pytest.fixture(scope="session")
def embedded_set_up() -> None:
    """The embedded model's own set-up, as scripts/serve runs it."""
    subprocess.run([sys.executable, "-m", "models.cpu.embedded"], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def tiny_text_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the API process reads of a model, at its smallest: 256 byte tokens, of which the last ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    directory = tmp_path_factory.mktemp("tiny-text")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (directory / "config.json").write_text('{"model_type": "llama", "vocab_size": 256, "eos_token_id": 255}')
    return directory
