"""Sections 1, 8 and 15 of the wire contract: routes, methods, keys, cross-origin requests, health, info, metrics."""

from __future__ import annotations

import itertools
import re
import time
from typing import Any

import pytest

GETS = ["/", "/health", "/ping", "/livez", "/readyz", "/info", "/metrics", "/v1/models", "/models", "/models/org/model"]
POSTS = [
    *("/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions", "/tokenize", "/invocations"),
    *("/vertex", "/models/org/model/generate"),
]
BODY = {"inputs": "x", "parameters": {"max_new_tokens": 1}}


@pytest.mark.parametrize("path", GETS, ids=lambda path: f"1-GET-{path}")
def test_get_and_head(wire: Any, path: str) -> None:
    get, head = wire.get(path), wire.send("HEAD", path)
    assert (get.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["content-length"] == get.headers["content-length"] or path == "/metrics"


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/generate/",
        "/v1/models/",
        "/models/",
        "/models/org/model/",
        "/models/org/model/nope",
        "/health/",
        "//",
    ],
    ids=lambda path: f"1-404-{path}",
)
def test_unknown_paths_are_404_and_empty(wire: Any, path: str) -> None:
    answer = wire.get(path)
    assert (answer.status, answer.body, answer.headers["content-length"]) == (404, b"", "0")
    assert "location" not in answer.headers


def test_1_a_trailing_slash_is_not_forgiven_to_a_post(wire: Any) -> None:
    answer = wire.post("/generate/", BODY)
    assert (answer.status, answer.body) == (404, b"")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *[("GET", path, "POST") for path in POSTS],
        ("DELETE", "/generate", "POST"),
        ("DELETE", "/", "GET,HEAD,POST"),
        ("PUT", "/models/org/model", "GET,HEAD,POST"),
        ("POST", "/info", "GET,HEAD"),
        ("POST", "/health", "GET,HEAD"),
        ("POST", "/models", "GET,HEAD"),
        ("GET", "/models/org/model/activate", "POST"),
    ],
    ids=lambda value: f"1-405-{value}",
)
def test_wrong_methods_are_405_with_allow_and_empty(wire: Any, method: str, path: str, allowed: str) -> None:
    answer = wire.send(method, path)
    assert (answer.status, answer.body, answer.headers["allow"]) == (405, b"", allowed)


@pytest.mark.parametrize("path", [*POSTS, "/", "/models/org/model"], ids=lambda path: f"1-401-{path}")
def test_with_a_key_set_generation_needs_it_before_the_body_is_read(guarded: Any, path: str) -> None:
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic Secret"},
        {"authorization": "Bearer"},
    ):
        answer = guarded.send("POST", path, "no json at all", **headers)
        assert (answer.status, answer.body) == (401, b"")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"], ids=lambda scheme: f"1-{scheme}")
def test_with_the_key_it_is_served(guarded: Any, scheme: str) -> None:
    assert guarded.post("/generate", BODY, authorization=f"{scheme} Secret").status == 200


@pytest.mark.parametrize("path", GETS, ids=lambda path: f"1-open-{path}")
def test_get_routes_need_no_key(guarded: Any, path: str) -> None:
    assert guarded.get(path).status == 200


@pytest.mark.parametrize("header", ["Bearer anything", "Bearer ", "Basic eDp5", "nonsense"], ids=lambda h: f"1-{h}")
def test_without_a_key_set_any_authorization_is_ignored(wire: Any, header: str) -> None:
    assert wire.post("/generate", BODY, authorization=header).status == 200


def test_1_preflight(wire: Any) -> None:
    answer = wire.send("OPTIONS", "/generate", origin="https://b.example", access_control_request_method="POST")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-methods"] == "GET,POST"
    assert "content-type" in answer.headers["access-control-allow-headers"].split(",")


def test_1_cross_origin_answers_also_errors_are_readable(wire: Any) -> None:
    for answer in (wire.get("/info"), wire.post("/generate", ""), wire.get("/nope"), wire.post("/generate", BODY)):
        assert answer.headers["access-control-allow-origin"] == "*"


