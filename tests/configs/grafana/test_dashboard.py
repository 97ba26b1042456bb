"""The dashboard: that its panels show what the server exports, in expressions that Prometheus accepts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

DASHBOARD = json.loads((Path(__file__).resolve().parents[3] / "configs/grafana/neuronx-serve.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = {"$__rate_interval": "5m", "$job": "neuronx-serve", "$instance": ".*"}


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def test_every_panel_shows_series_that_a_server_exports(unknown_in: Callable[[str], list[str]]) -> None:
    assert {each: unknown_in(filled(each)) for each in EXPRESSIONS if unknown_in(filled(each))} == {}


def test_the_variables_come_from_a_series_that_a_server_exports(exported: list[Any]) -> None:
    queries = [variable["definition"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    names = {each.name for each in exported}
    assert len(queries) == 2
    assert all(query.removeprefix("label_values(").split(",")[0].split("{")[0] in names for query in queries)


def test_every_panel_goes_by_the_chosen_server_and_data_source() -> None:
    assert [each for each in EXPRESSIONS if 'job="$job",instance=~"$instance"' not in each] == []
    assert {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]} == {"${datasource}"}


def test_promtool_accepts_every_expression(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"panel:{i}", "expr": filled(each)} for i, each in enumerate(EXPRESSIONS)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_panels_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_curve_has_a_name(panel: dict[str, Any]) -> None:
    assert all(target["legendFormat"] for target in panel["targets"])
    assert panel["fieldConfig"]["defaults"]["unit"]
