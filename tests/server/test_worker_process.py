"""A worker that ends: how it ended, and what its log knows of it. Real processes that really die."""

from __future__ import annotations

import asyncio
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from server.worker_process import WorkerLost, WorkerProcess

Script = Callable[[str], str]

BAD_MEMORY = (
    "2024-Feb-13 20:27:41.0593 15042:15042 ERROR  TDRV:exec (FATAL-RT-UNDEFINED-STATE) encountered uncorrectable "
    "memory error on Neuron Device 0, execution results may be invalid.  Please terminate or start/stop this instance "
    "to recover from bad hardware."
)


@pytest.fixture
def worker_that(tmp_path: Path) -> Script:
    """An interpreter that runs the given body in place of the worker's own code; `fd` is its end of the socket."""

    def make(body: str) -> str:
        program = tmp_path / "worker"
        program.write_text(f"#!{sys.executable}\nimport os, sys, time, socket\nfd = int(sys.argv[2])\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return str(program)

    return make


def loss(python: str) -> WorkerLost:
    async def run() -> WorkerLost:
        worker = await WorkerProcess.spawn(python, lambda report: None)
        try:
            return await asyncio.wait_for(worker.lost, 60)
        finally:
            await worker.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("sys.exit(3)", "the device worker exited with code 3"),
        ("os.abort()", "the device worker was ended by signal 6 (Aborted)"),
        ("os.kill(os.getpid(), 9)", "the device worker was ended by signal 9 (Killed)"),
    ],
)
def test_the_loss_says_how_it_ended(worker_that: Script, body: str, text: str) -> None:
    lost = loss(worker_that(body))
    assert (lost.kind, str(lost), lost.remedy) == ("exit", text, "restart")


def test_a_runtime_that_aborts_over_bad_hardware_asks_for_another_machine(worker_that: Script) -> None:
    lost = loss(worker_that(f"os.write(2, {BAD_MEMORY!r}.encode() + b'\\n'); os.abort()"))
    assert (lost.kind, lost.remedy) == ("exit", "replace")
    assert "signal 6 (Aborted)" in str(lost)
    assert "uncorrectable device memory error: stop and start the instance" in str(lost)


def test_a_child_that_holds_the_log_open_delays_nobody(worker_that: Script) -> None:
    body = "child = os.fork()\nif child == 0:\n    os.close(fd)\n    time.sleep(3)\n    os._exit(0)\nsys.exit(4)"
    lost = loss(worker_that(body))
    assert str(lost) == "the device worker exited with code 4"


def test_what_a_worker_writes_is_passed_on(worker_that: Script, capfd: pytest.CaptureFixture[str]) -> None:
    loss(worker_that("os.write(2, b'x' * 100000 + b'\\nthe last line\\n'); sys.exit(1)"))
    written = capfd.readouterr().err
    assert written.count("x") == 100000
    assert written.endswith("the last line\n")


def test_an_interpreter_that_is_not_there_is_a_matter_of_configuration() -> None:
    with pytest.raises(WorkerLost, match=r"worker\.python = '/nowhere/python'") as caught:
        loss("/nowhere/python")
    assert (caught.value.kind, caught.value.remedy) == ("configuration", "configuration")


def test_a_closed_worker_does_not_tidy_up_its_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next model waits for the device until this process has gone."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, os\natexit.register(os.abort)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def run() -> WorkerLost:
        worker = await WorkerProcess.spawn("", lambda report: None)
        await worker.close(grace_s=60)
        return await worker.lost

    assert str(asyncio.run(run())) == "the device worker exited with code 0"