def test_1_configured_origins_only(guarded: Any) -> None:
    allowed = guarded.get("/info", origin="https://a.example")
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in guarded.get("/info", origin="https://b.example").headers
    assert "access-control-allow-origin" not in guarded.get("/info").headers
    preflight = guarded.send("OPTIONS", "/generate", origin="https://a.example")
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, "https://a.example")


def test_8_health_has_no_body(wire: Any) -> None:
    for path in ("/health", "/ping", "/", "/readyz", "/models/org/model/health", "/models/org/model/ping"):
        answer = wire.get(path)
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


def test_8_health_before_a_model_is_available(serve: Any, byte_tokenizer_directory: Any, wire: Any) -> None:
    server = serve(f"""
[[models]]
id = "org/model"
path = "{byte_tokenizer_directory}"
[models.device]
kind = "simulated"
vocab_size = 99
load_s = 30
""")
    loading = type(wire)(server.url)
    answer = _once_it_answers(loading, "/health")
    assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
    assert answer.body == b'{"error":"unhealthy","error_type":"healthcheck"}'
    assert re.match(r"org/model is (unloaded|staging|loading)", answer.headers["x-unhealthy-reason"])
    assert loading.get("/livez").status == 200
    assert [model["id"] for model in loading.get("/v1/models").json["data"]] == ["org/model"]
    assert loading.get("/info").json["model_dtype"] is None
    server.process.kill()
    server.process.wait()


def _once_it_answers(wire: Any, path: str) -> Any:
    for _ in range(200):
        try:
            return wire.get(path)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("it never listened")


def test_8_info_byte_for_byte(wire: Any) -> None:
    assert wire.get("/info").body == (
        b'{"model_id":"org/model","model_sha":null,"model_pipeline_tag":"text-generation","max_concurrent_requests":128,'
        b'"max_best_of":2,"max_stop_sequences":4,"max_input_tokens":100,"max_total_tokens":200,"validation_workers":2,'
        b'"max_client_batch_size":4,"router":"text-generation-router","version":"3.3.6-dev0","sha":null,'
        b'"docker_label":null,"model_dtype":"float32","model_device_type":"simulated"}'
    )


def test_8_v1_models(wire: Any) -> None:
    first, second = wire.get("/v1/models").json["data"]
    assert (first["id"], second["id"]) == ("org/model", "org/model-2")
    assert (first["object"], first["created"], first["owned_by"]) == ("model", 0, "org/model")
    assert isinstance(first["description"], str)
    assert first["providers"] == [{"context_length": 200, "provider": "local"}]
    assert wire.get("/v1/models/org/model").json == first


def test_8_an_unknown_model_id_is_404_with_the_two_keys(wire: Any) -> None:
    for path in ("/v1/models/nope", "/models/nope", "/models/org", "/models/org/modelx/generate"):
        answer = wire.get(path)
        assert (answer.status, list(answer.json), answer.json["error_type"]) == (
            404,
            ["error", "error_type"],
            "not_found",
        )
        assert "org/model, org/model-2" in answer.json["error"]


