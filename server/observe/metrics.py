"""The server's metrics: TGI's names first, then ours (wire contract, section 15).

One typed method a fact; the caller says what happened, this module says under which name it is counted. A series
appears once it has a value, as in TGI. Knows nothing of where the facts come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from server.core import Limits, Request, Timings
from server.observe.neuron_series import NeuronSeries

Failure = Literal["validation", "overloaded", "generation", "incomplete", "dropped", "template"]
Method = Literal["prefill", "decode"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DURATION_BUCKETS = tuple(0.0001 * 1.5**k for k in range(1, 36))
BATCH_BUCKETS = tuple(range(1, 1025))
_STEPS = 100
_BUCKET = ("model", "bucket")

# prometheus_client ends a counter's name with _total; TGI's dashboards know the names without.
_TGI_TOTAL = re.compile(rb"^(# HELP |# TYPE |)(tgi_\w+)_total\b", re.MULTILINE)

_M = TypeVar("_M", Counter, Gauge, Histogram)

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All series of one server, in a registry of its own. `neuron`: those that neuron-monitor brings."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._series: dict[str, Any] = {}
        self._process: ProcessCollector | None = None
        self.neuron = NeuronSeries()
        self._registry.register(self.neuron)
        self._max_input_tokens = 1024
        self._max_total_tokens = 2048

    def cover(self, limits: Sequence[Limits]) -> None:
        """Spread the buckets of token counts over what the models allow. To be called before the first request."""
        self._max_input_tokens = max(each.max_input_tokens for each in limits)
        self._max_total_tokens = max(each.max_total_tokens for each in limits)

    def render(self) -> bytes:
        """The Prometheus text format, 0.0.4."""
        return _TGI_TOTAL.sub(rb"\1\2", generate_latest(self._registry))

    # --- requests

    def request_started(self) -> None:
        """A generation request whose body could be read."""
        self._counter("tgi_request_count", "Generation requests").inc()

    def request_failed(self, failure: Failure) -> None:
        """It was refused, failed, or lost its client (dropped)."""
        self._counter("tgi_request_failure", "Failed generation requests", ("err",)).labels(failure).inc()

    def request_succeeded(self) -> None:
        """The last token of all its sequences is here."""
        self._counter("tgi_request_success", "Successful generation requests").inc()

    def sequence_finished(self, request: Request, timings: Timings, generated_tokens: int) -> None:
        """The last token of a sequence is here."""
        inference = timings.ended - timings.started
        self._seconds("tgi_request_duration", timings.ended - timings.arrived)
        self._seconds("tgi_request_validation_duration", timings.validated - timings.arrived)
        self._seconds("tgi_request_queue_duration", timings.started - timings.validated)
        self._seconds("tgi_request_inference_duration", inference)
        self._seconds("tgi_request_mean_time_per_token_duration", inference / generated_tokens)
        self._tokens("tgi_request_input_length", self._max_input_tokens, len(request.prompt))
        self._tokens("tgi_request_max_new_tokens", self._max_total_tokens, request.max_new_tokens)
        self._tokens("tgi_request_generated_tokens", self._max_total_tokens, generated_tokens)
        self._seconds("neuronx_serve_time_to_first_token_seconds", timings.first_token - timings.arrived)
        if generated_tokens > 1:
            between = (timings.ended - timings.first_token) / (generated_tokens - 1)
            self._seconds("neuronx_serve_inter_token_seconds", between)

    def prompt_fed(self, tokens: int, reused: int) -> None:
        """A prompt of `tokens` got a slot, which held the first `reused` of them already."""
        self._counter("neuronx_serve_prompt_tokens", "Tokens of the prompts that got a slot").inc(tokens)
        self._counter("neuronx_serve_reused_prompt_tokens", "Of those, tokens that the slot held already").inc(reused)

    # --- batches

    def queue_size(self, requests: int) -> None:
        """Requests without a slot now."""
        self._gauge("tgi_queue_size", "Requests that wait for a slot").set(requests)

    def batch_size(self, requests: int) -> None:
        """Requests in a slot now."""
        self._gauge("tgi_batch_current_size", "Requests that hold a slot").set(requests)

    def batch_tokens(self, held: int, limit: int) -> None:
        """Tokens that the running requests may come to hold, and what all slots hold together."""
        self._gauge("tgi_batch_current_max_tokens", "Tokens the running requests may come to hold").set(held)
        self._gauge("tgi_batch_max_total_tokens", "Tokens that all slots hold").set(limit)

    def observe_step(
        self,
        method: Method,
        seconds: float,
        requests: int = 0,
        *,
        drawn: int = 0,
        sampling_s: float = 0.0,
        idle_s: float = 0.0,
    ) -> None:
        """A step is done: `seconds` on the device for `requests` sequences (0: not told).

        `drawn`: the tokens it brought; `sampling_s`: what the host took for them; `idle_s`: how long the
        device stood still before it.
        """
        self._counter("tgi_batch_inference_count", "Steps", ("method",)).labels(method).inc()
        self._counter("tgi_batch_inference_success", "Steps done", ("method",)).labels(method).inc()
        self._seconds("tgi_batch_inference_duration", seconds, method)
        self._seconds("tgi_batch_forward_duration", seconds, method)
        self._seconds("tgi_batch_decode_duration", sampling_s, method)  # TGI's word for what the host does behind it
        self._seconds("neuronx_serve_step_sampling_seconds", sampling_s, method)
        self._seconds("neuronx_serve_step_idle_seconds", idle_s, method)
        if requests:
            self._histogram("tgi_batch_next_size", "Requests in a step", BATCH_BUCKETS).observe(requests)

    def step_failed(self, method: Method) -> None:
        """A step was lost with its worker."""
        self._counter("tgi_batch_inference_count", "Steps", ("method",)).labels(method).inc()
        self._counter("tgi_batch_inference_failure", "Steps lost", ("method",)).labels(method).inc()

    # --- workers and models

    def worker_restarted(self) -> None:
        """A lost worker is being replaced."""
        self._counter("neuronx_serve_worker_restarts", "Workers replaced after a fault").inc()

    def sequence_replayed(self) -> None:
        """A sequence goes on on another worker, or in another slot."""
        self._counter("neuronx_serve_replays", "Sequences fed again after a fault or an exchange").inc()

    def model_exchanged(self, model: str, seconds: float) -> None:
        """`model` got the device, `seconds` after its staging began."""
        self._counter("neuronx_serve_exchanges", "Models given the device", ("model",)).labels(model).inc()
        self._seconds("neuronx_serve_exchange_seconds", seconds)

    def model_states(self, states: Mapping[str, str], possible: Sequence[str], healthy: bool) -> None:
        """The state of every configured model, each out of `possible`, and whether one can serve (/health)."""
        state = self._gauge("neuronx_serve_model_state", "1 at the state that a model is in", ("model", "state"))
        state.clear()  # a model may have left the configuration
        for model, now in states.items():
            for each in possible:
                state.labels(model, each).set(each == now)
        self._gauge("neuronx_serve_healthy", "Whether a model can serve, as /health says").set(healthy)

    def slots(self, total: int) -> None:
        """Slots of the model that holds the device."""
        self._gauge("neuronx_serve_slots", "Slots of the model that holds the device").set(total)

    def decode_step(self, model: str, bucket: int, seconds: float, floor: float | None) -> None:
        """A decode step of `model` in the token bucket `bucket` took `seconds` at its last load, beside what it cannot
        fall below (models/planner), where that is known."""
        measured = self._gauge("neuronx_serve_decode_step_seconds", "Decode step, measured at the last load", _BUCKET)
        measured.labels(model, bucket).set(seconds)
        if floor is not None:
            least = self._gauge("neuronx_serve_decode_floor_seconds", "What no decode step can be below", _BUCKET)
            least.labels(model, bucket).set(floor)

    def api_process(self, tasks: int) -> None:
        """The API process itself: asyncio tasks now; from here on also memory, CPU time and descriptors.

        The latter are read at each rendering, under prometheus_client's own names (`process_...`; Linux alone).
        """
        self._gauge("neuronx_serve_tasks", "Tasks of the API process's event loop").set(tasks)
        if self._process is None:
            self._process = ProcessCollector(registry=self._registry)

    def tokens_generated(self, tokens: int) -> None:
        """A step drew so many tokens for sequences that want them."""
        if tokens:
            self._counter("neuronx_serve_generated_tokens", "Tokens generated, as they are drawn").inc(tokens)

    def tokens_dropped(self, tokens: int = 1) -> None:
        """Tokens were drawn for sequences that had ended meanwhile."""
        self._counter("neuronx_serve_dropped_tokens", "Tokens drawn for ended sequences").inc(tokens)

    # --- inside

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> Counter:
        return self._once(name, lambda: Counter(name, help_text, labels, registry=self._registry))

    def _gauge(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return self._once(name, lambda: Gauge(name, help_text, labels, registry=self._registry))

    def _histogram(
        self, name: str, help_text: str, buckets: Sequence[float], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return self._once(name, lambda: Histogram(name, help_text, labels, buckets=buckets, registry=self._registry))

    def _seconds(self, name: str, seconds: float, method: Method | None = None) -> None:
        help_text = name.replace("_", " ").capitalize() + ("" if name.endswith("seconds") else " in seconds")
        histogram = self._histogram(name, help_text, DURATION_BUCKETS, ("method",) if method else ())
        (histogram.labels(method) if method else histogram).observe(seconds)

    def _tokens(self, name: str, most: int, tokens: int) -> None:
        buckets = [most * (step + 1) / _STEPS for step in range(_STEPS)]
        self._histogram(name, name.replace("_", " ").capitalize(), buckets).observe(tokens)

    def _once(self, name: str, create: Callable[[], _M]) -> _M:
        series: _M = self._series.get(name) or self._series.setdefault(name, create())
        return series
