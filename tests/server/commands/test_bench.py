"""`neuronx-serve bench`: what it prints and writes, over short runs of real parts. No figure is asserted but counts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from server.bench.storm import seen_by
from server.bench.streams import Answer
from server.cli import main

ENGINE = [
    *("streams", "step_ms", "vocab", "throughput_ratio", "host_added_ms_p50", "host_added_ms_p99", "sampling_ms_p50"),
    *("device_ms_p50", "device_idle_share", "slot_occupancy", "ttft_server_ms_p50", "api_cpu_us_per_token"),
]
SMALL = ["--step-ms", "2", "--vocab", "2000", "--tokens", "16"]


def test_the_engine_against_a_simulated_device(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "rows.json"
    assert main(["bench", "--simulated", "--streams", "1,4", *SMALL, "--json", str(file)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split() == ENGINE
    assert len(said.out.splitlines()) == 3
    assert "4 streams, 2 ms, vocabulary 2000: case 2/2" in said.err
    rows = json.loads(file.read_text())
    assert [(row["streams"], row["step_ms"], row["vocab"]) for row in rows] == [(1, 2.0, 2000), (4, 2.0, 2000)]
    assert all(list(row) == ENGINE for row in rows)
    assert all(row["api_cpu_us_per_token"] is None for row in rows)
    assert all(0 < row["throughput_ratio"] < 1 and 0 < row["slot_occupancy"] <= 1 for row in rows)


def test_streams_that_never_run_all_at_once_are_told(tmp_path: Path, capsys: Any) -> None:
    """What was measured before is kept."""
    file = tmp_path / "rows.json"
    arguments = ["--simulated", "--streams", "1,16", "--tokens", "4", "--step-ms", "1", "--vocab", "2000"]
    assert main(["bench", *arguments, "--json", str(file)]) == 1
    assert (
        "no two steps had all 16 streams: the first had their 4 tokens before the last began" in capsys.readouterr().err
    )
    assert [row["streams"] for row in json.loads(file.read_text())] == [1]


def test_over_http_it_tells_the_cpu_of_a_token(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert main(["bench", "--simulated", "--http", "--streams", "4", *SMALL, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    assert row["api_cpu_us_per_token"] > 0


def test_a_storm_of_clients_who_leave_beside_streams_that_go_on(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    flags = ["--storm", "12", "--streams", "3", *SMALL, "--json", str(file)]
    assert main(["bench", "--simulated", "--http", *flags]) == 0
    (row,) = json.loads(file.read_text())
    assert (row["streams"], row["leavers"], row["left"]) == (3, 12, 12)
    assert row["leavers_tokens"] > 0
    assert 0 <= row["feed_share"] < 1
    for what in ("inter_token_ms_p50", "inter_token_ms_p99", "tokens_per_s"):
        assert row[f"{what}_alone"] > 0
        assert row[f"{what}_storm"] > 0
    assert row["inter_token_p99_ratio"] == row["inter_token_ms_p99_storm"] / row["inter_token_ms_p99_alone"]
    assert row["throughput_ratio"] == row["tokens_per_s_storm"] / row["tokens_per_s_alone"]


def test_an_exchange_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert main(["bench", "--swap", "--streams", "2", "--load-s", "0.2", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["streams"], row["lost"]) for row in rows] == [(0, 0), (2, 0)]
    assert all(row["activate_s"] > row["load_s"] and row["staging_s"] > 0 for row in rows)
    assert all(row["death_seen_ms"] > 0 for row in rows)


ONE = """
[[models]]
id = "one"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 250
slots = 4
"""


@pytest.mark.parametrize("route", ["tgi", "openai"])
def test_a_running_server(
    serve: Callable[..., Any], tiny_text_directory: Path, tmp_path: Path, capsys: Any, route: str
) -> None:
    server = serve('[server]\napi_key = "Secret"\n' + ONE.format(directory=tiny_text_directory))
    server.wait_available()
    assert main(["bench", "--url", server.url, "--route", route]) == 1
    assert "answered 401" in capsys.readouterr().err
    files = (tmp_path / "rows.json", tmp_path / "report.html")
    flags = ["--route", route, "--api-key", "Secret", "--concurrency", "1,3", "--requests", "6", "--tokens", "5"]
    assert main(["bench", "--url", server.url, *flags, "--json", str(files[0]), "--report", str(files[1])]) == 0
    rows = json.loads(files[0].read_text())
    assert [(row["concurrency"], row["requests"], row["failed"], row["new_tokens"]) for row in rows] == [
        (1, 6, 0, 30),
        (3, 6, 0, 30),
    ]
    assert all(row["device_share"] > 0 and row["sampling_share"] > 0 for row in rows)
    for row in rows:
        prompts = row["tokens_per_min"] * row["seconds"] / 60 - row["new_tokens"]
        assert prompts / row["requests"] == pytest.approx(104, abs=30), "by the server's own tokenizer, here of bytes"
    assert f"bench of {server.url}" in files[1].read_text()
    assert "3 at once, requests 6/6" in capsys.readouterr().err


def test_no_prompt_is_asked_twice_of_a_server_that_reuses_them(
    serve: Callable[..., Any], tiny_text_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reusing = ONE.replace("slots = 4", "slots = 64\nchunk = 64\nreuse = true")
    server = serve(reusing.format(directory=tiny_text_directory))
    server.wait_available()

    def reused() -> float:
        name = "neuronx_serve_reused_prompt_tokens_total"
        values = [line.split()[-1] for line in server.get("/metrics").text.splitlines() if line.startswith(name)]
        assert values
        return sum(map(float, values))

    flags = ["--url", server.url, "--concurrency", "1,3", "--requests", "6", "--tokens", "5"]
    for _ in range(2):
        assert main(["bench", *flags]) == 0
    assert reused() <= 24 * 3, "no more than some digits of a prompt's number"

    monkeypatch.setattr("random.randrange", lambda *_: 500_000)
    before = reused()
    for _ in range(2):
        assert main(["bench", *flags]) == 0
    assert reused() - before > 12 * 50, "what a server gains that was asked before"


def test_a_server_that_is_not_there(capsys: Any) -> None:
    assert main(["bench", "--url", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9 cannot be reached: ClientConnectorError: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "one of the arguments --simulated --swap --url is required"),
        (["--simulated", "--streams", "0"], "1 or more"),
        (["--url", "127.0.0.1:9"], "'127.0.0.1:9' is no server's address: give it as http://HOST:PORT"),
        (["--url", "http://127.0.0.1:99999"], "'http://127.0.0.1:99999' is no server's address"),
        (["--url", "http:///generate"], "'http:///generate' is no server's address"),
        (["--url", "ftp://127.0.0.1"], "'ftp://127.0.0.1' is no server's address"),
        (["--url", "http://127.0.0.1:9", "--seconds", "0"], "0 must be above 0"),
        (["--url", "http://127.0.0.1:9", "--seconds", "nan"], "nan must be above 0"),
    ],
)
def test_wrong_usage(flags: list[str], said: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *flags])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_streams_count_from_the_moment_when_all_have_begun() -> None:
    late = Answer(0.0, token_at=[2.0, 2.5, 3.0, 4.0], ended_at=4.0)
    early = Answer(0.0, token_at=[0.5, 1.9, 2.1, 2.6, 3.1], ended_at=3.5)
    assert seen_by([early, late]).inter_token_ms_p50 == pytest.approx(500)  # of 500 and 500, and 500, 500 and 1000
    assert seen_by([early, late]).tokens_per_s == 7 / 2.0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--simulated", "--storm", "5"], "add --simulated --http"),
        (["--simulated", "--report", "report.html"], "--report draws what clients of a running server saw: add --url"),
        (["--simulated", "--json", "/nowhere/rows.json"], "/nowhere/rows.json cannot be written"),
        (["--url", "http://127.0.0.1:9", "--report", "/nowhere/report.html"], "/nowhere is no directory"),
        (["--url", "http://127.0.0.1:9", "--api-key", "key\n"], "the API key 'key\\n' holds a character"),
        (["--url", "http://u:p@127.0.0.1:9", "--api-key", "key"], "a request can bring only one of them"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_measured(flags: list[str], said: str, capsys: Any) -> None:
    assert main(["bench", *flags]) == 2
    written = capsys.readouterr()
    assert said in written.err
    assert written.out == ""


class Foreign(BaseHTTPRequestHandler):
    """A server of somebody else: a page for every question; its second stream breaks off, and after the third one it
    fails, or answers nothing more."""

    asked = 0
    bodies: ClassVar[list[Any]] = []
    silent: threading.Event | None = None

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        Foreign.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        streams = self.path == "/generate_stream"
        Foreign.asked += streams
        if streams and Foreign.asked > 3 and Foreign.silent is not None:
            Foreign.silent.wait(120)
        self.send_response(500 if streams and Foreign.asked > 3 else 200)
        self.end_headers()
        if not streams:
            self.wfile.write(b"<html>welcome</html>")
            return
        self.wfile.write(b'data: {"token":{"id":1,"text":"a"}}\n\n')
        if Foreign.asked != 2:
            end = b'"generated_text":"ab","details":{"generated_tokens":2,"input_length":100}}\n\n'
            self.wfile.write(b'data: {"token":{"id":2,"text":"b"},' + end)


@pytest.fixture
def foreign() -> Iterator[str]:
    Foreign.asked, Foreign.silent = 0, None
    Foreign.bodies.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        if Foreign.silent is not None:
            Foreign.silent.set()
        server.shutdown()
        thread.join()


def test_what_was_measured_before_a_server_failed_is_written(foreign: str, tmp_path: Path, capsys: Any) -> None:
    file, page = tmp_path / "rows.json", tmp_path / "report.html"
    flags = ["--concurrency", "1,2", "--requests", "3", "--tokens", "2", "--json", str(file), "--report", str(page)]
    assert main(["bench", "--url", foreign, *flags]) == 1
    (row,) = json.loads(file.read_text())
    assert (row["concurrency"], row["requests"], row["failed"], row["new_tokens"]) == (1, 2, 1, 4)
    assert row["error"] == "/generate_stream ended after 1 tokens, without its last event"
    assert "bench of http://127.0.0.1" in page.read_text()
    assert "none of 3 requests was answered: /generate_stream answered 500" in capsys.readouterr().err


def test_greedy_asks_for_no_sampling(foreign: str) -> None:
    flags = ["--concurrency", "1", "--requests", "1", "--tokens", "2"]
    assert main(["bench", "--url", foreign, *flags]) == 0
    assert Foreign.bodies[-1]["parameters"]["do_sample"] is True
    Foreign.asked = 0
    assert main(["bench", "--url", foreign, *flags, "--greedy"]) == 0
    assert Foreign.bodies[-1]["parameters"] == {"max_new_tokens": 2, "details": True}
    assert main(["bench", "--url", foreign, *flags, "--greedy", "--route", "openai"]) == 1
    assert Foreign.bodies[-1]["temperature"] == 0


def test_an_interrupt_keeps_what_was_measured(foreign: str, tmp_path: Path) -> None:
    Foreign.silent = threading.Event()
    file = tmp_path / "rows.json"
    flags = ["--url", foreign, "--concurrency", "1,2", "--requests", "3", "--json", str(file)]
    bench = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "bench", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert bench.stdout is not None
    lines = [bench.stdout.readline() for _ in range(2)]
    deadline = time.monotonic() + 60
    while Foreign.asked < 5:  # two more, which are not answered
        assert time.monotonic() < deadline
        time.sleep(0.01)
    bench.send_signal(signal.SIGINT)
    _, said = bench.communicate(timeout=60)
    assert (bench.returncode, "Traceback" in said) == (130, False), said
    assert lines[1].split()[0] == "1"
    assert [row["concurrency"] for row in json.loads(file.read_text())] == [1]