@pytest.fixture(scope="module")
def text(wire: Any) -> str:
    """The metrics after an answered and a refused request."""
    wire.post("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 3}})
    wire.post("/generate", {"inputs": ""})
    answer = wire.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return str(answer.body.decode())


class TestMetrics:
    """Section 15."""

    @pytest.mark.parametrize(
        "name",
        [
            "tgi_request_count",
            "tgi_request_success",
            "tgi_queue_size",
            "tgi_batch_current_size",
            "tgi_request_generated_tokens_sum",
            "tgi_request_generated_tokens_count",
        ],
        ids=lambda name: f"15-{name}",
    )
    def test_plain_series(self, text: str, name: str) -> None:
        assert re.search(rf"^{name} \d", text, re.MULTILINE)

    @pytest.mark.parametrize(
        "name",
        [f"tgi_request_{kind}_duration" for kind in ("validation", "queue", "inference", "mean_time_per_token")]
        + ["tgi_request_duration", "tgi_request_input_length", "tgi_request_max_new_tokens"],
        ids=lambda name: f"15-{name}",
    )
    def test_histograms(self, text: str, name: str) -> None:
        assert re.search(rf'^{name}_bucket{{le="\+Inf"}} [1-9]', text, re.MULTILINE)
        assert re.search(rf"^# TYPE {name} histogram$", text, re.MULTILINE)

    def test_15_counters_have_no_total(self, text: str) -> None:
        assert not re.search(r"^(# \w+ )?tgi_\w*_total\b", text, re.MULTILINE)
        assert re.search(r"^# TYPE tgi_request_count counter$", text, re.MULTILINE)

    def test_15_nothing_is_created(self, text: str) -> None:
        assert "_created" not in text

    def test_15_duration_buckets(self, text: str) -> None:
        bounds = [float(b) for b in re.findall(r'^tgi_request_duration_bucket{le="([\d.e+-]+)"}', text, re.MULTILINE)]
        assert len(bounds) == 35
        assert bounds[0] == pytest.approx(0.00015)
        assert all(b / a == pytest.approx(1.5) for a, b in itertools.pairwise(bounds))

    def test_15_length_buckets_go_to_the_limit_in_100_steps(self, text: str) -> None:
        bounds = re.findall(r'^tgi_request_input_length_bucket{le="([\d.]+)"}', text, re.MULTILINE)
        assert [float(bound) for bound in bounds] == [float(step) for step in range(1, 101)]

    def test_15_failures_by_kind_and_steps_by_method(self, text: str) -> None:
        assert re.search(r'^tgi_request_failure{err="validation"} [1-9]', text, re.MULTILINE)
        for method in ("prefill", "decode"):
            assert re.search(rf'^tgi_batch_inference_count{{method="{method}"}} [1-9]', text, re.MULTILINE)

    def test_15_a_series_without_a_value_is_not_shown(self, guarded: Any) -> None:
        assert b"tgi_request_failure" not in guarded.get("/metrics").body

    def test_15_a_chat_is_counted_once(self, wire: Any) -> None:
        def count() -> float:
            found = re.search(r"^tgi_request_count ([\d.]+)$", wire.get("/metrics").body.decode(), re.MULTILINE)
            assert found
            return float(found[1])

        before = count()
        wire.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
        assert count() == before + 1
        wire.post("/v1/chat/completions", {"messages": []})
        assert count() == before + 2

    @pytest.mark.parametrize(
        ("path", "body", "err"),
        [
            ("/generate", {"inputs": ""}, "validation"),
            ("/generate_stream", {"inputs": ""}, "validation"),
            ("/v1/completions", {"prompt": "x", "suffix": "y"}, "validation"),
            ("/v1/completions", {"prompt": list("abcde")}, "validation"),
            ("/v1/chat/completions", {"messages": [{"role": "forbidden", "content": "x"}]}, "template"),
        ],
        ids=lambda value: f"15-{value}" if isinstance(value, str) else "",
    )
    def test_failures_by_their_cause(self, wire: Any, path: str, body: Any, err: str) -> None:
        def failures() -> dict[str, float]:
            text = wire.get("/metrics").body.decode()
            return {
                name: float(n) for name, n in re.findall(r'^tgi_request_failure{err="(\w+)"} ([\d.]+)$', text, re.M)
            }

        before = failures()
        wire.post(path, body)
        assert failures() == {**before, err: before.get(err, 0) + 1}

    @pytest.mark.parametrize(
        "name", [f"tgi_batch_{kind}_duration" for kind in ("inference", "forward", "decode")], ids=lambda n: f"15-{n}"
    )
    @pytest.mark.parametrize("method", ["prefill", "decode"])
    def test_batches_by_method(self, text: str, name: str, method: str) -> None:
        assert re.search(rf'^{name}_count{{method="{method}"}} [1-9]', text, re.MULTILINE)
