"""Section 6 of the wire contract: plain native answers, key for key, and their headers."""

from __future__ import annotations

import re
from typing import Any

import pytest

FLOAT = rb"-?\d+\.\d+(?:e-?\d+)?"
TOKEN = rb'\{"id":\d+,"text":"(?:[^"\\]|\\.)*","logprob":' + FLOAT + rb',"special":(?:true|false)\}'


def generate(wire: Any, route: str = "/generate", inputs: str = "hello", **parameters: Any) -> Any:
    return wire.post(route, {"inputs": inputs, "parameters": {"max_new_tokens": 2, **parameters}})


def listed(item: bytes, count: int) -> bytes:
    return rb"\[" + b",".join([item] * count) + rb"\]"


def test_6_without_details_the_key_is_absent(wire: Any) -> None:
    assert re.fullmatch(rb'\{"generated_text":"(?:[^"\\]|\\.)*"\}', generate(wire).body)


def test_6_with_details(wire: Any) -> None:
    golden = rb'\{"generated_text":"(?:[^"\\]|\\.)*","details":\{"finish_reason":"length","generated_tokens":2,'
    golden += rb'"seed":null,"prefill":\[\],"tokens":' + listed(TOKEN, 2) + rb"\}\}"
    assert re.fullmatch(golden, generate(wire, details=True).body)


def test_6_decoder_input_details_turns_details_on(wire: Any) -> None:
    details = generate(wire, decoder_input_details=True).json["details"]
    assert "".join(token["text"] for token in details["prefill"]) == "<s>hello"
    assert [token["logprob"] is None for token in details["prefill"]] == [True] + [False] * 5
    assert all(list(token) == ["id", "text", "logprob"] for token in details["prefill"])
    assert len(details["tokens"]) == 2


def test_6_top_tokens_is_the_last_key_and_a_row_a_token(wire: Any) -> None:
    golden = rb'.*,"tokens":' + listed(TOKEN, 2) + rb',"top_tokens":' + listed(listed(TOKEN, 3), 2) + rb"\}\}"
    assert re.fullmatch(golden, generate(wire, details=True, top_n_tokens=3).body)


def test_6_top_tokens_is_absent_for_0(wire: Any) -> None:
    assert "top_tokens" not in generate(wire, details=True, top_n_tokens=0).json["details"]


def test_6_logprobs_are_the_shortest_float32(wire: Any) -> None:
    numbers = re.findall(rb'"logprob":-?(\d+\.\d+)', generate(wire, details=True, top_n_tokens=5).body)
    assert numbers
    assert all(len(number) <= 11 for number in numbers)


@pytest.mark.parametrize(
    ("body", "greedy"),
    [
        ('{"inputs":"x"}', False),
        ('{"inputs":"x","parameters":{}}', True),
        ('{"inputs":"x","parameters":{"temperature":1.0}}', True),
        ('{"inputs":"x","parameters":{"temperature":0.5}}', False),
        ('{"inputs":"x","parameters":{"top_k":5}}', False),
        ('{"inputs":"x","parameters":{"top_p":0.5}}', False),
        ('{"inputs":"x","parameters":{"typical_p":0.5}}', False),
        ('{"inputs":"x","parameters":{"seed":7}}', True),
        ('{"inputs":"x","parameters":{"do_sample":true}}', False),
        ('{"inputs":"x","parameters":{"repetition_penalty":1.1,"frequency_penalty":0.1}}', True),
    ],
    ids=lambda value: f"3-{value}" if isinstance(value, str) else None,
)
def test_when_sampling_is_on(wire: Any, body: str, greedy: bool) -> None:
    asked = body.replace('"parameters":{', '"parameters":{"details":true,').replace(",}", "}")
    if "parameters" in body:
        assert (wire.post("/generate", asked).json["details"]["seed"] is None) == greedy
    else:  # the seed cannot be asked for: two answers of 199 tokens differ unless both are greedy
        answers = {wire.post("/generate", asked).body for _ in range(2)}
        assert (len(answers) == 1) == greedy


def test_6_a_random_seed_reproduces_the_answer(wire: Any) -> None:
    first = generate(wire, max_new_tokens=20, do_sample=True, details=True).json
    seed = first["details"]["seed"]
    assert 0 <= seed < 2**64
    assert generate(wire, max_new_tokens=20, do_sample=True, details=True, seed=seed).json == first


def test_6_a_given_seed_is_shown(wire: Any) -> None:
    assert generate(wire, do_sample=True, details=True, seed=2**64 - 1).json["details"]["seed"] == 2**64 - 1


