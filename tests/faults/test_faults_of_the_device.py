"""A device that hangs, or that another worker cannot cure: found by its deadline, replaced or given up, reported.

`step_timeout` is far above what a test may take: only the deadline from the measured step finds a hang here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

SIMULATED = """
[worker]
step_timeout = 3600
[[models]]
id = "simulated"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 200
step_s = 0.01
prefill_token_s = 0.0001
faults = [{faults}]
"""
BODY = {"inputs": "hello", "parameters": {"max_new_tokens": 20}}


@pytest.fixture
def serve_with(serve: Callable[..., Any], tiny_text_directory: Path, tmp_path: Path) -> Callable[[str], Any]:
    """A server whose first worker meets the given fault; the directory is the test's own, for the fault's mark."""

    def start(faults: str) -> Any:
        for file in tiny_text_directory.iterdir():
            if not file.name.startswith("."):
                (tmp_path / file.name).write_bytes(file.read_bytes())
        server = serve(SIMULATED.format(directory=tmp_path, faults=faults))
        server.wait_available()
        return server

    return start


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ('"decode:5=hang:once"', "a decode step took longer than its deadline of 2 s"),
        ('"feed:0=hang:once"', "a feed of 5 tokens took longer than its deadline of 2 s"),
    ],
)
def test_a_hang_is_found_by_its_deadline_and_the_stream_goes_on(
    serve_with: Callable[[str], Any], read_events: Callable[..., Any], fault: str, found: str
) -> None:
    server = serve_with(fault)
    with httpx.stream("POST", server.url + "/generate_stream", json=BODY, timeout=60) as response:
        events = list(read_events(response))
    assert found in server.log.read_text()
    assert [event["index"] for event in events] == list(range(1, 21))
    undisturbed = server.post("/generate", {**BODY, "parameters": {"max_new_tokens": 20, "details": True}}).json()
    assert [event["token"]["id"] for event in events] == [t["id"] for t in undisturbed["details"]["tokens"]]


def test_what_only_the_configuration_can_cure_is_not_tried_again(serve_with: Callable[[str], Any]) -> None:
    server = serve_with('"decode:5=configuration"')
    answer = server.post("/generate", BODY)
    assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")
    (entry,) = server.get("/models").json()["data"]
    assert entry["state"] == "failed"
    assert entry["error"] == "scheduled fault at decode call 5"
    assert server.log.read_text().count("is lost: ") == 1
