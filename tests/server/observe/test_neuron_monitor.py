"""neuron-monitor beside the server: programs in its place that report, babble, die and hang."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.observe import neuron_monitor
from server.observe.metrics import Metrics
from server.observe.neuron_monitor import Pace, followed, installed

Line = Callable[[str], bytes]
AT_ONCE = Pace(patience_s=20, first_s=0.01, most_s=0.02)
IMPATIENT = Pace(patience_s=0.1, first_s=0.01, most_s=0.02)


@pytest.fixture
def program(tmp_path: Path, neuron_report: Line) -> Callable[[str], str]:
    """program(shell script) -> the path of a neuron-monitor that runs it, with report.json beside it; each start adds
    its process id to starts."""
    (tmp_path / "report.json").write_bytes(neuron_report("serving"))

    def write(script: str) -> str:
        path = tmp_path / "neuron-monitor"
        path.write_text(f'#!/bin/sh\ncd "{tmp_path}"\necho $$ >> starts\n{script}\n')
        path.chmod(0o755)
        return str(path)

    return write


@asynccontextmanager
async def following(metrics: Metrics, program: str, pace: Pace, until: Callable[[str], bool]) -> AsyncIterator[None]:
    """Follow `program` until the series' text is as wanted, then run the block."""
    async with followed(metrics.neuron, program, pace):
        await reached(lambda: until(metrics.render().decode()))
        yield


async def reached(wanted: Callable[[], bool]) -> None:
    for _ in range(4000):
        if wanted():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come to that")


def lines(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


def starts(directory: Path) -> list[int]:
    return [int(line) for line in (directory / "starts").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_report_is_shown_and_a_broken_line_costs_one_line_of_the_log(
    program: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        path = program("echo no report; echo; cat report.json; cat report.json; exec sleep 60")
        async with following(Metrics(), path, AT_ONCE, lambda text: 'kind="transient"} 4.0' in text):
            assert len(lines(caplog, "is left out")) == 1
        assert not any(map(is_running, starts(tmp_path)))

    with caplog.at_level(logging.INFO, "server"):
        asyncio.run(scenario())
    assert len(lines(caplog, "reports")) == 1


def test_one_that_dies_is_started_again(
    program: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        path = program('cat report.json; [ "$(wc -l < starts)" -ge 3 ] && exec sleep 60; exit 3')
        async with following(Metrics(), path, AT_ONCE, lambda text: 'kind="transient"} 6.0' in text):
            assert len(starts(tmp_path)) == 3

    asyncio.run(scenario())
    assert len(lines(caplog, "exited with code 3; it is started again in 0.01 s")) == 2


def test_one_that_never_reports_is_started_ever_later(
    program: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with following(Metrics(), program("exit 1"), AT_ONCE, lambda _: len(lines(caplog, "0.02 s")) >= 2):
            pass

    asyncio.run(scenario())
    waits = [line.split()[-2] for line in lines(caplog, "it is started again")]
    assert waits[:3] == ["0.01", "0.02", "0.02"]


def test_one_that_hangs_is_killed_with_what_it_started(
    program: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()

    async def scenario() -> None:
        path = program("cat report.json; sleep 60 & echo $! >> starts; trap '' TERM; wait; sleep 60")
        async with following(metrics, path, IMPATIENT, lambda text: "neuron_monitor_up 0.0" in text):
            assert "neuroncore_utilization_ratio" not in metrics.render().decode()
            hung, child = starts(tmp_path)[:2]
            await reached(lambda: not is_running(hung) and not is_running(child))

    asyncio.run(scenario())
    assert lines(caplog, "has reported nothing for 0.1 s")


def test_one_that_cannot_be_executed_is_no_matter_for_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        absent = str(tmp_path / "neuron-monitor")
        async with following(Metrics(), absent, AT_ONCE, lambda text: "neuron_monitor_up 0.0" in text):
            pass

    asyncio.run(scenario())
    assert lines(caplog, "it is started again")


@pytest.mark.long
def test_it_ends_with_a_server_that_is_killed(program: Callable[[str], str], tmp_path: Path) -> None:
    path = program("exec sleep 60")
    server = (
        "import asyncio, sys\n"
        "from server.observe.metrics import Metrics\n"
        "from server.observe.neuron_monitor import followed\n"
        "async def main():\n"
        "    async with followed(Metrics().neuron, sys.argv[1]):\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", server, path], env=environment) as process:
        while not (tmp_path / "starts").exists() or not starts(tmp_path):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    (pid,) = starts(tmp_path)
    while is_running(pid):
        pass


def test_where_it_is_looked_for(program: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program("")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(neuron_monitor, "INSTALLED", str(tmp_path / "nothing"))
    assert installed() is None
    monkeypatch.setattr(neuron_monitor, "INSTALLED", str(tmp_path))
    assert installed() == path
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(path, elsewhere)
    monkeypatch.setenv("PATH", str(elsewhere))
    assert installed() == str(elsewhere / "neuron-monitor")
