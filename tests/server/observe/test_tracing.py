"""Traces, received by a real OTLP collector on a real socket: what a span says, whose child it is, what it never says,
and that nobody who asks for a text ever waits for a collector."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

grpc = pytest.importorskip("grpc", reason="the extra otel is not installed")
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc  # noqa: E402

from server.errors import ConfigurationError  # noqa: E402
from server.observe.tracing import NoTraces, traces_to  # noqa: E402

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SECRET = "the prompt"
MODEL = """
[server]
stop_deadline = 5
[[models]]
id = "one"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 256
slots = 2
"""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.refuses = False
        self._arrived = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:
        if self.refuses:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not today")
        with self._arrived:
            self.received.append(request)
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Any]:
        return [
            span for each in self.received for group in each.resource_spans
            for scope in group.scope_spans for span in scope.spans
        ]  # fmt: skip

    def wait_for(self, name: str, number: int = 1) -> list[Any]:
        """All spans of this name, once there are so many."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len([s for s in self.spans if s.name == name]) >= number, 60)
            return [span for span in self.spans if span.name == name]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    servicer = Collector()
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
        servicer.port = server.add_insecure_port("127.0.0.1:0")  # type: ignore[attr-defined]
        server.start()
        yield servicer
        server.stop(0).wait()


# The SDK's own variable: a batch is sent so many milliseconds after its first span.
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "100"}


@pytest.fixture(scope="module")
def traced(serve: Callable[..., Any], tiny_text_directory: Path, collector: Any) -> Any:
    flags = ("--otlp-endpoint", f"http://127.0.0.1:{collector.port}")
    server = serve(MODEL.format(directory=tiny_text_directory), *flags, env=QUICK)
    server.wait_available()
    return server


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def seconds(span: Any) -> float:
    return float(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def test_a_generation_is_one_span(traced: Any, collector: Collector) -> None:
    before = time.time_ns()
    traced.post("/generate", {"inputs": SECRET, "parameters": {"max_new_tokens": 7}})
    (span,) = collector.wait_for("POST /generate")
    said = attributes(span)
    assert (said["gen_ai.request.model"], said["finish_reason"]) == ("one", "length")
    assert (said["http.request.method"], said["url.path"], said["http.response.status_code"]) == (
        *("POST", "/generate"),
        200,
    )
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"], said["sequences"]) == (10, 7, 1)
    parts = [said[name] for name in ("validation_time", "queue_time", "prefill_time", "decode_time")]
    assert all(part >= 0 for part in parts)
    assert sum(parts) == pytest.approx(said["total_time"])
    assert said["inference_time"] == pytest.approx(said["prefill_time"] + said["decode_time"])
    assert said["time_per_token"] == pytest.approx(said["inference_time"] / 7)
    assert before <= span.start_time_unix_nano
    assert said["total_time"] <= seconds(span)
    assert span.end_time_unix_nano <= time.time_ns()
    assert (span.kind, span.status.code, span.parent_span_id) == (2, 0, b"")  # a server's, not failed, a root
    assert SECRET.encode() not in span.SerializeToString()


def test_the_service_has_tgis_name(collector: Collector, traced: Any) -> None:
    traced.post("/tokenize", {"inputs": "x"})
    collector.wait_for("POST /tokenize")
    resource = collector.received[0].resource_spans[0].resource
    assert attributes(resource)["service.name"] == "text-generation-inference.router"


def test_a_traceparent_is_the_parent_in_any_case_of_its_name(traced: Any, collector: Collector) -> None:
    traceparent = f"00-{TRACE}-{CALLER}-01"
    body = {"inputs": "x", "parameters": {"max_new_tokens": 2}}
    headers = {"TraceParent": traceparent, "tracestate": "vendor=1"}
    with httpx.stream("POST", traced.url + "/generate_stream", json=body, headers=headers, timeout=60) as answer:
        assert len(list(answer.iter_lines())) == 4
    (span,) = collector.wait_for("POST /generate_stream")
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, CALLER, "vendor=1")
    assert span.span_id.hex() != CALLER


