"""Section 7 of the wire contract: streams, byte for byte, one write an event."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

FLOAT = rb"-?\d+\.\d+(?:e-?\d+)?"
TOKEN = rb'\{"id":\d+,"text":"(?:[^"\\]|\\.)*","logprob":' + FLOAT + rb',"special":(?:true|false)\}'
TEXT = rb'"(?:[^"\\]|\\.)*"'


def stream(wire: Any, route: str = "/generate_stream", **parameters: Any) -> Any:
    return wire.post(route, {"inputs": "hello", "parameters": {"max_new_tokens": 3, **parameters}, "stream": True})


def test_7_events_byte_for_byte(wire: Any) -> None:
    first, second, last = stream(wire, details=True).chunks
    for number, chunk in enumerate((first, second), 1):
        golden = rb'data: \{"index":%d,"token":' % number + TOKEN + rb',"generated_text":null,"details":null\}\n\n'
        assert re.fullmatch(golden, chunk)
    golden = rb'data: \{"index":3,"token":' + TOKEN + rb',"generated_text":' + TEXT
    golden += rb',"details":\{"finish_reason":"length","generated_tokens":3,"seed":null,"input_length":6\}\}\n\n'
    assert re.fullmatch(golden, last)


def test_7_without_details_they_are_null_to_the_end(wire: Any) -> None:
    last = stream(wire).events[-1]
    assert last["details"] is None
    assert isinstance(last["generated_text"], str)


def test_7_top_tokens_follow_the_token(wire: Any) -> None:
    golden = rb'data: \{"index":1,"token":' + TOKEN + rb',"top_tokens":\[' + TOKEN + b"," + TOKEN + rb"\],.*\n\n"
    assert re.fullmatch(golden, stream(wire, top_n_tokens=2).chunks[0])


def test_7_headers(wire: Any) -> None:
    answer = stream(wire)
    assert answer.status == 200
    del answer.headers["date"]
    assert answer.headers == {
        "content-type": "text/event-stream",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
        "x-compute-type": "gpu+optimized",
        "x-compute-characters": "5",
        "vary": "origin, access-control-request-method, access-control-request-headers",
        "access-control-allow-origin": "*",
        "connection": "close",
        "transfer-encoding": "chunked",
    }


@pytest.mark.parametrize("route", ["/generate_stream", "/", "/models/org/model", "/models/org/model/generate_stream"])
def test_7_native_streams_never_say_done(wire: Any, route: str) -> None:
    answer = stream(wire, route)
    assert b"[DONE]" not in answer.body
    assert [event["index"] for event in answer.events] == [1, 2, 3]


def test_7_the_stream_and_the_plain_answer_are_the_same_text(wire: Any) -> None:
    plain = wire.post("/generate", {"inputs": "hello", "parameters": {"max_new_tokens": 50}}).json
    assert stream(wire, max_new_tokens=50).events[-1]["generated_text"] == plain["generated_text"]


def test_7_full_text_is_in_the_last_event_only(wire: Any) -> None:
    events = stream(wire, "/").events
    assert events[-1]["generated_text"].startswith("hello")
    assert not events[0]["token"]["text"].startswith("hello")


def test_7_an_end_of_sequence_token_is_an_event_and_special(wire: Any) -> None:
    answer = stream(wire, "/models/org/model-2/generate_stream", max_new_tokens=50, details=True)
    last = answer.events[-1]
    assert last["details"]["finish_reason"] == "eos_token"
    assert last["details"]["generated_tokens"] == len(answer.events) == last["index"]
    assert (last["token"]["text"], last["token"]["special"]) == ("</s>", True)
    assert "</s>" not in last["generated_text"]
    assert wire.post("/models/org/model/activate?wait=true", {}).status == 200


def test_7_every_event_is_a_write_of_its_own(wire: Any) -> None:
    chunks = stream(wire, max_new_tokens=60).chunks
    assert len(chunks) == 60
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"}\n\n") for chunk in chunks)


def test_7_no_carriage_return_no_event_name_no_ping(wire: Any) -> None:
    body = stream(wire, max_new_tokens=60).body
    assert b"\r" not in body
    lines = body.split(b"\n")
    assert all(line == b"" or line.startswith(b"data: ") for line in lines)


def test_7_comments_fill_the_silence_before_the_first_token(slow: Any) -> None:
    """One slot: the second request waits until the first one's client leaves."""
    long, short = (
        slow.request(
            "POST",
            "/generate_stream",
            json.dumps({"inputs": "x", "parameters": {"max_new_tokens": tokens}}),
            content_type="application/json",
        )
        for tokens in (190, 3)
    )
    slow.settle(running=0, waiting=0)
    with slow.connection(long) as first:
        slow.settle(running=1, waiting=0)
        with slow.connection(short) as second:
            raw = b""
            while raw.count(b":\n\n") < 2:
                received = second.recv(4096)
                assert received, raw
                raw += received
            first.close()
            while received := second.recv(4096):
                raw += received
    answer = slow.answer(raw)
    assert answer.chunks[:2] == (b":\n\n", b":\n\n")
    assert [event["index"] for event in answer.events] == [1, 2, 3]


def test_7_headers_arrive_before_the_first_token(slow: Any) -> None:
    body = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 40}})
    request = slow.request("POST", "/generate_stream", body, content_type="application/json")
    with slow.connection(request) as first, slow.connection(request) as second:
        first.recv(100)
        assert second.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
