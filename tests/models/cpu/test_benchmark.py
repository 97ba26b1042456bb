"""What the CPU benchmark computes from what it measures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.cpu.benchmark import SLOTS, main, rates


class Timed:
    """Takes the given seconds, one a turn, of a clock that only it moves."""

    now = 0.0

    def __init__(self, name: str, *seconds: float) -> None:
        self.name = name
        self._seconds: Iterator[float] = iter(seconds)

    def generate(self, new_tokens: int) -> None:
        Timed.now += next(self._seconds)


def test_each_turn_is_compared_with_the_fastest_generate_of_that_turn() -> None:
    # The neighbours were busy in the second turn: everything took ten times as long.
    theirs = [Timed("dynamic", 8.0, 80.0, 9.0), Timed("static", 6.0, 90.0, 8.0)]
    ours = [Timed("ours", 2.0, 40.0, 2.0)]

    rows = {rate.variant: rate for rate in rates(theirs, ours, new_tokens=24, turns=3, clock=lambda: Timed.now)}

    assert rows["ours"].ratio == 3.0  # of 3, 2 and 4
    assert rows["ours"].tokens_per_s == 10 * 24 / 2.0
    assert rows["static"].ratio == 1.0


def test_the_tables(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    directory = tiny_checkpoint("llama3", max_position_embeddings=512)
    file = tmp_path / "rows.json"
    arguments = ["--dtypes", "bfloat16", "float32", "--turns", "1", "--transformers", "--mixed", "--generate", "2"]
    monkeypatch.setattr(sys, "argv", ["benchmark", str(directory), *arguments, "--json", str(file)])
    main()

    printed = capsys.readouterr().out
    rows = json.loads(file.read_text())
    kinds = ["plain torch", "our pass, F.linear", "transformers", "layout fixed", "layout packed"]
    of_float32 = [f"float32, {kind}" for kind in (*kinds, "packed, float16 weights")]
    assert [row["variant"] for row in rows] == [f"bfloat16, {kind}" for kind in kinds] + of_float32
    assert all(len(row["step_s"]) == len(SLOTS) and min(*row["step_s"], row["feed_s"]) > 0 for row in rows)
    for against in kinds[:3]:
        table = printed.partition(f"times {against} of its dtype")[2].partition("\n\n")[0].splitlines()
        own = [line.split()[-6:] for line in table if line.startswith((f"bfloat16, {against}", f"float32, {against}"))]
        assert own == [["1.00"] * 6] * 2, "each dtype is compared with itself"
    assert printed.count(" ms in one pass, ") == 2 * 5
    assert "float32, transformers' generate, static cache" in printed
