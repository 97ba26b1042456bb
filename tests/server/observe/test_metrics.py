"""The Prometheus text, series by series."""

from __future__ import annotations

import re

from models.protocol import SamplingParams
from server.core import Limits, Request, Timings
from server.observe.metrics import Metrics

REQUEST = Request(model="m", prompt=(1, 2, 3), text="x", max_new_tokens=7, sampling=SamplingParams())
TIMINGS = Timings(arrived=100.0, validated=100.5, started=101.0, first_token=102.0, ended=106.0)


def value(metrics: Metrics, series: str) -> float | None:
    found = re.search(rf"^{re.escape(series)} (\S+)$", metrics.render().decode(), re.MULTILINE)
    return float(found[1]) if found else None


def test_nothing_is_shown_before_it_has_a_value() -> None:
    assert Metrics().render() == b""


def test_a_finished_request() -> None:
    metrics = Metrics()
    metrics.request_started()
    metrics.request_succeeded()
    metrics.sequence_finished(REQUEST, TIMINGS, generated_tokens=5)
    expected = {
        "tgi_request_count": 1,
        "tgi_request_success": 1,
        "tgi_request_duration_sum": 6.0,
        "tgi_request_validation_duration_sum": 0.5,
        "tgi_request_queue_duration_sum": 0.5,
        "tgi_request_inference_duration_sum": 5.0,
        "tgi_request_mean_time_per_token_duration_sum": 1.0,
        "tgi_request_input_length_sum": 3,
        "tgi_request_max_new_tokens_sum": 7,
        "tgi_request_generated_tokens_sum": 5,
        "neuronx_serve_time_to_first_token_seconds_sum": 2.0,
        "neuronx_serve_inter_token_seconds_sum": 1.0,
    }
    assert {series: value(metrics, series) for series in expected} == expected


def test_an_answer_of_one_token_has_no_interval() -> None:
    metrics = Metrics()
    metrics.request_succeeded()
    metrics.sequence_finished(REQUEST, TIMINGS, generated_tokens=1)
    assert value(metrics, "neuronx_serve_inter_token_seconds_count") is None


def test_failures_and_steps_carry_their_labels() -> None:
    metrics = Metrics()
    metrics.request_failed("dropped")
    metrics.observe_step("decode", 0.02, requests=3, drawn=2, sampling_s=0.004, idle_s=0.001)
    metrics.step_failed("decode")
    assert value(metrics, 'tgi_request_failure{err="dropped"}') == 1
    assert value(metrics, 'tgi_batch_inference_count{method="decode"}') == 2
    assert value(metrics, 'neuronx_serve_step_sampling_seconds_sum{method="decode"}') == 0.004
    assert value(metrics, 'neuronx_serve_step_idle_seconds_sum{method="decode"}') == 0.001
    assert value(metrics, 'tgi_batch_inference_success{method="decode"}') == 1
    assert value(metrics, 'tgi_batch_inference_failure{method="decode"}') == 1
    assert value(metrics, 'tgi_batch_forward_duration_sum{method="decode"}') == 0.02
    assert value(metrics, 'tgi_batch_next_size_bucket{le="3.0"}') == 1
    assert value(metrics, 'tgi_batch_next_size_bucket{le="2.0"}') == 0


def test_our_own_counters_keep_their_total() -> None:
    metrics = Metrics()
    metrics.worker_restarted()
    metrics.model_exchanged("org/model", 2.0)
    assert value(metrics, "neuronx_serve_worker_restarts_total") == 1
    assert value(metrics, 'neuronx_serve_exchanges_total{model="org/model"}') == 1


def test_gauges_show_the_last_value() -> None:
    metrics = Metrics()
    metrics.queue_size(3)
    metrics.queue_size(0)
    assert value(metrics, "tgi_queue_size") == 0


def test_a_decode_step_stands_beside_its_floor_where_that_is_known() -> None:
    metrics = Metrics()
    metrics.decode_step("org/model", 1024, 0.031, 0.018)
    metrics.decode_step("org/cpu", 2048, 0.05, None)
    assert value(metrics, 'neuronx_serve_decode_step_seconds{bucket="1024",model="org/model"}') == 0.031
    assert value(metrics, 'neuronx_serve_decode_floor_seconds{bucket="1024",model="org/model"}') == 0.018
    assert value(metrics, 'neuronx_serve_decode_step_seconds{bucket="2048",model="org/cpu"}') == 0.05
    assert value(metrics, 'neuronx_serve_decode_floor_seconds{bucket="2048",model="org/cpu"}') is None


def test_length_buckets_cover_the_largest_model() -> None:
    metrics = Metrics()
    small, large = (Limits(max_input_tokens=n, max_total_tokens=2 * n) for n in (100, 4000))
    metrics.cover([small, large])
    metrics.request_succeeded()
    metrics.sequence_finished(REQUEST, TIMINGS, generated_tokens=1)
    assert value(metrics, 'tgi_request_input_length_bucket{le="4000.0"}') == 1
    assert value(metrics, 'tgi_request_input_length_bucket{le="40.0"}') == 1
    assert value(metrics, 'tgi_request_generated_tokens_bucket{le="8000.0"}') == 1


def test_two_servers_in_one_process_do_not_share() -> None:
    one, other = Metrics(), Metrics()
    one.request_started()
    assert value(other, "tgi_request_count") is None


def test_the_api_process_tells_its_tasks_and_what_the_kernel_counts() -> None:
    metrics = Metrics()
    metrics.api_process(tasks=4)
    metrics.api_process(tasks=3)
    assert value(metrics, "neuronx_serve_tasks") == 3
    for series in ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"):
        found = value(metrics, series)
        assert found is not None
        assert found > 0


def test_a_model_is_in_one_state_and_gone_with_the_configuration() -> None:
    metrics = Metrics()
    metrics.model_states({"org/model": "failed", "org/other": "available"}, ("available", "failed"), healthy=True)
    assert value(metrics, 'neuronx_serve_model_state{model="org/model",state="failed"}') == 1
    assert value(metrics, 'neuronx_serve_model_state{model="org/model",state="available"}') == 0
    assert value(metrics, "neuronx_serve_healthy") == 1
    metrics.model_states({"org/other": "available"}, ("available", "failed"), healthy=False)
    assert value(metrics, 'neuronx_serve_model_state{model="org/model",state="failed"}') is None
    assert value(metrics, "neuronx_serve_healthy") == 0
