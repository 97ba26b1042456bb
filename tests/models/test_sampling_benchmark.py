"""The table of `python -m models.sampling_benchmark`. No time is asserted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.sampling_benchmark import LIKELY, main, rows_of


def shares(kind: str) -> Any:
    """Probabilities of each row, the likeliest first."""
    weights = np.exp(rows_of(kind, 3, 5000).astype(np.float64))
    return -np.sort(-weights / weights.sum(axis=1, keepdims=True), axis=1)


def test_rows_are_of_the_kind_that_they_are_named_for() -> None:
    assert (shares("likely")[:, :LIKELY].sum(axis=1) > 0.95).all()
    assert (shares("flat")[:, 0] < 2 / 5000).all()
    zipf = shares("zipf")
    assert zipf[:, 0] / zipf[:, 9] == pytest.approx(10**1.2, rel=1e-4)
    with pytest.raises(ValueError, match="'steep'"):
        rows_of("steep", 1, 50)


def test_it_prints_a_line_a_kind_and_a_figure_a_way_to_draw(capsys: Any) -> None:
    main(["--rows", "2", "--vocab", "5000", "--turns", "1"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0].startswith("ms")
    assert [line.split()[0] for line in lines] == ["likely", "flat", "zipf"]
    assert [len(line.split()) for line in lines] == [6, 6, 6]
    assert all(float(figure) > 0 for line in lines for figure in line.split()[1:])
    assert all(len(line) == len(head) for line in lines)


def test_a_row_has_room_for_its_likely_tokens(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--vocab", "5"])
    assert f"--vocab {LIKELY} or more" in capsys.readouterr().err
