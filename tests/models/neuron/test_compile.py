"""`neuronx-serve compile` as its user meets it: on the fake library, and on the real one where it is at hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.neuron.artifacts import MANIFEST, artifacts_in, read_manifest, verify
from models.neuron.building import WORK, unfinished

ROOT = Path(__file__).resolve().parents[3]
CONFIG = """
[worker]
python = "{python}"
[[models]]
id = "org/tiny"
path = "{directory}"
[models.device]
kind = "neuron"
slots = {slots}
n_positions = 64
amp = "f32"
context_buckets = [16, 32]
token_buckets = [32, 64]
artifacts = "{store}"
"""
# The fake library, whose compiler gets stuck once it has made as many graphs as the test allows.
STUCK = """
import os, time
from pathlib import Path
source = Path({fake!r}) / "transformers_neuronx.py"
exec(compile(source.read_text(), str(source), "exec"))
_compile = _Kernel.compile

def _stuck(self, num_exec_repetition):
    made = Path({made!r})
    if len(list(made.glob("graph-*"))) >= int(os.environ["ALLOWED"]):
        (made / "stuck.new").write_text(str(os.getpid()))
        (made / "stuck.new").rename(made / "stuck")
        time.sleep(600)
    (made / f"graph-{{self.name}}").touch()
    return _compile(self, num_exec_repetition)

