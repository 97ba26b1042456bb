"""OpenTelemetry traces: one span a request, sent to a collector over OTLP/gRPC, as TGI's OTLP_ENDPOINT means it.

gRPC rather than HTTP, so that the endpoint which TGI was given goes on working. A span is made when its request has
ended: nothing is carried along meanwhile. It goes into a bounded queue that a thread of the SDK empties, so neither a
slow collector nor a dead one is ever waited for; what does not fit is dropped and logged. The SDK's own variables
(OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_..) apply. The libraries are the extra `otel`; they are
imported where an endpoint is set and nowhere else. Knows no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from server.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

Attribute = str | bool | int | float
FLUSH_S = 5.0
"""How long the end of the process waits for a collector to take the last spans."""


class Traces(Protocol):
    """Where the spans of requests go."""

    def ended(
        self,
        name: str,
        seconds: float,
        attributes: Mapping[str, Attribute],
        *,
        parent: Mapping[str, str],
        failed: bool = False,
    ) -> None:
        """A request has ended now, after `seconds`. `parent`: its headers traceparent and tracestate, where it has
        them; a malformed one counts as absent. `failed`: through the server's fault. Raises nothing, never waits."""

    async def close(self) -> None:
        """The last spans are sent, or given up."""


class NoTraces:
    """No collector is configured."""

    def ended(
        self,
        name: str,
        seconds: float,
        attributes: Mapping[str, Attribute],
        *,
        parent: Mapping[str, str],
        failed: bool = False,
    ) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""


class CollectedTraces:
    """Spans for a collector at `endpoint`, under the name of a service."""

    def __init__(self, endpoint: str, service_name: str) -> None:
        """Starts a thread, and connects with the first span. ConfigurationError without the extra `otel`."""
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigurationError(
                f"server.otlp_endpoint (OTLP_ENDPOINT, --otlp-endpoint) = {endpoint!r}: traces need the extra `otel`, "
                f"which is not installed ({error}). Install it: pip install 'neuronx-serve[otel]'"
            ) from error
        self._provider: TracerProvider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: service_name}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("neuronx-serve")
        self._context_of = TraceContextTextMapPropagator().extract
        self._kind = SpanKind.SERVER
        self._error = StatusCode.ERROR

    def ended(
        self,
        name: str,
        seconds: float,
        attributes: Mapping[str, Attribute],
        *,
        parent: Mapping[str, str],
        failed: bool = False,
    ) -> None:
        """See Traces. A trace that its caller does not sample is not sampled here either."""
        try:
            now = time.time_ns()
            span = self._tracer.start_span(
                name,
                context=self._context_of(parent),
                kind=self._kind,
                attributes=attributes,
                start_time=now - int(seconds * 1e9),
            )
            if failed:
                span.set_status(self._error)
            span.end(now)
        except Exception:
            log.exception("a request's span was lost")

    async def close(self) -> None:
        """Send what is queued, within FLUSH_S; the rest is lost. In a daemon thread, which the process does not wait
        for: a collector that neither answers nor hangs up must not hold up its end."""
        loop = asyncio.get_running_loop()
        flushed = asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(flushed.set)

        threading.Thread(target=flush, name="last-spans", daemon=True).start()
        try:
            await asyncio.wait_for(flushed.wait(), FLUSH_S)
        except asyncio.TimeoutError:
            log.warning("the collector of traces took nothing for %g s: the last spans are lost", FLUSH_S)


def traces_to(endpoint: str, service_name: str) -> Traces:
    """Traces for the collector at `endpoint`, "" being none; ConfigurationError when the extra is missing."""
    return CollectedTraces(endpoint, service_name) if endpoint else NoTraces()
