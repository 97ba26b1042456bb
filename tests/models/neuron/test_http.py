"""The whole server over HTTP with a Neuron configuration, on the real library: the CPU backend's texts and more.

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
import tokenizers

Pair = tuple[Any, Any]
Start = Callable[..., Any]

SERVER = """
[worker]
restarts = 5
# The emulator computes on a processor that others use too: no time of its warm-up is a promise.
step_floor = 30
{python}
[swap]
residents = {residents}
{models}
"""
MODEL = """
[[models]]
id = "{id}"
path = "{directory}"
[models.device]
{device}
"""
TINY = {"slots": 4, "n_positions": 64}
TINY_BUCKETS = {**TINY, "context_buckets": [16, 32], "token_buckets": [32, 64]}


def model(id: str, directory: str | Path, **device: Any) -> str:
    """One model of a configuration; values as TOML writes them, which is as Python does for these."""
    lines = "\n".join(f"{key} = {value!r}" for key, value in device.items())
    return MODEL.format(id=id, directory=directory, device=lines)


def configuration(*models: str, python: Path | None = None) -> str:
    """Of a server that may keep all of `models` loaded."""
    worker = f"python = '{python}'" if python else ""
    return SERVER.format(python=worker, residents=len(models), models="".join(models))


def neuron_model(id: str, directory: str | Path, **options: Any) -> str:
    """A model on the emulator: float32 on two cores, and compiled when it is loaded, unless told otherwise."""
    return model(id, directory, kind="neuron", **{"amp": "f32", "tp_degree": 2, "compile": "if-missing", **options})


@pytest.fixture(scope="module")
def start_neuron(serve: Start, emulated_worker: Any, graph_store: Path) -> Start:
    """start_neuron(model, ..): a server whose workers run on the emulator."""
    environment = {**emulated_worker.environment, "NEURONX_SERVE_CACHE": str(graph_store)}
    return lambda *models: serve(configuration(*models, python=emulated_worker.python), env=environment)


@pytest.fixture(scope="module")
def start_cpu(serve: Start) -> Start:
    """start_cpu(directory, **options): a server of the same model on the CPU backend in its guaranteed mode."""

    def start(directory: str | Path, **options: Any) -> Any:
        return serve(configuration(model("model", directory, kind="cpu", dtype="float32", layout="fixed", **options)))

    return start


@pytest.fixture(scope="module", params=["llama3", "mistral", "codellama"])
def servers(
    request: pytest.FixtureRequest, tiny_checkpoint: Callable[..., Path], start_neuron: Start, start_cpu: Start
) -> Pair:
    """(Neuron over the emulator, CPU) with the same tiny checkpoint."""
    directory = tiny_checkpoint(request.param)
    neuron = start_neuron(neuron_model("model", directory, **TINY_BUCKETS))
    cpu = start_cpu(directory, **TINY, chunk=64)
    neuron.wait_available()
    cpu.wait_available()
    return neuron, cpu


def generate(server: Any, inputs: str, *, route: str = "/generate", **parameters: Any) -> Any:
    answer = server.post(route, {"inputs": inputs, "parameters": {**parameters, "details": True}})
    assert answer.status_code == 200, answer.text
    return answer.json()["details"]


def greedy(server: Any, inputs: str, max_new_tokens: int | None, **more: Any) -> list[int]:
    return [token["id"] for token in generate(server, inputs, max_new_tokens=max_new_tokens, **more)["tokens"]]


# Bytes are tokens here, and one token begins a text: the last prompt fills the largest bucket.
PROMPTS = ["a", "hello there", "x" * 15, "y" * 16, "z" * 30, "def f(x):", "计算", "1" * 31]


def test_greedy_texts_are_those_of_the_cpu_backend(servers: Pair) -> None:
    neuron, cpu = servers
    for prompt in PROMPTS:
        assert greedy(neuron, prompt, 20) == greedy(cpu, prompt, 20), prompt


def test_8_requests_that_join_and_leave_give_the_texts_they_give_alone(servers: Pair) -> None:
    neuron, cpu = servers
    lengths = [5 + 3 * index for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda index: greedy(neuron, PROMPTS[index], lengths[index]), range(8)))
    assert together == [greedy(cpu, prompt, length) for prompt, length in zip(PROMPTS, lengths, strict=True)]


def test_a_prompt_of_one_token_harms_no_sequence_beside_it(servers: Pair) -> None:
    neuron, cpu = servers
    with ThreadPoolExecutor(3) as pool:
        beside = [pool.submit(greedy, neuron, prompt, 30) for prompt in PROMPTS[:2]]
        alone = [greedy(neuron, letter, 4, truncate=1) for letter in "abc"]
        assert [answer.result() for answer in beside] == [greedy(cpu, prompt, 30) for prompt in PROMPTS[:2]]
    assert alone == [greedy(cpu, letter, 4, truncate=1) for letter in "abc"]


def test_a_grammar_is_followed(servers: Pair) -> None:
    neuron, cpu = servers
    grammar = {"type": "regex", "value": "[ab]{6}(cd)+"}
    written = [generate(server, "hello", max_new_tokens=12, grammar=grammar) for server in (neuron, cpu)]
    assert [token["id"] for token in written[0]["tokens"]] == [token["id"] for token in written[1]["tokens"]]
    assert set("".join(token["text"] for token in written[0]["tokens"])[:6]) <= set("ab")


def test_a_sequence_reaches_n_positions(servers: Pair) -> None:
    neuron, cpu = servers
    assert greedy(neuron, "hello", None) == greedy(cpu, "hello", None)


def test_a_sliding_window_caps_what_a_request_may_take(
    tiny_checkpoint: Callable[..., Path], start_neuron: Start, start_cpu: Start
) -> None:
    directory = tiny_checkpoint("mistral", sliding_window=48)
    neuron = start_neuron(neuron_model("model", directory, **TINY_BUCKETS))
    cpu = start_cpu(directory, **TINY, chunk=64)
    for server in (neuron, cpu):
        server.wait_available()
        assert server.get("/info").json()["max_total_tokens"] == 48
    assert greedy(neuron, "hello", None) == greedy(cpu, "hello", None)


def test_a_prompt_over_the_largest_bucket_is_a_clients_mistake(servers: Pair) -> None:
    neuron, _ = servers
    answer = neuron.post("/generate", {"inputs": "x" * 40, "parameters": {"max_new_tokens": 2}})
    assert answer.status_code == 422
    assert "must have less than 32 tokens" in answer.json()["error"]


def test_a_worker_killed_in_mid_stream_is_replaced_and_the_texts_go_on(
    servers: Pair, read_events: Callable[..., Any]
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


def test_codellama_fills_a_gap(
    tiny_checkpoint: Callable[..., Path], start_neuron: Start, start_cpu: Start, read_events: Callable[..., Any]
) -> None:
    directory = tiny_checkpoint("codellama")
    neuron = start_neuron(neuron_model("model", directory, **TINY_BUCKETS))
    cpu = start_cpu(directory, **TINY, chunk=64)
    neuron.wait_available()
    cpu.wait_available()
    id_of = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).token_to_id
    prompt = [id_of(name) for name in ("<s>", "▁<PRE>", "a", "▁<SUF>", "b", "▁<MID>")]

    gap = generate(cpu, "a<FILL_ME>b", max_new_tokens=10, decoder_input_details=True)
    assert [token["id"] for token in gap["prefill"]] == prompt
    expected = [token["id"] for token in gap["tokens"]]
    assert greedy(neuron, "a<FILL_ME>b", 10) == expected
    body = {"inputs": "a<FILL_ME>b", "parameters": {"max_new_tokens": 10}}
    with httpx.stream("POST", neuron.url + "/generate_stream", json=body, timeout=120) as response:
        assert [event["token"]["id"] for event in read_events(response)] == expected

    refused = neuron.post("/generate", {"inputs": "a<FILL_ME>b<FILL_ME>c"})
    assert refused.status_code == 422
    assert "one gap can be filled" in refused.json()["error"]


@pytest.fixture(scope="module")
def drawing(tiny_checkpoint: Callable[..., Path], start_neuron: Start) -> Any:
    """A server whose cores draw the tokens."""
    server = start_neuron(neuron_model("model", tiny_checkpoint("llama3"), **TINY_BUCKETS, sampling="device"))
    server.wait_available()
    return server


def test_cores_that_draw_are_greedy_where_the_request_is(
    drawing: Any, tiny_checkpoint: Callable[..., Path], start_cpu: Start
) -> None:
    cpu = start_cpu(tiny_checkpoint("llama3"), **TINY, chunk=64)
    cpu.wait_available()
    wild = {"do_sample": True, "temperature": 5.0, "max_new_tokens": 20}
    with ThreadPoolExecutor(8) as pool:
        sampled = [pool.submit(generate, drawing, "hello", **wild) for _ in range(4)]
        tame = list(pool.map(lambda prompt: greedy(drawing, prompt, 20), PROMPTS[:4]))
    assert tame == [greedy(cpu, prompt, 20) for prompt in PROMPTS[:4]]
    details = [answer.result() for answer in sampled]
    assert len({tuple(token["id"] for token in each["tokens"]) for each in details}) == 4
    assert {each["seed"] for each in details} == {None}
    assert {token["logprob"] for each in details for token in each["tokens"]} == {0.0}


def test_cores_that_draw_go_on_after_their_worker_was_killed(drawing: Any, read_events: Callable[..., Any]) -> None:
    expected = greedy(drawing, "hello", 40)
    tokens = []
    with httpx.stream(
        "POST",
        drawing.url + "/generate_stream",
        json={"inputs": "hello", "parameters": {"max_new_tokens": 40}},
        timeout=120,
    ) as response:
        for event in read_events(response):
            tokens.append(event["token"]["id"])
            if len(tokens) == 3:
                os.kill(drawing.worker_pid(), signal.SIGKILL)
    assert tokens == expected
    drawing.wait_available()


@pytest.mark.parametrize(
    "parameters", [{"seed": 1}, {"top_n_tokens": 2}, {"repetition_penalty": 1.1}, {"typical_p": 0.9, "do_sample": True}]
)
def test_cores_that_draw_refuse_what_needs_the_scores(drawing: Any, parameters: dict[str, Any]) -> None:
    refused = drawing.post("/generate", {"inputs": "hello", "parameters": parameters})
    assert refused.status_code == 422
    assert refused.json()["error_type"] == "validation"
    assert "draws the tokens itself" in refused.json()["error"]


def test_two_int8_models_are_resident_on_a_core_each(
    tiny_checkpoint: Callable[..., Path], start_neuron: Start, start_cpu: Start
) -> None:
    """Their scores stay within 0.1 (mean) of float32's, in log-probability of the tokens that are likely."""
    families = ("llama3", "mistral")
    resident = start_neuron(
        *(
            neuron_model(family, tiny_checkpoint(family), **TINY_BUCKETS, tp_degree=1, quant="s8", cores=str(core))
            for core, family in enumerate(families)
        )
    )
    exact = {family: start_cpu(tiny_checkpoint(family), **TINY, chunk=64) for family in families}
    for server in (resident, *exact.values()):
        server.wait_available()
    answer = resident.post(f"/models/{families[1]}/activate?wait=true", {})
    assert answer.status_code in (200, 202), answer.text

    routes = {family: f"/models/{family}/generate" for family in families}
    asked = [(family, prompt) for prompt in PROMPTS for family in families]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pair: generate(resident, pair[1], route=routes[pair[0]], max_new_tokens=20), asked))
    states = {entry["id"]: entry["state"] for entry in resident.get("/models").json()["data"]}
    assert states == dict.fromkeys(families, "available")

    for family in families:
        errors = [
            abs(likely[token] - near[token])
            for prompt in PROMPTS
            for likely, near in [(_likely(exact[family], prompt), _likely(resident, prompt, routes[family]))]
            for token in likely.keys() & near.keys()
        ]
        assert len(errors) > 3 * len(PROMPTS)
        assert 0 < sum(errors) / len(errors) < 0.1


def _likely(server: Any, prompt: str, route: str = "/generate") -> dict[int, float]:
    """Log-probabilities of the five tokens that may come first."""
    top = generate(server, prompt, route=route, max_new_tokens=1, top_n_tokens=5)["top_tokens"][0]
    return {token["id"]: token["logprob"] for token in top}


SMOLLM2_PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time there was a small robot who",
    "计算一下北京到上海的距离",
]


@pytest.mark.long
@pytest.mark.usefixtures("emulated_worker")  # first: without it there is nothing to set up
def test_smollm2_writes_on_two_cores_what_it_writes_on_the_processor(
    smollm2: Any, embedded_model: Path, start_neuron: Start
) -> None:
    """Nine query heads and three for keys: the library pads them for two cores."""
    options = {"slots": 4, "n_positions": 128, "context_buckets": [64], "token_buckets": [128]}
    neuron = start_neuron(neuron_model("smollm2", embedded_model, **options))
    neuron.wait_available(seconds=900)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda prompt: greedy(neuron, prompt, 24), SMOLLM2_PROMPTS))
    assert texts == [greedy(smollm2, prompt, 24) for prompt in SMOLLM2_PROMPTS]