_stuck.__name__ = "compile"  # as pickle asks for it
_Kernel.compile = _stuck
"""


class Command:
    """`neuronx-serve compile` with a worker on some library."""

    def __init__(self, directory: Path, checkpoint: Path, python: Path, environment: Mapping[str, str]) -> None:
        self.store = directory / "store"
        self.config = directory / "server.toml"
        self.environment = {**os.environ, **environment}
        self._python, self._checkpoint = python, checkpoint
        self.configure(slots=4)

    def configure(self, slots: int) -> None:
        values = {"python": self._python, "directory": self._checkpoint, "slots": slots, "store": self.store}
        self.config.write_text(CONFIG.format(**values))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "server.cli", "compile", "--config", str(self.config), *arguments],
            cwd=ROOT,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=120)
            return process.returncode, out, err


@pytest.fixture
def faked_command(tmp_path: Path, tiny_checkpoint: Callable[..., Path], faked_worker: Any) -> Command:
    return Command(tmp_path, tiny_checkpoint("llama3"), faked_worker.python, faked_worker.environment)


@pytest.fixture
def emulated_command(tmp_path: Path, tiny_checkpoint: Callable[..., Path], emulated_worker: Any) -> Command:
    return Command(tmp_path, tiny_checkpoint("llama3"), emulated_worker.python, emulated_worker.environment)


class TestOnTheRealLibrary:
    @pytest.mark.parametrize("place", [["--cpu"], []], ids=["without a device", "on the cores"])
    def test_compiles_once(self, emulated_command: Command, place: list[str]) -> None:
        code, out, err = emulated_command.run("org/tiny", *place)
        assert code == 0, err
        (directory,) = artifacts_in(emulated_command.store)
        assert out.startswith(f"{directory}: 4 of 4 graphs compiled in ")
        assert verify(directory).made_of.entries
        code, out, _ = emulated_command.run("org/tiny", *place)
        assert (code, out.split(",")[0]) == (0, f"{directory}: was there")

    @pytest.mark.long
    def test_a_server_loads_what_was_compiled_without_a_device(
        self, emulated_command: Command, serve: Callable[..., Any]
    ) -> None:
        code, _, err = emulated_command.run("org/tiny", "--cpu")
        assert code == 0, err
        server = serve(emulated_command.config.read_text(), env=emulated_command.environment)
        server.wait_available()
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 4}}
        assert server.post("/generate", body).status_code == 200
        emulated_command.configure(slots=2)
        refused = serve(emulated_command.config.read_text(), env=emulated_command.environment)
        text = wait_failed(refused)
        assert "differs: options.slots is 4 there and 2 here. Compile it with `neuronx-serve compile" in text


class TestOnTheFakeLibrary:
    def test_shows_what_it_does_in_plain_lines(self, faked_command: Command) -> None:
        code, out, err = faked_command.run("org/tiny")
        assert code == 0, err
        assert "loading layers 2/2\n" in err
        assert "compiling graphs 4/4\n" in err
        assert "trying graphs 4/4\n" in err
        assert "\r" not in err
        assert "4 of 4 graphs compiled" in out

    def test_the_model_may_be_named_by_its_directory(self, faked_command: Command) -> None:
        assert faked_command.run(str(faked_command._checkpoint))[0] == 0
        (directory,) = artifacts_in(faked_command.store)
        assert read_manifest(directory).model == "org/tiny"

    def test_another_directory_of_artifacts(self, faked_command: Command, tmp_path: Path) -> None:
        code, out, err = faked_command.run("org/tiny", "--output", str(tmp_path / "other"))
        assert code == 0, err
        assert out.startswith(str(tmp_path / "other"))
        assert not faked_command.store.exists()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["org/other"], "MODEL = 'org/other': neither a configured model (org/tiny) nor a directory"),
            (["org/tiny", "--output", "/dev/null/x"], "artifacts cannot be written to /dev/null/x: Not a directory"),
        ],
    )
    def test_what_cannot_work_exits_with_78(self, faked_command: Command, arguments: list[str], said: str) -> None:
        code, _, err = faked_command.run(*arguments)
        assert code == 78
        assert said in err

    def test_a_model_of_another_device_is_refused(self, faked_command: Command) -> None:
        text = faked_command.config.read_text()
        faked_command.config.write_text(text[: text.index("kind =")] + 'kind = "cpu"\nn_positions = 64\n')
        code, _, err = faked_command.run("org/tiny")
        assert code == 78
        assert "'org/tiny' has device.kind = 'cpu': only models of kind 'neuron' are compiled" in err


class TestKilled:
    @pytest.fixture
    def command(self, tmp_path: Path, tiny_checkpoint: Callable[..., Path], faked_worker: Any) -> Command:
        library, made = tmp_path / "library", tmp_path / "made"
        library.mkdir()
        made.mkdir()
        source = STUCK.format(fake=faked_worker.environment["PYTHONPATH"], made=str(made))
        (library / "transformers_neuronx.py").write_text(source)
        environment = {"PYTHONPATH": str(library)}
        return Command(tmp_path, tiny_checkpoint("llama3"), faked_worker.python, environment)

    @pytest.mark.parametrize("victim", ["command", "worker"])
    @pytest.mark.parametrize(
        "graphs", [pytest.param(0, marks=pytest.mark.long), 2, pytest.param(3, marks=pytest.mark.long)]
    )
    def test_leaves_no_artifact_and_no_process_and_the_next_run_goes_on(
        self, command: Command, tmp_path: Path, victim: str, graphs: int
    ) -> None:
        with self.stuck_after(command, tmp_path / "made", graphs) as process:
            worker, compiler = worker_of(process.pid), int((tmp_path / "made" / "stuck").read_text())
            os.kill(process.pid if victim == "command" else worker, signal.SIGKILL)
            process.wait(120)
        if victim == "worker":
            assert process.returncode == 1
            os.kill(compiler, signal.SIGKILL)  # it outlives a worker that is killed alone
        wait_gone(worker, compiler)
        assert list(artifacts_in(command.store)) == []
        self.goes_on(command, tmp_path / "made", graphs)

    def test_a_compiler_that_the_kernel_kills_is_named(self, command: Command, tmp_path: Path) -> None:
        with self.stuck_after(command, tmp_path / "made", 2) as process:
            os.kill(int((tmp_path / "made" / "stuck").read_text()), signal.SIGKILL)
            _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "a compiler was killed, most likely by the kernel for want of memory" in err
        self.goes_on(command, tmp_path / "made", 2)

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it_with_a_word(self, command: Command, tmp_path: Path, signum: signal.Signals) -> None:
        with self.stuck_after(command, tmp_path / "made", 2) as process:
            worker, compiler = worker_of(process.pid), int((tmp_path / "made" / "stuck").read_text())
            process.send_signal(signum)
            _, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "interrupted: what is compiled is kept, the same command goes on from there" in err
        wait_gone(worker, compiler)
        self.goes_on(command, tmp_path / "made", 2)

    def stuck_after(self, command: Command, made: Path, graphs: int) -> subprocess.Popen[str]:
        command.environment["ALLOWED"] = str(graphs)
        process = command.start("org/tiny")
        wait_for(lambda: (made / "stuck").exists() and kept(command.store) == graphs, process)
        return process

    def goes_on(self, command: Command, made: Path, graphs: int) -> None:
        (made / "stuck").unlink()
        command.environment["ALLOWED"] = "100"
        code, out, err = command.run("org/tiny")
        assert code == 0, err
        (directory,) = artifacts_in(command.store)
        assert f"{directory}: {4 - graphs} of 4 graphs compiled" in out
        assert len(verify(directory).files) == 4
        assert list(unfinished(command.store)) == []


def kept(store: Path) -> int:
    """Whole graphs of the attempt that is running."""
    return len([path for path in store.glob(f"{WORK}/*/*.neff") if path.name != MANIFEST])


def worker_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(
        int(child) for child in children if b"models/__main__.py" in Path(f"/proc/{child}/cmdline").read_bytes()
    )


def wait_for(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not done():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def wait_gone(*pids: int) -> None:
    """Until each has ended; a zombie that nobody has reaped has."""

    def running(pid: int) -> bool:
        try:
            return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False

    deadline = time.monotonic() + 120
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline, [pid for pid in pids if running(pid)]
        time.sleep(0.02)


def wait_failed(server: Any) -> str:
    """The reason why the server's model failed."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            (entry,) = server.get("/models").json()["data"]
        except httpx.TransportError:
            time.sleep(0.1)
            continue
        if entry["state"] == "failed":
            return str(entry["error"])
        time.sleep(0.1)
    raise AssertionError(server.log.read_text())
