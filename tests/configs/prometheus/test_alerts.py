"""The alert rules: Prometheus' own verdict, when they fire, and that they look at what the server exports."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs/prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((CONFIGS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules_and_the_scrape(promtool: str) -> None:
    assert f"{len(RULES)} rules found" in run(promtool, "check", "rules", CONFIGS / "alerts.yml")
    run(promtool, "check", "config", CONFIGS / "prometheus.yml")


def test_each_alert_fires_when_it_should_and_only_then(promtool: str) -> None:
    cases = Path(__file__).with_name("alerts_test.yml")
    assert "SUCCESS" in run(promtool, "test", "rules", cases)
    assert [rule["alert"] for rule in RULES if f'alertname="{rule["alert"]}"' not in cases.read_text()] == []


def test_every_alert_looks_at_series_that_a_server_exports(unknown_in: Callable[[str], list[str]]) -> None:
    # `up` is Prometheus' own; on the server of the test no answer was given up.
    elsewhere = {"up", *(f'tgi_request_failure{{err="{err}"}}' for err in ("generation", "incomplete"))}
    unknown = {rule["alert"]: set(unknown_in(rule["expr"])) - elsewhere for rule in RULES}
    assert {alert: series for alert, series in unknown.items() if series} == {}


def test_what_no_server_exports_is_found(unknown_in: Callable[[str], list[str]]) -> None:
    expression = (
        'sum by (job, instance) (rate(tgi_made_up{err="x"}[5m])) / on (job) group_left (model) '
        'neuronx_serve_model_state{state=~"failed|broken", job="j"} offset 15m > 0.5 * tgi_queue_size and up'
    )
    assert unknown_in(expression) == [
        "tgi_made_up",
        'tgi_made_up{err="x"}',
        'neuronx_serve_model_state{state="broken"}',
        "up",
    ]
