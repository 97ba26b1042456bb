"""Sections 7 and 8 of the wire contract: permits, and clients that leave. A server of two permits and one slot."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

OVERLOADED = b'{"error":"Model is overloaded","error_type":"overloaded"}'
LONG = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 150}})
SHORT = {"inputs": "x", "parameters": {"max_new_tokens": 1}}


def request(slow: Any, path: str, body: str = LONG) -> bytes:
    return bytes(slow.request("POST", path, body, content_type="application/json"))


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never became true")


def entry(slow: Any) -> Any:
    return slow.get("/models/org/model").json


def idle(slow: Any) -> None:
    eventually(lambda: (entry(slow)["running"], entry(slow)["waiting"]) == (0, 0))


def dropped(slow: Any) -> float:
    found = re.search(
        r'^tgi_request_failure{err="dropped"} ([\d.]+)$', slow.get("/metrics").body.decode(), re.MULTILINE
    )
    return float(found[1]) if found else 0.0


class TestFull:
    """Both permits are held: one request runs, one waits."""

    @pytest.fixture(autouse=True)
    def two_requests(self, slow: Any) -> Any:
        idle(slow)
        with slow.connection(request(slow, "/generate_stream")), slow.connection(request(slow, "/generate")):
            eventually(lambda: (entry(slow)["running"], entry(slow)["waiting"]) == (1, 1))
            yield
        idle(slow)

    def test_8_plain_requests_are_429_without_retry_after(self, slow: Any) -> None:
        answer = slow.post("/generate", SHORT)
        assert (answer.status, answer.body) == (429, OVERLOADED)
        assert "retry-after" not in answer.headers

    def test_8_an_invalid_request_is_overloaded_too(self, slow: Any) -> None:
        assert slow.post("/generate", {"inputs": ""}).body == OVERLOADED

    def test_4_but_what_the_route_cannot_do_is_said_first(self, slow: Any) -> None:
        answer = slow.post("/generate", {"inputs": "x", "parameters": {"best_of": 3}})
        assert answer.json["error_type"] == "validation"

    def test_2a_and_so_is_a_body_that_cannot_be_read(self, slow: Any) -> None:
        assert slow.post("/generate", "").status == 400

    def test_7_a_stream_gets_an_event(self, slow: Any) -> None:
        answer = slow.post("/generate_stream", SHORT)
        assert (answer.status, answer.body) == (200, b"data: " + OVERLOADED + b"\n\n")

    def test_8_chat(self, slow: Any) -> None:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        plain = slow.post("/v1/chat/completions", body)
        assert (plain.status, plain.body) == (429, OVERLOADED)
        streamed = slow.post("/v1/chat/completions", {**body, "stream": True})
        golden = b'data: {"error":{"message":"Model is overloaded","http_status_code":422}}\n\ndata: [DONE]\n\n'
        assert streamed.body == golden

    def test_8_health_stays_200(self, slow: Any) -> None:
        assert slow.get("/health").status == 200


@pytest.mark.parametrize("path", ["/generate_stream", "/generate", "/"])
def test_7_a_client_that_leaves_frees_slot_and_permit_and_is_counted(slow: Any, path: str) -> None:
    idle(slow)
    before = dropped(slow)
    with slow.connection(request(slow, path)):
        eventually(lambda: entry(slow)["running"] == 1)
    idle(slow)
    assert dropped(slow) == before + 1
    assert slow.post("/generate", SHORT).status == 200


@pytest.mark.parametrize("path", ["/generate_stream", "/generate"])
def test_7_a_waiting_client_that_leaves_is_dropped_before_it_ever_runs(slow: Any, path: str) -> None:
    idle(slow)
    with slow.connection(request(slow, "/generate_stream")):
        eventually(lambda: entry(slow)["running"] == 1)
        with slow.connection(request(slow, path)):
            eventually(lambda: entry(slow)["waiting"] == 1)
        eventually(lambda: entry(slow)["waiting"] == 0)
    idle(slow)


def test_a_client_that_leaves_while_sending_its_body_holds_nothing(slow: Any) -> None:
    idle(slow)
    with slow.connection(request(slow, "/generate")[:-5]):
        pass
    assert slow.post("/generate", SHORT).status == 200
