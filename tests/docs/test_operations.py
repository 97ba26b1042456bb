"""The runbook: it has a word for every alert, every way to fail and every error, and no word for what is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import yaml

from models.neuron.status import _CODES as CODES
from models.protocol import Remedy
from server import errors
from server.worker_process import LossKind

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = (ROOT / "docs/operations.md").read_text("utf-8")
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((ROOT / "configs/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}


def section(title: str) -> str:
    """From its heading to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |^##? |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[2]


def headings(text: str) -> set[str]:
    return set(re.findall(r"^### (.+)$", text, re.MULTILINE))


def rows(text: str, column: int) -> list[str]:
    table = re.findall(r"^\| (.+) \|$", text, re.MULTILINE)[1:]
    return [row.split(" | ")[column] for row in table]


def test_every_alert_has_its_section_and_leads_to_it() -> None:
    assert headings(section("Alerts")) == set(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert len(section(name)) > 100


def test_every_kind_of_loss_and_every_remedy_has_a_word() -> None:
    failed = section("A model that failed")
    kinds = {title.removeprefix("Kind: ") for title in headings(failed) if title.startswith("Kind: ")}
    assert kinds == set(get_args(LossKind))
    assert set(rows(section("Kind: device"), 0)) == set(get_args(Remedy))


def test_every_status_code_of_the_runtime_has_a_row() -> None:
    told = [code for row in rows(section("Status codes of the Neuron runtime"), 0) for code in row.split(", ")]
    assert sorted(map(int, told)) == sorted(CODES)


def test_every_error_type_that_a_client_reads_has_a_row() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ServeError)]
    types = {kind.error_type for kind in kinds if not issubclass(kind, errors.BodyError)}
    types.add(errors.IncompleteGeneration().stream_error_type)
    assert {each.strip("`") for each in rows(section("Errors that clients see"), 1)} == {*types, "(plain text)"}


def test_the_places_it_links_to_are_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", RUNBOOK):
        file, _, anchor = target.partition("#")
        text = (ROOT / "docs" / file).read_text("utf-8") if file else RUNBOOK
        titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
