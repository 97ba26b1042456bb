"""`python -m server.bench.processes`: real processes that start and end. No time is asserted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.protocol import SimulatedOptions, Stage
from server.bench.processes import ProcessFigures, end_s, main
from server.listener import run_on_loop


def test_a_start_and_an_end(capsys: Any) -> None:
    main(["--turns", "1"])
    heading, row = capsys.readouterr().out.splitlines()
    assert tuple(heading.split()) == ProcessFigures.__struct_fields__
    turns, *seconds = row.split()
    assert turns == "1"
    assert all(float(each) > 0 for each in seconds)
    assert seconds[0] == seconds[1]


def test_a_worker_that_does_not_load_is_told_of(tiny_text_directory: Path) -> None:
    options = SimulatedOptions(vocab_size=250, faults=("load:0=configuration",))
    with pytest.raises(RuntimeError, match="scheduled fault at load call 0"):
        run_on_loop(end_s(Stage(model="one", directory=str(tiny_text_directory), options=options)))
