"""A server beside transformers' generate: which run is compared with which turns, and bad commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models.cpu.beside_generate import compared, main


def bench(tmp_path: Path, rows: object, status: int = 0) -> list[str]:
    """A command that writes `rows` to where the last of its arguments says."""
    program = tmp_path / "bench.py"
    text = json.dumps(rows)
    program.write_text(
        f"import pathlib, sys\nassert sys.argv[-2] == '--json'\npathlib.Path(sys.argv[-1]).write_text({text!r})\n"
        f"print('no such server', file=sys.stderr)\nsys.exit({status})\n"
    )
    return [sys.executable, str(program)]


def test_each_run_is_compared_with_the_two_beside_it() -> None:
    # The machine became half as fast between the second and the third run.
    assert compared([300.0, 300.0, 120.0], [200.0, 200.0, 200.0, 100.0]) == [1.5, 1.5, 0.8]


@pytest.mark.parametrize("flags", [[], ["--sampled"]])
def test_the_figures(
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
) -> None:
    directory = tiny_checkpoint("llama3", max_position_embeddings=512)
    command = bench(tmp_path, [{"concurrency": 3, "failed": 0, "tokens_per_s": 432.1}])
    options = ["--turns", "2", "--streams", "3", "--tokens", "2", *flags]
    monkeypatch.setattr(sys, "argv", ["beside_generate", str(directory), *options, "--", *command])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" tokens/s served")[0] for line in lines[:2]] == ["1: 432", "2: 432"]
    assert [line.split(" (")[0] for line in lines[2:]] == [
        "times generate, dynamic cache",
        "times generate, static cache",
        "times the better of the two",
    ]


@pytest.mark.parametrize(
    ("rows", "status", "said"),
    [
        ([{"concurrency": 10, "tokens_per_s": 1.0}], 0, "must have one row, of --concurrency 3"),
        ([], 0, "must have one row, of --concurrency 3"),
        ([], 2, "ended with 2: no such server"),
        ([{"concurrency": 3, "failed": 39, "tokens_per_s": 12.0}], 0, "39 requests of .* failed: no such server"),
    ],
)
def test_another_load_or_none_is_no_comparison(
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: object,
    status: int,
    said: str,
) -> None:
    directory = tiny_checkpoint("llama3", max_position_embeddings=512)
    options = ["--turns", "1", "--streams", "3", "--tokens", "2"]
    command = bench(tmp_path, rows, status)
    monkeypatch.setattr(sys, "argv", ["beside_generate", str(directory), *options, "--", *command])
    with pytest.raises(SystemExit, match=said):
        main()
