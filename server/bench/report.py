"""What clients saw, drawn against concurrency: one page of HTML that needs nothing else, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

from server.bench.remote import ClientFigures

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34
TICKS = 4

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --ink: #1b1f24; --paper: #ffffff; --faint: #d0d7de; --first: #0969da; --second: #bc4c00;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --faint: #30363d; --first: #58a6ff; --second: #f0883e; }
}
body {
  font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
}
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; } text { fill: var(--ink); font-size: 12px; }
.grid { stroke: var(--faint); } .first { stroke: var(--first); }
.second { stroke: var(--second); stroke-dasharray: 5 4; }
path { fill: none; stroke-width: 2; } circle { stroke-width: 2; fill: var(--paper); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin-top: 1.5rem; }
td, th { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
</style>
<h1>$title</h1>
<p>$subtitle</p>
<main>
$figures
</main>
<div class="scroll"><table>
$table
</table></div>
</html>
""")


@dataclass(frozen=True, slots=True)
class Plot:
    """One drawing: fields of ClientFigures against concurrency, the second one dashed."""

    title: str
    fields: tuple[str, ...]


PLOTS = (
    Plot("New tokens per second, all streams", ("tokens_per_s",)),
    Plot("Requests per minute", ("requests_per_min",)),
    Plot("Latency of a whole answer, seconds: p50, p90 dashed", ("latency_p50", "latency_p90")),
    Plot("Time to the first token, seconds: p50, p90 dashed", ("ttft_p50", "ttft_p90")),
    Plot("Between two tokens, milliseconds: p50, p99 dashed", ("inter_token_ms_p50", "inter_token_ms_p99")),
    Plot("Tokens per minute, prompts included", ("tokens_per_min",)),
)


def page(rows: Sequence[ClientFigures], *, title: str, subtitle: str) -> str:
    """The whole page; the rows in the order of their concurrency."""
    ordered = sorted(rows, key=lambda row: row.concurrency)
    return _PAGE.substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        figures="\n".join(_figure(plot, ordered) for plot in PLOTS),
        table=_table(ordered),
    )


def _figure(plot: Plot, rows: Sequence[ClientFigures]) -> str:
    series = [[getattr(row, name) for row in rows] for name in plot.fields]
    top = _ceiling(max((value for values in series for value in values if math.isfinite(value)), default=1.0))
    # Evenly spaced: concurrencies are usually doubled from one to the next.
    xs = [LEFT + (WIDTH - LEFT - RIGHT) * (i + 0.5) / len(rows) for i in range(len(rows))]
    marks = [
        *_grid(top),
        *(_label(x, HEIGHT - 12, str(row.concurrency), "middle") for x, row in zip(xs, rows, strict=True)),
    ]
    for style, values in zip(("first", "second"), series, strict=False):
        points = [(x, _y(value, top)) for x, value in zip(xs, values, strict=True) if math.isfinite(value)]
        path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
        marks.append(f'<path class="{style}" d="{path}"/>')
        marks += [f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
    described = "; ".join(
        f"at {row.concurrency}: {', '.join(_number(values[i]) for values in series)}" for i, row in enumerate(rows)
    )
    return (
        f'<figure><figcaption>{html.escape(plot.title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(plot.title)}; {described}">{"".join(marks)}</svg></figure>'
    )


def _grid(top: float) -> list[str]:
    lines = []
    for tick in range(TICKS + 1):
        value = top * tick / TICKS
        y = _y(value, top)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(_label(LEFT - 6, y + 4, _number(value), "end"))
    return lines


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _y(value: float, top: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)


def _ceiling(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return next(float(step * power) for step in (1, 2, 5, 10) if value <= step * power)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _table(rows: Sequence[ClientFigures]) -> str:
    names = [name for name in ClientFigures.__struct_fields__ if name != "error"]
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{_number(float(getattr(row, name)))}</td>" for name in names) + "</tr>" for row in rows
    )
    return f"<tr>{head}</tr>{body}"
