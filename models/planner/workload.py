"""What a configuration makes of a steady load: users who each wait for an answer and ask again at once.

Arithmetic on the durations of timing.py. The same quantities of the published solution stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.planner.timing import decode_step, prefill
from models.protocol import NeuronOptions
from models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Workload:
    """Tokens of each request, and users that keep one request in the server each."""

    prompt_tokens: int = 104
    new_tokens: int = 500
    users: int = 10

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True, slots=True)
class Performance:
    """One reading of the future. TTFT is the mean: waiting for a slot and for the step that runs, then the prefill.

    `tokens_per_s` counts new tokens of all users, `dollars_per_million` prompt and new tokens, as published.
    """

    ttft_s: float
    latency_s: float
    tokens_per_s: float
    requests_per_min: float
    dollars_per_million: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """`floor` cannot be beaten; the other two are expected bounds."""

    floor: Performance
    optimistic: Performance
    pessimistic: Performance


@dataclass(frozen=True, slots=True)
class Published:
    """Meta-Llama-3-8B with the default workload on one inf2.xlarge, and the exchange of its models (AWS, May 2024)."""

    latency_s: float = 32.0
    requests_per_min: float = 18.0
    tokens_per_s: float = 150.0
    dollars_per_million: float = 1.16
    exchange_s: float = 60.0


PUBLISHED = Published()


def forecast(spec: ModelSpec, options: NeuronOptions, workload: Workload, dollars_per_hour: float) -> Forecast | None:
    """None when a slot or the largest context bucket is too short for the workload."""
    context = _bucket(options.context_buckets, workload.prompt_tokens)
    token = _bucket(options.token_buckets, workload.total_tokens)
    if context is None or token is None:
        return None
    feed, step = prefill(spec, options, context), decode_step(spec, options, token)

    def performance(feed_s: float, step_s: float) -> Performance:
        return _performance(feed_s, step_s, options.slots, workload, dollars_per_hour)

    return Forecast(
        floor=performance(feed.floor, step.floor),
        optimistic=performance(feed.optimistic, step.optimistic),
        pessimistic=performance(feed.pessimistic, step.pessimistic),
    )


def _performance(feed_s: float, step_s: float, slots: int, workload: Workload, dollars_per_hour: float) -> Performance:
    """Little's law over slots that are fed one at a time, which stops everybody, and decode together.

    A prompt's feed gives its first token. The steps are taken in the bucket of a slot that is almost full: with slots
    that started at different times there always is one.
    """
    live = min(workload.users, slots)
    service_s = live * feed_s + (workload.new_tokens - 1) * step_s
    requests_per_s = live / service_s
    latency_s = workload.users / requests_per_s
    tokens_per_hour = requests_per_s * workload.total_tokens * 3600
    return Performance(
        ttft_s=latency_s - service_s + step_s + feed_s,
        latency_s=latency_s,
        tokens_per_s=requests_per_s * workload.new_tokens,
        requests_per_min=requests_per_s * 60,
        dollars_per_million=dollars_per_hour / tokens_per_hour * 1e6,
    )


def _bucket(buckets: tuple[int, ...], length: int) -> int | None:
    """The smallest bucket that holds `length`."""
    return min((bucket for bucket in buckets if bucket >= length), default=None)
