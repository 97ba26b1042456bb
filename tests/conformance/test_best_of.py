"""best_of and decoder_input_details over the wire (wire contract, sections 3, 4 and 6)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.cpu.embedded import embedded_directory

SAMPLED = {"best_of": 2, "do_sample": True, "max_new_tokens": 6, "details": True}


def answer(wire: Any, **parameters: Any) -> Any:
    got = wire.post("/generate", {"inputs": "abc", "parameters": parameters})
    assert got.status == 200, got.body
    return got.json


def mean(sequence: Any) -> float:
    logprobs = [token["logprob"] for token in sequence["tokens"]]
    return float(sum(logprobs) / len(logprobs))


def test_6_the_winner_has_the_highest_mean_logprob(wire: Any) -> None:
    winners = set()
    for _ in range(8):
        details = answer(wire, **SAMPLED)["details"]
        (other,) = details["best_of_sequences"]
        assert mean(details) >= mean(other)
        assert list(other) == ["generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens"]
        assert (other["finish_reason"], other["generated_tokens"], len(other["tokens"])) == ("length", 6, 6)
        winners.add(details["seed"])
    assert len(winners) == 8


def test_6_each_seed_reproduces_its_own_sequence(wire: Any) -> None:
    got = answer(wire, **SAMPLED, top_n_tokens=2)
    (other,) = got["details"]["best_of_sequences"]
    assert got["details"]["seed"] != other["seed"]
    alone = {"do_sample": True, "max_new_tokens": 6, "details": True, "top_n_tokens": 2}
    for text, sequence in ((got["generated_text"], got["details"]), (other["generated_text"], other)):
        again = answer(wire, **alone, seed=sequence["seed"])
        assert again["generated_text"] == text
        assert again["details"]["tokens"] == sequence["tokens"]
        assert again["details"]["top_tokens"] == sequence["top_tokens"]


def test_6_a_temperature_of_1_alone_is_greedy_and_has_no_seed(wire: Any) -> None:
    """It counts as a wish to sample (section 4, row 1), and not as sampling (section 3)."""
    got = answer(wire, best_of=2, temperature=1.0, max_new_tokens=6, details=True)
    (other,) = got["details"]["best_of_sequences"]
    assert (got["details"]["seed"], other["seed"]) == (None, None)
    assert other["generated_text"] == got["generated_text"]


@pytest.mark.parametrize("best_of", [None, 0, 1])
def test_6_one_sequence_has_no_others(wire: Any, best_of: int | None) -> None:
    assert "best_of_sequences" not in answer(wire, **{**SAMPLED, "best_of": best_of})["details"]


def test_6_without_details_only_the_text_comes(wire: Any) -> None:
    assert list(answer(wire, **{**SAMPLED, "details": False})) == ["generated_text"]


def test_6_the_full_text_of_every_sequence(wire: Any) -> None:
    got = answer(wire, **SAMPLED, return_full_text=True)
    texts = [got["generated_text"], got["details"]["best_of_sequences"][0]["generated_text"]]
    assert all(text.startswith("abc") for text in texts)


def test_6_each_run_takes_a_permit_all_or_none(slow: Any) -> None:
    """`slow` has two permits."""
    busy: list[Any] = []
    body = {"inputs": "x", "parameters": {"max_new_tokens": 100}}
    running = threading.Thread(target=lambda: busy.append(slow.post("/generate", body)))
    running.start()
    while slow.get("/models/org/model").json["running"] == 0 and running.is_alive():
        time.sleep(0.02)
    refused = slow.post("/generate", {"inputs": "x", "parameters": SAMPLED})
    assert (refused.status, refused.json["error_type"]) == (429, "overloaded")
    single = {**SAMPLED, "best_of": 1, "max_new_tokens": 1}
    assert slow.post("/generate", {"inputs": "x", "parameters": single}).status == 200
    running.join()
    assert busy[0].status == 200
    assert slow.post("/generate", {"inputs": "x", "parameters": SAMPLED}).status == 200


def test_7_a_client_that_leaves_frees_every_run(serve: Callable[..., Any], byte_tokenizer_directory: Path) -> None:
    server = serve(
        f"""
[[models]]
id = "org/model"
path = "{byte_tokenizer_directory}"
max_total_tokens = 200
[models.device]
kind = "simulated"
slots = 2
n_positions = 200
vocab_size = 99
step_s = 0.05
"""
    )
    server.wait_available()
    body = {"inputs": "x", "parameters": {**SAMPLED, "max_new_tokens": 190}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/generate", json=body, timeout=0.5)
    deadline = time.monotonic() + 60
    while server.get("/models").json()["data"][0]["running"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.get("/models").json()["data"][0]["running"] == 0


def test_6_the_prompts_logprobs(wire: Any) -> None:
    details = answer(wire, decoder_input_details=True, max_new_tokens=1)["details"]
    assert [token["text"] for token in details["prefill"]] == ["<s>", "a", "b", "c"]
    assert [list(token) for token in details["prefill"]] == [["id", "text", "logprob"]] * 4
    assert details["prefill"][0]["logprob"] is None
    assert all(token["logprob"] < 0 for token in details["prefill"][1:])


def test_6_every_sequence_has_the_prompts_logprobs(wire: Any) -> None:
    details = answer(wire, **SAMPLED, decoder_input_details=True)["details"]
    assert details["prefill"] == details["best_of_sequences"][0]["prefill"] != []


def test_6_details_alone_bring_no_prefill(wire: Any) -> None:
    assert answer(wire, details=True, max_new_tokens=1)["details"]["prefill"] == []


def test_6_the_real_models_prompt_logprobs(smollm2: Any) -> None:
    """Against transformers' forward pass: 300 tokens, so more than one chunk of a feed."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text = "The sea is everything. It covers seven tenths of the terrestrial globe. " * 20
    parameters = {"decoder_input_details": True, "max_new_tokens": 1}
    got = smollm2.post("/generate", {"inputs": text, "parameters": parameters})
    prefill = got.json()["details"]["prefill"]
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded_directory(), dtype=torch.float32)
    ids = torch.tensor([[token["id"] for token in prefill]])
    assert ids.shape[1] > 256
    with torch.no_grad():
        scores = model(ids).logits[0].log_softmax(-1)
    expected = [float(scores[place, token]) for place, token in enumerate(ids[0, 1:].tolist())]
    assert prefill[0]["logprob"] is None
    assert [token["logprob"] for token in prefill[1:]] == pytest.approx(expected, abs=2e-3)
    assert "".join(token["text"] for token in prefill) == text
