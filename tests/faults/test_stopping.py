"""SIGTERM: running answers are finished, new work is refused, the process exits with 0 and leaves no worker behind."""

from __future__ import annotations

import signal
from collections.abc import Callable
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
        import time

        time.sleep(0.05)
    raise AssertionError(f"the worker {worker} outlived its server")
