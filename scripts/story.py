"""The published test's prompt, and what its report is made of: arithmetic on what was measured, and on what can be.

Knows neither locust nor HTTP; scripts/locustfile.py measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

PROMPT = (
    "你是一名小说家，热衷于创意写作和编写故事。\n请帮我编写一个故事，对象是 10-12 岁的小学生\n故事背景：\n"
    "讲述一位名叫莉拉的年轻女子发现自己有控制天气的能力。她住在一个小镇上，每个人都互相认识。\n其他要求：\n"
    "-避免暴力，色情，粗俗的语言\n-长度要求不少于 500 字\n请开始：\n"
)
PROMPT_TOKENS = 104  # of Llama 3's tokenizer
NEW_TOKENS = 500
USERS = 10
RUN_TIME = "15m"
DOLLARS_PER_HOUR = 0.7582  # inf2.xlarge on demand, us-east-1

NAMES = ("average, s", "p50, s", "p90, s", "requests/min", "tokens/min", "$ per million tokens")


@dataclass(frozen=True, slots=True)
class Figures:
    """One column. Latencies in seconds; tokens are those of prompts and answers; None where nothing is known."""

    average_s: float | None
    p50_s: float | None
    p90_s: float | None
    requests_per_min: float
    tokens_per_min: float
    dollars_per_million: float


# Meta-Llama-3-8B on one inf2.xlarge, 10 users, 104 + 500 tokens (AWS, May 2024).
PUBLISHED = Figures(32, 33, 34, 18, 10_872, 1.16)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered request: the time to its last byte, and the tokens that were generated for it."""

    seconds: float
    new_tokens: int


def figures(answers: Sequence[Answer], prompt_tokens: int, seconds: float, dollars_per_hour: float) -> Figures:
    """What `answers` within `seconds` come to; ValueError when there is none."""
    if not answers:
        raise ValueError("no request was answered within the run: make it longer (--run-time)")
    latencies = sorted(answer.seconds for answer in answers)
    per_min = 60 / seconds
    tokens_per_min = sum(prompt_tokens + answer.new_tokens for answer in answers) * per_min
    return Figures(
        average_s=fmean(latencies),
        p50_s=percentile(latencies, 0.5),
        p90_s=percentile(latencies, 0.9),
        requests_per_min=len(answers) * per_min,
        tokens_per_min=tokens_per_min,
        dollars_per_million=dollars_per_hour / (tokens_per_min * 60) * 1e6,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the ordered values do not exceed (nearest rank, as locust's)."""
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


def floors(config: Path, new_tokens: int, users: int, dollars_per_hour: float) -> list[tuple[str, Figures]]:
    """What `plan` knows that the first model of `config` cannot beat on an inf2.xlarge, in bf16 and in int8.

    Empty when the load does not fit the model's slots. ImportError where neuronx-serve is not installed.
    """
    import msgspec

    from models.planner.shapes import published_spec
    from models.planner.workload import Workload, forecast
    from server.configuration import load_settings

    model = load_settings(config, {}, {}).models[0]
    workload = Workload(PROMPT_TOKENS, new_tokens, users)
    columns = []
    for name, quant in (("bf16", "none"), ("int8", "s8")):
        device = msgspec.structs.replace(model.device, quant=quant)
        spec = published_spec(model.id)
        if spec and (planned := forecast(spec, device, workload, dollars_per_hour)):
            floor = planned.floor
            tokens_per_min = floor.requests_per_min * workload.total_tokens
            shown = (floor.latency_s, None, None, floor.requests_per_min, tokens_per_min, floor.dollars_per_million)
            columns.append((f"inf2 {name}: floor", Figures(*shown)))
    return columns


def table(columns: Sequence[tuple[str, Figures]]) -> str:
    """The report: one line a figure, one column each."""
    heads = "".join(f"{name:>22}" for name, _ in columns)
    lines = [f"{'':<22}{heads}"]
    for row, name in enumerate(NAMES):
        cells = "".join(f"{_shown(_values(column)[row]):>22}" for _, column in columns)
        lines.append(f"{name:<22}{cells}")
    return "\n".join(lines)


def _values(column: Figures) -> tuple[float | None, ...]:
    return (
        column.average_s,
        column.p50_s,
        column.p90_s,
        column.requests_per_min,
        column.tokens_per_min,
        column.dollars_per_million,
    )


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
