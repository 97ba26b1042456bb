"""What clients of a running server saw, as figures and as a page."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from server.bench import table
from server.bench.remote import ClientFigures, figures
from server.bench.report import _number, _scale, _tick, page
from server.bench.spent import Spent, read
from server.bench.streams import Answer


def answered(asked_at: float, *token_at: float, prompt_tokens: int = 100) -> Answer:
    return Answer(asked_at, list(token_at), token_at[-1], len(token_at), prompt_tokens)


def test_the_figures_of_two_streams() -> None:
    row = figures(2, [answered(0.0, 1.0, 2.0, 3.0), answered(0.0, 2.0, 4.0)])
    assert (row.requests, row.failed, row.new_tokens, row.seconds) == (2, 0, 5, 4.0)
    assert row.tokens_per_s == 5 / 4
    assert (row.latency_avg, row.latency_p50) == (3.5, 3.5)
    assert (row.ttft_p50, row.inter_token_ms_p50) == (1.5, 1000.0)
    assert (row.requests_per_min, row.tokens_per_min) == (30.0, 60 * 205 / 4)


def test_what_failed_is_counted_apart_and_told() -> None:
    row = figures(2, [answered(0.0, 1.0), Answer(0.0, error="/generate_stream answered 429")])
    assert (row.requests, row.failed, row.error) == (1, 1, "/generate_stream answered 429")
    assert math.isnan(row.inter_token_ms_p50)
    assert b'"inter_token_ms_p50": null' in table.to_json([row])


METRICS = """\
# TYPE tgi_batch_forward_duration histogram
tgi_batch_forward_duration_bucket{le="0.1",method="prefill"} 7.0
tgi_batch_forward_duration_sum{method="prefill"} 1.5
tgi_batch_forward_duration_count{method="prefill"} 7.0
tgi_batch_forward_duration_sum{method="decode"} 8.0
neuronx_serve_step_sampling_seconds_sum{method="decode"} 0.25
"""


def test_the_device_is_measured_by_what_its_metrics_gained() -> None:
    before, after = read(METRICS), read(METRICS.replace(" 8.0", " 11.0").replace(" 0.25", " 0.75"))
    row = figures(1, [answered(0.0, 1.0, 4.0)], after.since(before))
    assert (row.device_share, row.sampling_share) == (3 / 4, 0.5 / 4)


def test_a_server_that_had_made_no_step_starts_from_nothing() -> None:
    assert read(METRICS).since(read("")) == Spent(9.5, 0.25)


def test_a_server_without_such_metrics_tells_no_share() -> None:
    row = figures(1, [answered(0.0, 1.0)], read("").since(read("")))
    assert math.isnan(row.device_share)
    assert b'"device_share": null' in table.to_json([row])


def test_nothing_answered_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="none of 1 requests was answered: gone"):
        figures(1, [Answer(0.0, error="gone")])


class Elements(HTMLParser):
    """The tags of a page; every one that needs it must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "line", "path", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "path", "circle"):
            assert self.open.pop() == tag


def rows() -> list[ClientFigures]:
    return [figures(count, [answered(0.0, 1.0, 1.0 + count / 10)] * count) for count in (10, 1, 4)]


@pytest.mark.parametrize(
    ("highest", "axis"),
    [(225.0, (50.0, 5)), (79.3, (20.0, 4)), (100.0, (20.0, 5)), (0.011, (0.005, 3)), (0.0, (0.25, 4))],
)
def test_an_axis_just_holds_what_is_drawn(highest: float, axis: tuple[float, int]) -> None:
    assert _scale(highest) == pytest.approx(axis)


@pytest.mark.parametrize(
    ("value", "shown", "tick"),
    [
        (37_500.0, "37,500", "37,500"),
        (7.3, "7.30", "7.3"),
        (56.37, "56.4", "56.4"),
        (0.0074, "0.00740", "0.0074"),
        (8, "8", "8"),
        (0.1 * 3, "0.300", "0.3"),
        (0.0, "0", "0"),
        (math.nan, "-", "-"),
    ],
)
def test_numbers_are_shown_with_three_digits(value: float, shown: str, tick: str) -> None:
    assert (_number(value), _tick(value)) == (shown, tick)


def test_the_page_draws_every_row_and_needs_nothing_else() -> None:
    text = page(rows(), title="a <server>", subtitle="of mine")
    elements = Elements(text)
    assert elements.open == []
    assert elements.seen.count("svg") == 6
    assert elements.seen.count("circle") == 3 * (3 + 2 * 3)
    assert "a &lt;server&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert not {"script", "link", "img"} & set(elements.seen)
    assert "http" not in text
    assert "<th>streams at once</th><th>1</th><th>4</th><th>10</th>" in text
    assert "<th>requests a minute</th><td>54.5</td><td>171</td><td>300</td>" in text


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.1)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_page_can_be_read_in_light_and_in_dark() -> None:
    text = page(rows(), title="any", subtitle="any")
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", text, re.S)
    )
    assert light.keys() == dark.keys()
    assert len(re.findall(r"#[0-9a-f]{6}", text)) == len(light) + len(dark), "every colour follows the scheme"
    assert luminance(light["paper"]) > luminance(light["ink"])
    assert luminance(dark["paper"]) < luminance(dark["ink"])
    for scheme in (light, dark):
        for drawn in ("ink", "soft", "first", "second"):
            darker, lighter = sorted((luminance(scheme[drawn]), luminance(scheme["paper"])))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (drawn, scheme)
