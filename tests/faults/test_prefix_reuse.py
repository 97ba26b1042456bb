"""What a slot still holds of a chat is not computed again, for nobody but its own key, and no text shows it."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import pytest

SYSTEM = {"role": "system", "content": "You answer in one short sentence and never mention the weather, cats or 42."}
QUESTIONS = ["What is the capital of France?", "And that of Spain?", "Say 你好 to both."]


def chat(server: Any, messages: list[dict[str, str]], key: str, sampling: dict[str, Any]) -> tuple[str, int, int]:
    """(text, prompt tokens, cached tokens)"""
    body = {"messages": messages, "max_tokens": 16, **sampling}
    answer = server.post("/v1/chat/completions", body, headers={"authorization": f"Bearer {key}"}).json()
    usage = answer["usage"]
    details = usage.get("prompt_tokens_details", {"cached_tokens": 0})
    return answer["choices"][0]["message"]["content"], usage["prompt_tokens"], details["cached_tokens"]


def metric(server: Any, name: str) -> float:
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.2, "seed": 5}], ids=["greedy", "seeded"])
def test_the_next_turn_costs_its_new_tokens_and_says_what_it_would_have_said(
    smollm2: Any, sampling: dict[str, Any]
) -> None:
    key = uuid.uuid4().hex
    strangers = (uuid.uuid4().hex for _ in itertools.count())
    messages = [SYSTEM]
    costs = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        fresh, _, nothing = chat(smollm2, messages, next(strangers), sampling)
        before = metric(smollm2, "neuronx_serve_reused_prompt_tokens_total")
        text, prompt_tokens, cached = chat(smollm2, messages, key, sampling)
        assert metric(smollm2, "neuronx_serve_reused_prompt_tokens_total") - before == cached
        assert nothing == 0, "another key's prefix is nobody's business"
        assert text == fresh
        costs.append((prompt_tokens, cached))
        messages.append({"role": "assistant", "content": text})
    assert costs[0][1] == 0
    for (earlier, _), (_, cached) in itertools.pairwise(costs):
        assert cached >= earlier, "all of the last prompt, and what its answer has in common with its text"


def test_a_repeated_system_prompt_is_fed_once(smollm2: Any) -> None:
    key = uuid.uuid4().hex
    greedy = {"temperature": 0}
    _, first, _ = chat(smollm2, [SYSTEM, {"role": "user", "content": "Hi!"}], key, greedy)
    _, other, cached = chat(smollm2, [SYSTEM, {"role": "user", "content": "Name a colour."}], key, greedy)
    assert 20 < cached < min(first, other)


def test_two_chats_of_one_system_prompt_keep_what_each_has_said(smollm2: Any) -> None:
    key = uuid.uuid4().hex
    chats = [[SYSTEM, {"role": "user", "content": question}] for question in ("Name a river.", "Name a mountain.")]
    lengths: list[int] = []
    for turn in range(2):
        for number, messages in enumerate(chats):
            text, prompt_tokens, cached = chat(smollm2, messages, key, {"temperature": 0})
            assert text == chat(smollm2, messages, uuid.uuid4().hex, {"temperature": 0})[0]
            if turn == 0:
                lengths.append(prompt_tokens)
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And another?"}]
            else:
                assert cached >= lengths[number]
