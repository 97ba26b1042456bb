"""Section 13 of the wire contract: /v1/completions, plain and streamed, of one prompt and of several."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

ROUTE = "/v1/completions"
TEXT = rb'"(?:[^"\\]|\\.)*"'
HEAD = rb'"object":"text_completion","id":"cmpl-[0-9a-f]{32}","created":\d{10},"model":"org/model",'
HEAD += rb'"system_fingerprint":"3\.3\.6-dev0-native",'


def complete(wire: Any, prompt: Any = "hello", **fields: Any) -> Any:
    return wire.post(ROUTE, {"prompt": prompt, "max_tokens": 3, **fields})


def test_13_plain_byte_for_byte(wire: Any) -> None:
    answer = complete(wire)
    golden = (
        rb"\{" + HEAD + rb'"choices":\[\{"index":0,"text":' + TEXT + rb',"logprobs":null,"finish_reason":"length"\}\],'
    )
    golden += rb'"usage":\{"prompt_tokens":6,"completion_tokens":3,"total_tokens":9\}\}'
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert re.fullmatch(golden, answer.body)


def test_13_events_byte_for_byte(wire: Any) -> None:
    *chunks, done = complete(wire, stream=True).chunks
    assert done == b"data: [DONE]\n\n"
    usage = b'{"prompt_tokens":6,"completion_tokens":3,"total_tokens":9}'
    for reason, used, chunk in zip([b"", b"", b"length"], [b"null", b"null", usage], chunks, strict=True):
        golden = (
            rb"data: \{" + HEAD + rb'"choices":\[\{"index":0,"text":' + TEXT + rb',"logprobs":null,"finish_reason":"'
        )
        assert re.fullmatch(golden + reason + rb'"\}\],"usage":' + re.escape(used) + rb"\}\n\n", chunk)


def test_13_several_prompts_are_answered_in_their_order(wire: Any) -> None:
    prompts = ["one", "three", "fifteen"]
    answer = complete(wire, prompts, temperature=0, max_tokens=5)
    alone = [complete(wire, prompt, temperature=0, max_tokens=5).json["choices"][0]["text"] for prompt in prompts]
    assert [(choice["index"], choice["text"]) for choice in answer.json["choices"]] == list(enumerate(alone))
    tokens = sum(len(prompt) + 1 for prompt in prompts)
    assert answer.json["usage"] == {"prompt_tokens": tokens, "completion_tokens": 15, "total_tokens": tokens + 15}


def test_13_several_prompts_are_interleaved_in_a_stream(wire: Any) -> None:
    prompts = ["one", "three", "fifteen", "x"]
    plain = [choice["text"] for choice in complete(wire, prompts, temperature=0, max_tokens=30).json["choices"]]
    events = complete(wire, prompts, temperature=0, max_tokens=30, stream=True).events
    choices = [event["choices"][0] for event in events]
    for index, text in enumerate(plain):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == text
        assert [choice["finish_reason"] for choice in own] == [""] * 29 + ["length"]
    assert [choice["index"] for choice in choices] != sorted(choice["index"] for choice in choices)
    assert [event["usage"] is not None for event in events].count(True) == 4


def test_13_headers_are_sums_without_the_compute_time(wire: Any) -> None:
    headers = complete(wire, ["one", "three"]).headers
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"]) == ("10", "6")
    assert headers["x-compute-characters"] == "8"
    assert "x-compute-time" not in headers
    for name in ("x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"):
        assert re.fullmatch(r"\d+", headers[name])


@pytest.mark.parametrize("model", [None, "tgi", "dummy", "http://127.0.0.1:8080"], ids=lambda name: f"13-model-{name}")
def test_the_served_model_is_shown(wire: Any, model: str | None) -> None:
    assert complete(wire, model=model).json["model"] == "org/model"


def test_13_a_stream_names_the_end_as_the_native_routes_do(wire: Any) -> None:
    fields = {"max_tokens": 50, "model": "org/model-2", "temperature": 0}
    assert complete(wire, **fields).json["choices"][0]["finish_reason"] == "stop"
    last = complete(wire, stream=True, **fields).events[-1]["choices"][0]
    assert (last["finish_reason"], last["text"]) == ("eos_token", "")
    assert wire.post("/models/org/model/activate?wait=true", {}).status == 200


@pytest.mark.parametrize("streamed", [False, True], ids=["13-plain", "13-stream"])
def test_a_stop_string_stays(wire: Any, streamed: bool) -> None:
    text = complete(wire, temperature=0, max_tokens=20).json["choices"][0]["text"]
    answer = complete(wire, temperature=0, max_tokens=20, stop=[text[5:8]], stream=streamed)
    choices = [event["choices"][0] for event in answer.events] if streamed else answer.json["choices"]
    assert "".join(choice["text"] for choice in choices) == text[: text.index(text[5:8]) + 3]
    assert choices[-1]["finish_reason"] == "stop_sequence"


def test_13_temperature_absent_samples_and_0_is_greedy(wire: Any) -> None:
    def texts(**fields: Any) -> set[str]:
        return {complete(wire, max_tokens=30, **fields).json["choices"][0]["text"] for _ in range(3)}

    assert len(texts()) == 3
    assert len(texts(temperature=0)) == len(texts(seed=7)) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"echo": True, "n": 3, "best_of": 5, "logprobs": 2},
        {"suffix": None, "stop": None, "seed": None, "top_p": None},
        {"do_sample": True, "return_full_text": False, "details": True, "parameters": {"x": 1}},
        {"top_p": 1},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.5},
    ],
    ids=lambda fields: "13-" + "-".join(fields),
)
def test_fields_that_do_no_harm(wire: Any, fields: dict[str, Any]) -> None:
    answer = complete(wire, **fields)
    assert (answer.status, len(answer.json["choices"])) == (200, 1)


SUFFIX = ("Suffix is not supported and can be achieved by preprocessing the prompt.", "suffix not supported")
BATCH = ("Number of prompts exceeds the maximum allowed batch size of 4", "batch size exceeded")


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"suffix": "x"}, SUFFIX, id="13-suffix"),
        pytest.param({"suffix": ""}, SUFFIX, id="13-empty-suffix"),
        pytest.param({"prompt": list("abcde")}, BATCH, id="13-batch"),
    ],
)
def test_errors_before_the_stream_are_http_statuses(
    wire: Any, fields: dict[str, Any], expected: tuple[str, str], streamed: bool
) -> None:
    answer = complete(wire, stream=streamed, **fields)
    assert (answer.status, answer.json) == (422, dict(zip(("error", "error_type"), expected, strict=True)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"temperature": -1}, "`temperature` must be strictly positive", id="13-4-temperature"),
        pytest.param({"top_p": 1.1}, "`top_p` must be > 0.0 and < 1.0", id="13-4-top_p"),
        pytest.param({"max_tokens": 0}, "`max_new_tokens` must be strictly positive", id="13-4-max_tokens"),
        pytest.param({"prompt": ["x", ""]}, "`inputs` cannot be empty", id="13-4-one-empty"),
        pytest.param({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive", id="13-4-repetition"),
        pytest.param({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5", id="13-4-stop"),
    ],
)
def test_refused(wire: Any, fields: dict[str, Any], message: str) -> None:
    text = f"Input validation error: {message}"
    plain = complete(wire, **fields)
    assert (plain.status, plain.json) == (422, {"error": text, "error_type": "validation"})
    *_, failed, done = complete(wire, stream=True, **fields).chunks
    assert json.loads(failed[6:]) == {"error": {"message": text, "http_status_code": 422}}
    assert done == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"prompt":[]}', "prompt: Empty array detected. Do not use an empty array for the prompt."),
        ('{"prompt":[1,2]}', "prompt: data did not match any variant of untagged enum PromptDeserializer"),
        ('{"prompt":[[1],[2]]}', "prompt: data did not match any variant of untagged enum PromptDeserializer"),
        ('{"prompt":null}', "prompt: data did not match any variant of untagged enum PromptDeserializer"),
        ("{}", "missing field `prompt`"),
        ('{"prompt":"x","max_tokens":-1}', "max_tokens: invalid value: integer `-1`, expected u32"),
        ('{"prompt":"x","stream":null}', "stream: invalid type: null, expected a boolean"),
        ('{"prompt":"x","suffix":1}', "suffix: invalid type: integer `1`, expected a string"),
        ('{"prompt":"x","seed":-1}', "seed: invalid value: integer `-1`, expected u64"),
        ('{"prompt":"x","prompt":"y"}', "duplicate field `prompt`"),
    ],
    ids=lambda value: f"13-2a-{value}" if value.startswith("{") else "",
)
def test_bodies_of_another_shape(wire: Any, body: str, reason: str) -> None:
    answer = wire.post(ROUTE, body)
    assert (answer.status, answer.headers["content-type"]) == (422, "text/plain; charset=utf-8")
    prefix = "Failed to deserialize the JSON body into the target type: "
    assert answer.body.decode().startswith(prefix + reason)


def test_8_every_prompt_takes_a_permit(slow: Any) -> None:
    """Two permits: three prompts are one too many, and no permit stays behind."""
    for _ in range(2):
        answer = complete(slow, ["a", "b", "c"])
        assert (answer.status, answer.json["error_type"]) == (429, "overloaded")
    assert complete(slow, ["a", "b"]).status == 200


def test_15_a_request_of_several_prompts_is_counted_once(wire: Any) -> None:
    def counts() -> list[float]:
        text = wire.get("/metrics").body.decode()
        names = ("tgi_request_count", "tgi_request_success", "tgi_request_generated_tokens_count")
        return [float(re.search(rf"^{name} ([\d.]+)$", text, re.MULTILINE)[1]) for name in names]  # type: ignore[index]

    before = counts()
    complete(wire, ["a", "b", "c"])
    assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [1, 1, 3]


def test_18_a_models_own_route(wire: Any) -> None:
    answer = wire.post("/models/org/model/v1/completions", {"prompt": "x", "max_tokens": 1, "model": "org/model-2"})
    assert answer.json["model"] == "org/model"
