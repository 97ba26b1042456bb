"""The report of the published test: its figures follow from each other, and from what was measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from models.planner.hardware import DISK_BYTES_PER_S, smallest_instance
from models.planner.shapes import published_spec
from models.planner.table import neuron_table
from models.planner.workload import PUBLISHED, Workload
from server.configuration import load_settings

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/inf2.toml"


@pytest.fixture(scope="module")
def story() -> ModuleType:
    spec = importlib.util.spec_from_file_location("story", ROOT / "scripts/story.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["story"] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


def test_the_published_figures_follow_from_its_requests_a_minute(story: ModuleType) -> None:
    answers = [story.Answer(32.0, story.NEW_TOKENS)] * 18

    figures = story.figures(answers, story.PROMPT_TOKENS, 60.0, story.DOLLARS_PER_HOUR)

    assert figures.requests_per_min == story.PUBLISHED.requests_per_min
    assert figures.tokens_per_min == story.PUBLISHED.tokens_per_min
    assert figures.dollars_per_million == pytest.approx(story.PUBLISHED.dollars_per_million, abs=0.005)


def test_the_load_and_the_price_are_those_that_the_planner_assumes(story: ModuleType) -> None:
    assert Workload(story.PROMPT_TOKENS, story.NEW_TOKENS, story.USERS) == Workload()
    assert smallest_instance(2).dollars_per_hour == story.DOLLARS_PER_HOUR
    assert (PUBLISHED.latency_s, PUBLISHED.requests_per_min) == (story.PUBLISHED.average_s, 18)


def test_the_prompt_is_the_published_one(story: ModuleType) -> None:
    assert len(story.PROMPT.splitlines()) == 8
    assert story.PROMPT.startswith("你是一名小说家")
    assert story.PROMPT.endswith("请开始：\n")


def test_answers_that_end_early_count_for_what_they_have(story: ModuleType) -> None:
    figures = story.figures([story.Answer(1.0, 10), story.Answer(3.0, 30)], 100, 120.0, 1.2)

    assert figures.average_s == 2.0
    assert figures.requests_per_min == 1
    assert figures.tokens_per_min == 120
    assert figures.dollars_per_million == pytest.approx(1.2 / (120 * 60) * 1e6)


@pytest.mark.parametrize(("share", "value"), [(0.5, 5), (0.9, 9), (0.91, 10), (1.0, 10), (0.01, 1)])
def test_a_percentile_is_one_of_the_values(story: ModuleType, share: float, value: int) -> None:
    assert story.percentile(list(range(1, 11)), share) == value


def test_a_run_without_an_answer_has_no_report(story: ModuleType) -> None:
    with pytest.raises(ValueError, match="no request was answered"):
        story.figures([], 104, 60.0, 1.0)


def test_the_floors_are_those_of_the_plan_in_both_widths(story: ModuleType) -> None:
    columns = dict(story.floors(CONFIG, story.NEW_TOKENS, story.USERS, story.DOLLARS_PER_HOUR))

    model = load_settings(CONFIG, {}, {}).models[0]
    spec = published_spec(model.id)
    assert spec is not None
    plan = neuron_table(spec, model.device, smallest_instance(2), Workload(), DISK_BYTES_PER_S)
    assert list(columns) == [f"inf2 {name}: floor" for name in plan.columns[:2]]
    for name, figure in (
        ("whole answer", "average_s"),
        ("requests", "requests_per_min"),
        ("a million tokens", "dollars_per_million"),
    ):
        cells = next(row.cells for row in plan.rows if row.name == name)
        planned = [cell[0].low for cell in cells[:2]]
        assert [getattr(column, figure) for column in columns.values()] == pytest.approx(planned)


def test_the_table_has_a_line_for_each_figure(story: ModuleType) -> None:
    lines = story.table([("published", story.PUBLISHED)]).splitlines()

    assert [line[:22].strip() for line in lines] == ["", *story.NAMES]
    assert lines[5].split()[-1] == "10,872"
