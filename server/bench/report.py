"""What clients saw, drawn against concurrency: one page of HTML that needs nothing else, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

from server.bench.remote import ClientFigures

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 40, 14, 44
MOST_TICKS = 5

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --ink: #1b1f24; --soft: #59636e; --paper: #ffffff; --faint: #d8dee4; --first: #0969da; --second: #bc4c00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6edf3; --soft: #9198a1; --paper: #0d1117; --faint: #2a3038; --first: #58a6ff; --second: #f0883e;
  }
}
body {
  font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
}
h1 { font-size: 1.5rem; margin-bottom: 0; overflow-wrap: anywhere; } p { color: var(--soft); margin-top: 0.3rem; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-weight: 600; } figcaption span { font-weight: 400; color: var(--soft); }
svg { width: 100%; height: auto; } text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--faint); } path, circle { stroke-width: 2; } path { fill: none; } circle { fill: var(--paper); }
.first { stroke: var(--first); } .second { stroke: var(--second); } path.second { stroke-dasharray: 5 4; }
text.first { fill: var(--first); stroke: none; } text.second { fill: var(--second); stroke: none; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin-top: 1.5rem; }
td, th { padding: 0.2rem 0.8rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
tr > :first-child { text-align: left; font-weight: 400; padding-left: 0; } td { font-variant-numeric: tabular-nums; }
tr > .published { color: var(--soft); font-weight: 400; }
</style>
<h1>$title</h1>
<p>$subtitle</p>
<main>
$figures
</main>
<div class="scroll"><table>
$table
</table></div>
<p>$published</p>
</html>
""")


