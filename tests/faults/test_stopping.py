"""SIGTERM: running answers are finished, new work is refused, the process exits with 0 and leaves no worker behind."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

SLOW = """
[[models]]
id = "simulated"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 300
step_s = 0.05
"""

ENDLESS = {"max_new_tokens": 1000}  # 50 s of the slow device at least, far beyond the deadline
PLAIN = [
    ("/generate", {"inputs": "hello", "parameters": ENDLESS}, 1),
    ("/generate", {"inputs": "hello", "parameters": {**ENDLESS, "best_of": 2, "do_sample": True}}, 2),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1000}, 1),
    ("/v1/completions", {"prompt": ["hello", "you"], "max_tokens": 1000}, 2),
]
STREAMS = [
    ("/generate_stream", PLAIN[0][1]),
    ("/v1/chat/completions", {**PLAIN[2][1], "stream": True}),
    ("/v1/completions", {**PLAIN[3][1], "stream": True}),
]
CUT = {"error": "Incomplete generation", "error_type": "incomplete_generation"}
SEQUENCES = sum(count for *_, count in PLAIN) + 4


def test_at_the_deadline_plain_requests_are_503_and_streams_end_with_an_error(
    serve: Callable[..., Any], tiny_text_directory: Path, read_events: Callable[..., Any]
) -> None:
    device = f"slots = {SEQUENCES}\nn_positions = 1100\neos_token = 255\n"  # never drawn
    server = serve("[server]\nstop_deadline = 0.5\n" + SLOW.format(directory=tiny_text_directory) + device)
    server.wait_available()
    with ExitStack() as opened:
        pool = opened.enter_context(ThreadPoolExecutor(len(PLAIN)))
        plain = [pool.submit(server.post, path, body) for path, body, _ in PLAIN]
        responses = [
            opened.enter_context(httpx.stream("POST", server.url + path, json=body, timeout=60))
            for path, body in STREAMS
        ]
        deadline = time.monotonic() + 60
        while server.get("/models/simulated").json()["running"] < SEQUENCES:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        for answer in (each.result() for each in plain):
            assert (answer.status_code, answer.json()) == (503, CUT)
            assert "retry-after" not in answer.headers
        native, *openai = [list(read_events(response)) for response in responses]
    assert native[-1] == {"error": "Incomplete generation stream", "error_type": "incomplete_generation_stream"}
    for seen in openai:
        assert [event for event in seen if "error" in event] == [seen[-1]]
        assert seen[-1]["error"]["message"] == "Incomplete generation stream"
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.log.read_text()


def test_a_stream_cut_by_nobody_ends_with_all_its_events(
    serve: Callable[..., Any], tiny_text_directory: Path, read_events: Callable[..., Any]
) -> None:
    server = serve(SLOW.format(directory=tiny_text_directory))
    server.wait_available()
    worker = server.worker_pid()
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 30}}
    with httpx.stream("POST", server.url + "/generate_stream", json=body, timeout=60) as response:
        reader = read_events(response)
        seen = [next(reader) for _ in range(5)]
        server.process.send_signal(signal.SIGTERM)
        seen.append(next(reader))
        refused = server.post("/generate", body)
        assert refused.status_code == 503
        assert refused.json()["error_type"] == "unavailable"
        health = server.get("/health")
        assert (health.status_code, health.headers["x-unhealthy-reason"]) == (503, "stopping")
        seen.extend(reader)
    assert [event["index"] for event in seen] == list(range(1, 31))
    assert seen[-1]["generated_text"] is not None
    assert server.process.wait(20) == 0
    assert not Path(f"/proc/{worker}").exists()


def test_a_killed_server_takes_its_worker_with_it(serve: Callable[..., Any], tiny_text_directory: Path) -> None:
    server = serve(SLOW.format(directory=tiny_text_directory))
    server.wait_available()
    worker = server.worker_pid()
    server.process.kill()
    server.process.wait()
    for _ in range(200):
        status = Path(f"/proc/{worker}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"the worker {worker} outlived its server")
