"""The whole server over HTTP with a Neuron configuration at tp_degree 2, on the real library: the CPU backend's texts.

Needs the library's source and an interpreter that can run it (docs/neuron.md); skips without them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

Model = tuple[Any, Any]

NEURON = """
[worker]
python = "{python}"
restarts = 5
[[models]]
id = "tiny"
path = "{directory}"
[models.device]
kind = "neuron"
slots = 4
n_positions = 64
amp = "f32"
tp_degree = 2
context_buckets = [16, 32]
token_buckets = [32, 64]
"""
CPU = """
[[models]]
id = "tiny"
path = "{directory}"
[models.device]
kind = "cpu"
slots = 4
n_positions = 64
chunk = 64
"""


@pytest.fixture(scope="module", params=["llama3", "mistral", "codellama"])
def servers(
    request: pytest.FixtureRequest,
    serve: Callable[..., Any],
    tiny_checkpoint: Callable[..., Path],
    emulated_worker: Any,
) -> Model:
    """(Neuron over the emulator, CPU) with the same tiny checkpoint."""
    directory = tiny_checkpoint(request.param)
    neuron = serve(
        NEURON.format(python=emulated_worker.python, directory=directory), env=dict(emulated_worker.environment)
    )
    cpu = serve(CPU.format(directory=directory))
    neuron.wait_available()
    cpu.wait_available()
    return neuron, cpu


def greedy(server: Any, inputs: str, max_new_tokens: int | None) -> list[int]:
    body = {"inputs": inputs, "parameters": {"max_new_tokens": max_new_tokens, "details": True}}
    return [token["id"] for token in server.post("/generate", body).json()["details"]["tokens"]]


PROMPTS = ["a", "hello there", "x" * 15, "y" * 16, "z" * 30, "def f(x):", "计算", "1234567890"]


def test_greedy_texts_are_those_of_the_cpu_backend(servers: Model) -> None:
    neuron, cpu = servers
    for prompt in PROMPTS:
        assert greedy(neuron, prompt, 20) == greedy(cpu, prompt, 20), prompt


def test_8_requests_that_join_and_leave_give_the_texts_they_give_alone(servers: Model) -> None:
    neuron, cpu = servers
    lengths = [5 + 3 * index for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda index: greedy(neuron, PROMPTS[index], lengths[index]), range(8)))
    assert together == [greedy(cpu, prompt, length) for prompt, length in zip(PROMPTS, lengths, strict=True)]


def test_a_sequence_reaches_n_positions(servers: Model) -> None:
    neuron, cpu = servers
    assert greedy(neuron, "hello", None) == greedy(cpu, "hello", None)


def test_a_prompt_over_the_largest_bucket_is_a_clients_mistake(servers: Model) -> None:
    neuron, _ = servers
    answer = neuron.post("/generate", {"inputs": "x" * 40, "parameters": {"max_new_tokens": 2}})
    assert answer.status_code == 422
    assert "must have less than 32 tokens" in answer.json()["error"]


def test_a_worker_killed_in_mid_stream_is_replaced_and_the_texts_go_on(
    servers: Model, read_events: Callable[..., Any]
) -> None:
    neuron, cpu = servers
    started = threading.Semaphore(0)

    def stream(prompt: str) -> list[int]:
        body = {"inputs": prompt, "parameters": {"max_new_tokens": 30}}
        tokens = []
        with httpx.stream("POST", neuron.url + "/generate_stream", json=body, timeout=120) as response:
            for event in read_events(response):
                tokens.append(event["token"]["id"])
                started.release()
        return tokens

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(stream, prompt) for prompt in PROMPTS[:4]]
        for _ in range(6):
            started.acquire()
        os.kill(neuron.worker_pid(), signal.SIGKILL)
        assert [answer.result() for answer in answers] == [greedy(cpu, prompt, 30) for prompt in PROMPTS[:4]]
    neuron.wait_available()
