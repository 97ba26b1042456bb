"""Sections 6 and 7 of the wire contract: an answer is the same tokens streamed or not, and their texts are its text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

CORPUS = {
    "chinese": "请用中文回答：你好，",
    "emoji": "Repeat: 👩‍👩‍👧 🎉 🇫🇷 👍🏽",
    "code": "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "long-words": "Donaudampfschifffahrtsgesellschaftskapitän" * 3,
    "accents": "Ça déjà été naïve, Žluťoučký kůň",
    "spaces": "a  b\t\tc\n\n\n   d",
}
SPLIT = ("chinese", "emoji", "accents")  # those with characters that the tokenizer splits


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 2.5, "seed": 11}], ids=["greedy", "wild"])
@pytest.mark.parametrize("name", CORPUS, ids=lambda name: f"6-7-{name}")
def test_streamed_is_plain(smollm2: Any, read_events: Callable[..., Any], name: str, sampling: dict[str, Any]) -> None:
    parameters = {"max_new_tokens": 40, "details": True, "top_n_tokens": 2, **sampling}
    body = {"inputs": CORPUS[name], "parameters": parameters}
    plain = smollm2.post("/generate", body).json()
    with httpx.stream("POST", smollm2.url + "/generate_stream", json=body, timeout=60) as response:
        events = list(read_events(response))
    assert [event["token"] for event in events] == plain["details"]["tokens"]
    assert [event["top_tokens"] for event in events] == plain["details"]["top_tokens"]
    assert events[-1]["generated_text"] == plain["generated_text"]
    texts = [token["text"] for token in plain["details"]["tokens"] if not token["special"]]
    assert "".join(texts) == plain["generated_text"]


@pytest.mark.parametrize("name", CORPUS, ids=lambda name: f"11-{name}")
def test_streamed_chats_are_plain_chats(smollm2: Any, read_events: Callable[..., Any], name: str) -> None:
    body = {"messages": [{"role": "user", "content": CORPUS[name]}], "max_tokens": 40, "temperature": 2.5, "seed": 5}
    plain = smollm2.post("/v1/chat/completions", body).json()
    with httpx.stream(
        "POST", smollm2.url + "/v1/chat/completions", json={**body, "stream": True}, timeout=60
    ) as response:
        deltas = [event["choices"][0]["delta"]["content"] for event in read_events(response)]
    assert "".join(deltas) == plain["choices"][0]["message"]["content"]
    assert len(deltas) == plain["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    "name",
    [name if name in SPLIT else pytest.param(name, marks=pytest.mark.long) for name in CORPUS],
    ids=lambda name: f"6-7-10-{name}",
)
def test_an_answer_of_which_every_byte_is_known(smollm2: Any, read_events: Callable[..., Any], name: str) -> None:
    """A grammar leaves the model only the text of the corpus: what comes is that text and no U+FFFD, whole and in
    tokens, although many tokens of its emoji, Chinese and accents are pieces of a character."""
    wanted = CORPUS[name]
    exactly = {"type": "regex", "value": re.sub(r"[.^$*+?{}\[\]()|\\]", r"\\\g<0>", wanted)}
    body = {"inputs": "Say it:", "parameters": {"max_new_tokens": 200, "details": True, "grammar": exactly}}
    plain = smollm2.post("/generate", body).json()
    assert plain["generated_text"] == wanted
    with httpx.stream("POST", smollm2.url + "/generate_stream", json=body, timeout=120) as response:
        events = list(read_events(response))
    assert events[-1]["generated_text"] == wanted
    for tokens in (plain["details"]["tokens"], [event["token"] for event in events]):
        assert "".join(token["text"] for token in tokens if not token["special"]) == wanted
    pieces = [event["token"]["text"] for event in events[:-1]]
    assert ("" in pieces) == (name in SPLIT)