def test_6_the_root_route_answers_an_array_of_one(wire: Any) -> None:
    answer = generate(wire, "/", return_full_text=False)
    assert answer.json == [generate(wire).json]


@pytest.mark.parametrize(
    ("route", "given", "full"),
    [
        ("/", {}, True),
        ("/", {"return_full_text": None}, True),
        ("/", {"return_full_text": False}, False),
        ("/generate", {}, False),
        ("/generate", {"return_full_text": True}, True),
    ],
    ids=lambda value: f"3-{value}",
)
def test_return_full_text(wire: Any, route: str, given: dict[str, Any], full: bool) -> None:
    answer = generate(wire, route, **given).json
    text = (answer[0] if route == "/" else answer)["generated_text"]
    assert text == ("hello" if full else "") + generate(wire).json["generated_text"]


def test_3_stream_is_ignored_on_generate(wire: Any) -> None:
    answer = wire.post("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 1}, "stream": True})
    assert answer.headers["content-type"] == "application/json"


def test_6_texts_of_ordinary_tokens_join_to_the_answer(wire: Any) -> None:
    answer = generate(wire, max_new_tokens=100, details=True).json
    texts = [token["text"] for token in answer["details"]["tokens"] if not token["special"]]
    assert "".join(texts) == answer["generated_text"]


def test_6_a_stop_string_stays_at_the_end_of_the_text(wire: Any) -> None:
    whole = generate(wire, max_new_tokens=30).json["generated_text"]
    stop = whole[5:8]
    answer = generate(wire, max_new_tokens=30, stop=[stop], details=True).json
    assert answer["generated_text"] == whole[: whole.index(stop) + 3]
    assert answer["details"]["finish_reason"] == "stop_sequence"


def test_5_length_wins_over_a_stop_string_at_the_same_token(wire: Any) -> None:
    whole = generate(wire, max_new_tokens=5).json["generated_text"]
    answer = generate(wire, max_new_tokens=5, stop=[whole[-2:]], details=True).json
    assert (answer["details"]["finish_reason"], answer["generated_text"]) == ("length", whole)


def test_5_without_max_new_tokens_the_context_is_filled(wire: Any) -> None:
    answer = wire.post("/generate", {"inputs": "hello", "parameters": {"details": True}}).json
    assert (answer["details"]["generated_tokens"], answer["details"]["finish_reason"]) == (200 - 6, "length")


def test_5_more_than_a_slice_is_no_error_where_a_slice_fits(serve: Any, byte_tokenizer_directory: Any) -> None:
    server = serve(f"""
[[models]]
id = "long"
path = "{byte_tokenizer_directory}"
[models.device]
kind = "simulated"
n_positions = 1100
vocab_size = 99
""")
    server.wait_available()
    parameters = {"max_new_tokens": 100000, "details": True}
    details = server.post("/generate", {"inputs": "hello", "parameters": parameters}).json()["details"]
    assert (details["generated_tokens"], details["finish_reason"]) == (1100 - 6, "length")
    server.stop()


def test_3_truncate_keeps_the_last_tokens(wire: Any) -> None:
    answer = generate(wire, inputs="some words before hello", truncate=5)
    assert answer.headers["x-prompt-tokens"] == "5"
    assert answer.json == generate(wire, inputs="other words before hello", truncate=5).json


def test_3_a_written_out_bos_is_not_doubled(wire: Any) -> None:
    answer = generate(wire, inputs="<s>hello")
    assert answer.headers["x-prompt-tokens"] == "6"
    assert answer.json == generate(wire, inputs="hello").json


def test_6_headers(wire: Any) -> None:
    answer = generate(wire, inputs="计算 hello")
    measured = {name: value for name, value in answer.headers.items() if name.startswith("x-")}
    assert list(measured) == [
        "x-compute-type",
        "x-compute-time",
        "x-compute-characters",
        "x-total-time",
        "x-validation-time",
        "x-queue-time",
        "x-inference-time",
        "x-time-per-token",
        "x-prompt-tokens",
        "x-generated-tokens",
    ]
    assert measured["x-compute-type"] == "gpu+optimized"
    assert measured["x-compute-characters"] == "8"
    assert (measured["x-prompt-tokens"], measured["x-generated-tokens"]) == ("13", "2")
    assert re.fullmatch(r"\d+\.\d+", measured["x-compute-time"])
    assert all(measured[f"x-{name}"].isdecimal() for name in ("total-time", "queue-time", "time-per-token"))


def test_6_header_names_are_lower_case(wire: Any) -> None:
    assert all(name == name.lower() for name in generate(wire).names)
