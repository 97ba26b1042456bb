"""A greedy text is a function of its request alone: among 32 others, and across killed workers."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

STEADY = """
[[models]]
id = "one"
path = "{directory}"
[models.device]
kind = "simulated"
vocab_size = 256
slots = 8
step_s = 0.01
"""
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 90}
EVERY_KIND: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1.7, "frequency_penalty": 1.1},
    "filters": {"typical_p": 0.6, "top_k": 9, "seed": 2, "top_n_tokens": 3},
    "json": {"grammar": {"type": "json", "value": {"properties": {"a": NUMBERS}, "required": ["a"]}}},
    "regex": {"grammar": {"type": "regex", "value": "[a-z]{190}"}, "do_sample": True, "seed": 5, "top_p": 0.9},
    "best of": {"best_of": 2, "temperature": 1.4, "top_n_tokens": 2},
    "prompt": {"decoder_input_details": True, "do_sample": True, "seed": 8},
}

TOPICS = [
    "the sea", "a train at night", "北京的春天", "bread", "an old clock", "小猫", "rain on a tin roof", "prime numbers",
    "a letter home", "the number 12345", "mountains", "a broken cup", "emoji 😀🎉", "winter", "a market", "the moon",
]  # fmt: skip


def body(index: int) -> dict[str, Any]:
    prompt = f"{index}. Write a short line about {TOPICS[index % len(TOPICS)]}."
    chat = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    return {"inputs": chat, "parameters": {"max_new_tokens": 6 + 5 * (index % 5), "details": True}}


def token_ids(answer: dict[str, Any]) -> list[int]:
    return [token["id"] for token in answer["details"]["tokens"]]


def test_32_requests_that_join_and_leave_at_random_give_the_texts_they_give_alone(smollm2: Any) -> None:
    alone = [smollm2.post("/generate", body(i)).json() for i in range(32)]
    rng = random.Random(4)
    delays = [rng.uniform(0, 1.5) for _ in range(32)]

    def ask(index: int) -> Any:
        time.sleep(delays[index])
        return smollm2.post("/generate", body(index)).json()

    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(ask, range(32)))
    assert [token_ids(answer) for answer in together] == [token_ids(answer) for answer in alone]
    assert [answer["generated_text"] for answer in together] == [answer["generated_text"] for answer in alone]


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "seed": 3, "temperature": 0.9}], ids=["greedy", "seeded"])
def test_a_worker_killed_under_8_streams_changes_no_text(
    smollm2: Any, read_events: Callable[..., Any], sampling: dict[str, Any]
) -> None:
    def stream(index: int, progress: threading.Semaphore | None = None) -> tuple[list[int], str]:
        wanted = body(index)
        wanted["parameters"].update(max_new_tokens=24, **sampling)
        with httpx.stream("POST", smollm2.url + "/generate_stream", json=wanted, timeout=300) as response:
            seen = []
            for event in read_events(response):
                assert "error" not in event, json.dumps(event)
                assert event["index"] == len(seen) + 1
                seen.append(event["token"]["id"])
                if progress is not None:
                    progress.release()
        return seen, event["generated_text"]

    with ThreadPoolExecutor(8) as pool:
        undisturbed = list(pool.map(stream, range(8)))
        for attempt in range(3):
            progress = threading.Semaphore(0)
            streams = [pool.submit(stream, index, progress) for index in range(8)]
            for _ in range(8 + 30 * attempt):  # killed early, in the middle, late
                progress.acquire()
            killed = smollm2.worker_pid()
            os.kill(killed, signal.SIGKILL)
            assert [each.result() for each in streams] == undisturbed
            smollm2.wait_available()
            assert smollm2.worker_pid() != killed


def test_a_killed_worker_changes_no_answer_of_any_kind(serve: Callable[..., Any], tiny_text_directory: Path) -> None:
    server = serve(STEADY.format(directory=tiny_text_directory))
    server.wait_available()

    def ask(parameters: dict[str, Any]) -> Any:
        wanted = {"inputs": "hello", "parameters": {"max_new_tokens": 200, "details": True, **parameters}}
        answered = server.post("/generate", wanted)
        assert answered.status_code == 200, answered.text
        return answered.json()

    def metric(name: str) -> float:
        lines = server.get("/metrics").text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith(name))

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline

    with ThreadPoolExecutor(len(EVERY_KIND)) as pool:
        undisturbed = dict(zip(EVERY_KIND, pool.map(ask, EVERY_KIND.values()), strict=True))
        before = metric("neuronx_serve_generated_tokens_total")
        asked = {name: pool.submit(ask, parameters) for name, parameters in EVERY_KIND.items()}
        until(lambda: metric("neuronx_serve_generated_tokens_total") > before + 100)
        os.kill(server.worker_pid(), signal.SIGKILL)
        answers = {name: each.result() for name, each in asked.items()}
    assert metric("neuronx_serve_replays_total") > 0
    best = answers.pop("best of")
    del undisturbed["best of"]
    assert answers == undisturbed
    sequences = [{**best["details"], "generated_text": best["generated_text"]}, *best["details"]["best_of_sequences"]]
    for sequence in sequences:  # each seed draws its own sequence again, undisturbed
        again = ask({**EVERY_KIND["best of"], "best_of": 1, "seed": sequence["seed"]})
        assert again["generated_text"] == sequence["generated_text"]
        for part in ("tokens", "top_tokens"):
            assert again["details"][part] == sequence[part]
