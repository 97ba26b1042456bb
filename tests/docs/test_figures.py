"""The figures of the README's table are those that the plan computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models.planner.hardware import DISK_BYTES_PER_S, smallest_instance
from models.planner.shapes import published_spec
from models.planner.table import Figure, neuron_table
from models.planner.workload import Workload
from server.configuration import load_settings

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    cells[0].strip(): [[float(number) for number in cell.split(" to ")] for cell in cells[1:]]
    for cells in (
        row.split("|")
        for row in re.findall(r"^\| ((?:published|bf16|int8).*) \|$", (ROOT / "README.md").read_text(), re.M)
    )
}
COLUMNS = ("whole answer", "requests", "a million tokens")


@pytest.fixture(scope="module")
def plan() -> dict[str, tuple[tuple[Figure, ...], ...]]:
    """By its name, the cells of each row: bf16, int8, published."""
    model = load_settings(ROOT / "configs/inf2.toml", {}, {}).models[0]
    spec = published_spec(model.id)
    assert spec is not None
    table = neuron_table(spec, model.device, smallest_instance(2), Workload(), DISK_BYTES_PER_S)
    assert table.columns == ("bf16", "int8", "published")
    return {row.name: row.cells for row in table.rows}


@pytest.mark.parametrize("title", ROWS)
def test_a_row_is_what_the_plan_says(title: str, plan: dict[str, tuple[tuple[Figure, ...], ...]]) -> None:
    column = ("bf16", "int8", "published").index(title.split(":")[0].split(",")[0])
    which = 1 if "estimate" in title else 0
    for shown, name in zip(ROWS[title], COLUMNS, strict=True):
        figure = plan[name][column][which]
        assert shown == pytest.approx([figure.low, figure.high][: len(shown)], rel=0.03), name
        assert len(shown) == (2 if figure.low < figure.high else 1)


def test_the_table_has_the_published_row_and_two_of_each_width() -> None:
    assert [title.split(":")[0].split(",")[0] for title in ROWS] == ["published", "bf16", "bf16", "int8", "int8"]