@dataclass(frozen=True, slots=True)
class Plot:
    """One drawing: fields of ClientFigures against concurrency, each with the name of its line; the second dashed."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]


PLOTS = (
    Plot("New tokens", "a second, of all streams", (("tokens_per_s", ""),)),
    Plot("Requests", "a minute", (("requests_per_min", ""),)),
    Plot("Latency", "of a whole answer, seconds", (("latency_p50", "p50"), ("latency_p90", "p90"))),
    Plot("Time to the first token", "seconds", (("ttft_p50", "p50"), ("ttft_p90", "p90"))),
    Plot(
        "Between two tokens",
        "of one stream, milliseconds",
        (("inter_token_ms_p50", "p50"), ("inter_token_ms_p99", "p99")),
    ),
    Plot("Tokens", "a minute, prompts included", (("tokens_per_min", ""),)),
)

# The load test that the published solution for this hardware came with: 10 users, 500 new tokens.
PUBLISHED_LOAD = (10, 500)
PUBLISHED = {
    "tokens_per_s": 150.0,
    "latency_avg": 32.0,
    "latency_p50": 33.0,
    "latency_p90": 34.0,
    "requests_per_min": 18.0,
    "tokens_per_min": 10_872.0,
}
_LABELS = {
    "requests": "requests answered",
    "failed": "requests failed",
    "new_tokens": "new tokens",
    "seconds": "seconds measured",
    "tokens_per_s": "new tokens a second",
    "device_share": "of the time, the device computed",
    "sampling_share": "of the time, tokens were drawn",
    "latency_avg": "latency, average, s",
    "latency_p50": "latency, p50, s",
    "latency_p90": "latency, p90, s",
    "ttft_p50": "first token, p50, s",
    "ttft_p90": "first token, p90, s",
    "inter_token_ms_p50": "between tokens, p50, ms",
    "inter_token_ms_p99": "between tokens, p99, ms",
    "requests_per_min": "requests a minute",
    "tokens_per_min": "tokens a minute, with prompts",
}


def page(rows: Sequence[ClientFigures], *, title: str, subtitle: str) -> str:
    """The whole page; the rows in the order of their concurrency."""
    ordered = sorted(rows, key=lambda row: row.concurrency)
    users, tokens = PUBLISHED_LOAD
    return _PAGE.substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        figures="\n".join(_figure(plot, ordered) for plot in PLOTS),
        table=_table(ordered),
        published=f"Published: Llama 3 8B on an inf2.xlarge, {users} users, prompts of 104 tokens, {tokens} new ones. "
        "Only the same load compares with it.",
    )


def _figure(plot: Plot, rows: Sequence[ClientFigures]) -> str:
    series = [[getattr(row, name) for row in rows] for name, _ in plot.lines]
    step, ticks = _scale(max((value for values in series for value in values if math.isfinite(value)), default=1.0))
    top = step * ticks
    # Evenly spaced: concurrencies are usually doubled from one to the next.
    xs = [LEFT + (WIDTH - LEFT - RIGHT) * (i + 0.5) / len(rows) for i in range(len(rows))]
    marks = [
        *_grid(step, ticks),
        *(_label(x, HEIGHT - 26, str(row.concurrency), "middle") for x, row in zip(xs, rows, strict=True)),
        _label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "streams at once", "middle"),
    ]
    for style, (_, name), values in zip(("first", "second"), plot.lines, series, strict=False):
        marks += _line(style, name, [(x, y) for x, y in zip(xs, values, strict=True) if math.isfinite(y)], top)
    described = "; ".join(
        f"at {row.concurrency}: {', '.join(_number(values[i]) for values in series)}" for i, row in enumerate(rows)
    )
    title, unit = html.escape(plot.title), html.escape(plot.unit)
    return (
        f'<figure><figcaption>{title} <span>{unit}</span></figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title} {unit}; {described}">{"".join(marks)}</svg></figure>'
    )


def _line(style: str, name: str, points: Sequence[tuple[float, float]], top: float) -> list[str]:
    """A line through (x, value), named at its end; a pointer over a mark tells its value."""
    path = " ".join(f"{'L' if i else 'M'}{x:.1f} {_y(value, top):.1f}" for i, (x, value) in enumerate(points))
    marks = [f'<path class="{style}" d="{path}"/>']
    for x, value in points:
        told = f"<title>{name} {_number(value)}</title>" if name else f"<title>{_number(value)}</title>"
        marks.append(f'<circle class="{style}" cx="{x:.1f}" cy="{_y(value, top):.1f}" r="3.5">{told}</circle>')
    if name and points:
        x, value = points[-1]
        apart = 9 if style == "first" else -1  # the second line is the upper one
        marks.append(_label(x + 9, _y(value, top) + apart, name, "start", style))
    return marks


def _grid(step: float, ticks: int) -> list[str]:
    lines = []
    for tick in range(ticks + 1):
        y = _y(tick, ticks)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(_label(LEFT - 8, y + 4, _tick(step * tick), "end"))
    return lines


def _label(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    named = f' class="{style}"' if style else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _y(value: float, top: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)


def _scale(highest: float) -> tuple[float, int]:
    """(step, ticks) of an axis that just holds `highest`: a step of 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return 0.25, 4
    power = 10.0 ** math.floor(math.log10(highest / MOST_TICKS))
    step = next(step * power for step in (1, 2, 5, 10) if highest <= MOST_TICKS * step * power)
    return step, math.ceil(highest / step)


def _number(value: float) -> str:
    """Three digits that matter; all of a count."""
    if not math.isfinite(value):
        return "-"
    if isinstance(value, int) or value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _tick(value: float) -> str:
    """A round number, without the digits that say nothing."""
    text = _number(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _table(rows: Sequence[ClientFigures]) -> str:
    """A line a figure, a column a concurrency, so that it fits beside what was published."""
    heads = "".join(f"<th>{row.concurrency}</th>" for row in rows)
    lines = [f'<tr><th>streams at once</th>{heads}<th class="published">published</th></tr>']
    for name, label in _LABELS.items():
        share = name.endswith("_share")
        cells = "".join(f"<td>{_cell(getattr(row, name), share)}</td>" for row in rows)
        known = _number(PUBLISHED[name]) if name in PUBLISHED else ""
        lines.append(f'<tr><th>{label}</th>{cells}<td class="published">{known}</td></tr>')
    return "\n".join(lines)


def _cell(value: float, share: bool) -> str:
    return f"{100 * value:.1f} %" if share and math.isfinite(value) else _number(value)
