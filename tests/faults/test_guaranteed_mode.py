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
from typing import Any

import httpx
import pytest

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
