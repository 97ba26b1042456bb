"""`neuronx-serve bench`: what it prints and writes, over short runs of real parts. No figure is asserted but counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    server = serve(ONE.format(directory=tiny_text_directory))
    server.wait_available()
    files = (tmp_path / "rows.json", tmp_path / "report.html")
    flags = ["--route", route, "--concurrency", "1,3", "--requests", "6", "--tokens", "5"]
    assert main(["bench", "--url", server.url, *flags, "--json", str(files[0]), "--report", str(files[1])]) == 0
    rows = json.loads(files[0].read_text())
    assert [(row["concurrency"], row["requests"], row["failed"], row["new_tokens"]) for row in rows] == [
        (1, 6, 0, 30),
        (3, 6, 0, 30),
    ]
    assert all(row["device_share"] > 0 and row["sampling_share"] > 0 for row in rows)
    assert f"bench of {server.url}" in files[1].read_text()
    assert "3 at once, requests 6/6" in capsys.readouterr().err


def test_a_server_that_is_not_there(capsys: Any) -> None:
    assert main(["bench", "--url", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "one of the arguments --simulated --swap --url is required"),
        (["--simulated", "--streams", "0"], "1 or more"),
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


def test_a_storm_needs_http(capsys: Any) -> None:
    assert main(["bench", "--simulated", "--storm", "5"]) == 2
    assert "add --simulated --http" in capsys.readouterr().err