def test_a_caller_that_does_not_sample_is_followed_in_that(traced: Any, collector: Collector) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    traced.post("/v1/chat/completions", body, headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    traced.post("/v1/chat/completions", body)
    (span,) = collector.wait_for("POST /v1/chat/completions")
    assert span.trace_id.hex() != TRACE


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-0-0-01", f"00-{'0' * 32}-{CALLER}-01", "ff" * 5000])
def test_a_malformed_traceparent_begins_a_trace(traced: Any, collector: Collector, traceparent: str) -> None:
    before = len([span for span in collector.spans if span.name == "POST /chat_tokenize"])
    body = {"messages": [{"role": "user", "content": "x"}]}
    assert traced.post("/chat_tokenize", body, headers={"traceparent": traceparent}).status_code == 200
    span = collector.wait_for("POST /chat_tokenize", before + 1)[-1]
    assert span.parent_span_id == b""


def test_a_refusal_says_why_and_is_not_the_servers_failure(traced: Any, collector: Collector) -> None:
    traced.post("/", {"inputs": "", "stream": True})
    span = collector.wait_for("POST /")[-1]
    said = attributes(span)
    assert (said["http.response.status_code"], said["finish_reason"], span.status.code) == (200, "validation", 0)
    assert "gen_ai.usage.output_tokens" not in said


def test_several_prompts_are_one_span(traced: Any, collector: Collector) -> None:
    traced.post("/v1/completions", {"prompt": ["ab", "abc"], "max_tokens": 2})
    said = attributes(collector.wait_for("POST /v1/completions")[-1])
    assert (said["sequences"], said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (2, 5, 4)


def test_health_and_metrics_are_not_traced(traced: Any, collector: Collector) -> None:
    traced.get("/health")
    traced.get("/metrics")
    traced.post("/tokenize", {"inputs": "y"})
    collector.wait_for("POST /tokenize", 1)
    assert all(span.name.startswith("POST ") for span in collector.spans)


def test_the_last_spans_are_sent_when_it_stops(
    serve: Callable[..., Any], tiny_text_directory: Path, collector: Collector
) -> None:
    """With a delay that never comes to its end by itself; and a name of one's own."""
    environment = {
        "OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}/",
        "OTLP_SERVICE_NAME": "mine",
        "OTEL_BSP_SCHEDULE_DELAY": "3600000",
    }
    server = serve(MODEL.format(directory=tiny_text_directory), env=environment)
    server.wait_available()
    before = len(collector.received)
    server.post("/invocations", {"inputs": "x", "parameters": {"max_new_tokens": 1}})
    assert server.stop() == 0
    collector.wait_for("POST /invocations")
    (last,) = collector.received[before:]
    assert attributes(last.resource_spans[0].resource)["service.name"] == "mine"


@pytest.mark.parametrize("collectors", ["nobody", "silent", "refusing"])
def test_a_collector_that_fails_harms_nobody(
    serve: Callable[..., Any], tiny_text_directory: Path, collector: Collector, collectors: str
) -> None:
    """Nobody listens; or one accepts and never says a word; or refuses all: requests are served, and stop ends."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if collectors != "refusing" else collector.port
        if collectors == "nobody":
            silent.close()
        collector.refuses = collectors == "refusing"
        try:
            flags = ("--otlp-endpoint", f"http://127.0.0.1:{port}")
            # A full queue, many times over.
            small = {**QUICK, "OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}
            server = serve(MODEL.format(directory=tiny_text_directory), *flags, env=small)
            server.wait_available()
            for _ in range(30):
                answer = server.post("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 3}})
                assert answer.status_code == 200
            assert server.get("/health").status_code == 200
            assert server.stop() == 0
        finally:
            collector.refuses = False
    assert "Traceback" not in server.log.read_text()


def test_without_an_endpoint_nothing_is_imported() -> None:
    assert isinstance(traces_to("", "name"), NoTraces)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigurationError, match=r"OTLP_ENDPOINT.*pip install 'neuronx-serve\[otel\]'"):
        traces_to("http://127.0.0.1:4317", "name")
