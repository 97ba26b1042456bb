"""Both generations of an unmodified Chat UI: its requests as they were recorded, and what it needs of the answers.

0.8 and 0.9 speak TGI (`POST /` with a prompt that they rendered themselves), 0.10 to 0.20 OpenAI (`OPENAI_BASE_URL`),
and so do 0.8 and 0.9 with endpoints of type "openai". docs/chat-ui.md tells users the rest.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.cpu import tiny
from server.configuration import load_settings
from server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("org/llama3", "org/mistral", "org/codellama")
CHAT = "/v1/chat/completions"
SYSTEM = "You are a helpful assistant."
# What Chat UI 0.8.4 renders for Llama 3, special tokens and all.
PROMPT = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n" + SYSTEM + "<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nhello there<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
STOP = ["<|eot_id|>", "<|end_of_text|>"]
PARAMETERS = {
    "temperature": 0.6,
    "truncate": 3072,
    "max_new_tokens": 1024,
    "stop": STOP,
    "top_p": 0.9,
    "top_k": 50,
    "repetition_penalty": 1.05,
    "stop_sequences": STOP,
    "return_full_text": False,
}
OLD = {"accept": "*/*", "user_agent": "undici"}  # 0.8.4; 0.9.4 is below
TITLE = {
    "messages": [
        {"role": "system", "content": "You are a chat thread titling assistant.\nGoal: a title of five words at most."},
        {"role": "user", "content": 'User message: "hello there"'},
    ],
    "stream": True,
    "max_tokens": 24,
    "temperature": 0,
}
FIRST_TURN = {"messages": [{"role": "user", "content": "hello there"}], "stream": True}
NEW = {  # 0.20; x-stainless-* headers and the conversation's id make no difference to the server
    "accept": "application/json",
    "user_agent": "OpenAI/JS 4.104.0",
    "authorization": "Bearer sk-local",
    "chatui_conversation_id": "",
    "x_use_cache": "false",
    "x_stainless_retry_count": "0",
    "x_stainless_timeout": "600",
}

DEVICE = """
[[models]]
id = "org/{name}"
path = "{directory}"
[models.device]
kind = "simulated"
slots = 2
n_positions = {n_positions}
vocab_size = {vocab_size}
eos_token = {eos_token}
answer_tokens = {answer_tokens}
step_s = {step_s}
load_s = {load_s}
faults = {faults}
"""

Start = Callable[..., Any]


@pytest.fixture(scope="session")
def chat_server(serve: Start, wire_to: Start, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """chat_server(settings="", faults=[], ...) -> Wire to three models of the three families.

    A prompt and its answer have 4096 tokens, as in configs/inf2.toml; the device is simulated, two slots a model. It
    draws any token, but no other end token than the one it is told: the vocabularies have one each.
    """
    directories = [_built(model, tmp_path_factory.mktemp(model.name)) for model in tiny.MODELS]

    def start(
        settings: str = "", wait: bool = True, faults: tuple[str, ...] = (), n_positions: int = 4096, **times: float
    ) -> Any:
        times = {"answer_tokens": 30, "step_s": 0.001, "load_s": 0, **times}
        tables = [_device(*place, n_positions=n_positions, faults=list(faults), **times) for place in directories]
        server = serve(settings + "".join(tables))
        if wait:
            server.wait_available()
        return wire_to(server.url)

    return start


def _built(model: tiny.Tiny, directory: Path) -> tuple[str, Path]:
    others = {"<|end_of_text|>", "▁<EOT>"}
    tiny.build(replace(model, specials=tuple(name for name in model.specials if name not in others)), directory)
    return model.name.removeprefix("tiny-"), directory


def _device(name: str, directory: Path, **values: Any) -> str:
    config = json.loads((directory / "config.json").read_text())
    sizes = {"vocab_size": config["vocab_size"], "eos_token": config["eos_token_id"]}
    return DEVICE.format(name=name, directory=directory, **sizes, **values)


@pytest.fixture(scope="session")
def three(chat_server: Start) -> Any:
    """The three models, exchanged without delay."""
    return chat_server("[swap]\nmin_resident = 0\nturn_after = 0.5\n")


@pytest.fixture(scope="module")
def endless(chat_server: Start) -> Any:
    """Its answers end with the context, at 20 ms a token."""
    return chat_server("[swap]\nmin_resident = 0\n", answer_tokens=0, step_s=0.02, load_s=1)


@pytest.fixture
def broken(chat_server: Start) -> Any:
    """Its devices fail at the fifth step, and nothing is tried again."""
    return chat_server("[worker]\nrestarts = 0\n", faults=("decode:5=exit",))


def old_body(inputs: str = PROMPT, **parameters: Any) -> dict[str, Any]:
    """A chat request of 0.8.4."""
    return {
        "inputs": inputs,
        "parameters": {**PARAMETERS, **parameters},
        "stream": True,
        "options": {"use_cache": False},
    }


def new_body(model: str, body: dict[str, Any] = FIRST_TURN, **fields: Any) -> dict[str, Any]:
    """A chat request of 0.20."""
    return {"model": model, **body, **fields}


def check_native(answer: Any) -> tuple[str, bool]:
    """What 0.8 and 0.9 need of a stream; the answer, and whether it ended by itself."""
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert b"[DONE]" not in answer.body
    assert b'"error"' not in answer.body
    events = answer.events
    assert all(isinstance(each["token"]["text"], str) for each in events)
    assert all(isinstance(each["token"]["special"], bool) for each in events)
    assert [each["generated_text"] for each in events[:-1]] == [None] * (len(events) - 1)
    last = events[-1]
    shown = "".join(each["token"]["text"] for each in events if not each["token"]["special"])
    assert last["generated_text"] == shown != ""
    return str(last["generated_text"]), bool(last["token"]["special"])


def check_chat(answer: Any) -> tuple[str, str]:
    """What 0.20 needs of a stream; the answer and how it finished."""
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "x-inference-provider" not in answer.headers
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert b"event:" not in answer.body
    chunks = answer.events
    assert not any("error" in chunk for chunk in chunks), chunks
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    return "".join(choice["delta"].get("content") or "" for choice in choices), choices[-1]["finish_reason"]


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """All calls in the same moment, each on a connection of its own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.02)


def entry(wire: Any, model: str) -> Any:
    return wire.get(f"/models/{model}").json


class TestTgiEndpoint:
    """0.8.x and 0.9.x with endpoints of type "tgi" (contract, section 3)."""

    @pytest.mark.parametrize("headers", [OLD, {"user_agent": "node", "x_use_cache": "false"}], ids=["0.8.4", "0.9.4"])
    def test_the_recorded_chat(self, three: Any, headers: dict[str, str]) -> None:
        body = old_body()
        if "x_use_cache" in headers:
            del body["options"]
        _, ended = check_native(three.post("/models/org/llama3", body, **headers))
        assert ended, "the end token is special: Chat UI shows no Continue button"

    def test_the_recorded_title_with_its_fifteen_tokens(self, three: Any) -> None:
        pairs = "".join(f"User: question {number}\nTitle: answer {number}\n" for number in range(7))
        answer = three.post("/", old_body(pairs + "User: hello\nTitle: ", max_new_tokens=15), **OLD)
        _, ended = check_native(answer)
        assert len(answer.events) == 15
        assert not ended, "cut: Chat UI shows Continue"

    @pytest.mark.parametrize("model", MODELS)
    def test_a_model_is_named_by_path_by_query_and_by_parameter(self, three: Any, model: str) -> None:
        ways = (
            three.post(f"/models/{model}", old_body(temperature=None, top_p=None, top_k=None)),
            three.post(f"/?model={model}", old_body(temperature=None, top_p=None, top_k=None)),
            three.post("/", old_body(temperature=None, top_p=None, top_k=None, model=model)),
        )
        assert len({check_native(answer)[0] for answer in ways}) == 1
        assert entry(three, model)["state"] == "available"

    def test_the_bare_url_is_the_model_that_is_loaded(self, three: Any) -> None:
        check_native(three.post("/models/org/mistral", old_body()))
        check_native(three.post("/", old_body()))
        assert entry(three, "org/mistral")["state"] == "available"

    def test_an_unknown_model_in_the_path_is_told_in_words(self, three: Any) -> None:
        answer = three.post("/models/org/unknown", old_body())
        assert answer.status == 404
        assert set(answer.json) == {"error", "error_type"}
        assert "org/unknown" in answer.json["error"]

    def test_the_begin_token_in_the_prompt_is_not_doubled(self, three: Any) -> None:
        def tokens(inputs: str) -> str:
            body = {"inputs": inputs, "parameters": {"max_new_tokens": 1}}
            return str(three.post("/models/org/llama3/generate", body).headers["x-prompt-tokens"])

        assert tokens(PROMPT) == tokens(PROMPT.removeprefix("<|begin_of_text|>"))

    def test_a_transcript_longer_than_the_context_keeps_its_end(self, three: Any) -> None:
        check_native(three.post("/models/org/llama3", old_body("words without end " * 2000 + PROMPT)))

    def test_continue_goes_on_inside_the_last_answer(self, three: Any) -> None:
        check_native(three.post("/models/org/llama3", old_body(PROMPT + "Once upon a")))

    def test_the_body_ends_right_behind_the_last_event_of_a_connection_that_stays_open(self, three: Any) -> None:
        body = json.dumps(old_body(max_new_tokens=5))
        request = three.request("POST", "/", body, content_type="application/json")
        with three.connection(request.replace(b"connection: close\r\n", b"")) as peer:
            raw = b""
            while b"\r\n0\r\n\r\n" not in raw:
                raw += peer.recv(65536)
            last = raw.rpartition(b"data: ")[2]
            assert b'"generated_text":"' in last
            assert last.endswith(b"}\n\n\r\n0\r\n\r\n")

    def test_readers_that_stop_without_closing_hold_nobody_up(self, three: Any) -> None:
        """Stop in 0.8 and 0.9: the connection stays open and unread."""
        request = three.request("POST", "/models/org/llama3", json.dumps(old_body()), content_type="application/json")
        with three.connection(request) as first, three.connection(request) as second, three.connection(request):
            first.recv(100)
            second.recv(100)
            check_native(three.post("/models/org/llama3", old_body()))

    def test_a_refusal_is_one_event_with_a_text(self, three: Any) -> None:
        answer = three.post("/", old_body(temperature=-1))
        (event,) = answer.events
        assert event["error"] == "Input validation error: `temperature` must be strictly positive"


class TestOpenAI:
    """0.10 to 0.20, and endpoints of type "openai" in 0.8 and 0.9 (contract, section 4)."""

    @pytest.mark.parametrize("model", MODELS)
    def test_a_new_conversation_asks_for_its_title_and_an_answer_in_the_same_millisecond(
        self, three: Any, model: str
    ) -> None:
        title, answer = at_once(
            lambda: three.post(CHAT, new_body(model, TITLE), **NEW),
            lambda: three.post(CHAT, new_body(model), **{**NEW, "chatui_conversation_id": "6b0354edad27825a5701bea3"}),
        )
        assert check_chat(title) == (check_chat(title)[0], "length")
        text, finish = check_chat(answer)
        assert (finish, text != "") == ("stop", True)

    def test_many_conversations_begin_at_once_on_two_slots(self, three: Any) -> None:
        calls = [lambda body=body: three.post(CHAT, new_body(MODELS[0], body), **NEW) for body in (TITLE, FIRST_TURN)]
        for answer in at_once(*calls * 10):
            check_chat(answer)

    def test_conversations_on_different_models_are_all_answered(self, three: Any) -> None:
        calls = [lambda model=model: three.post(CHAT, new_body(model), **NEW) for model in MODELS]
        for answer, model in zip(at_once(*calls * 2), MODELS * 2, strict=True):
            check_chat(answer)
            assert answer.events[0]["model"] == model

    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize(
        "turns",
        [
            ("user:Stopped at once", "user:Then this"),
            ("system:", "user:An empty system text"),
            ("system:Be brief.\n\nBe brief.", "user:A preprompt that comes twice"),
            ("system:Be brief.", "system:Be brief.", "user:The role twice"),
            ("user:Hello", "assistant:The model was stopped he", "user:Go on"),
            ("system:", "user:One", "assistant:Two", "user:Three", "user:Four", "assistant:Five", "user:Six"),
        ],
        ids=["two-user-turns", "empty-system", "system-text-twice", "system-role-twice", "stopped", "0.8"],
    )
    def test_histories_that_templates_refuse_are_answered(self, three: Any, model: str, turns: tuple[str, ...]) -> None:
        messages = [dict(zip(("role", "content"), turn.split(":", 1), strict=True)) for turn in turns]
        check_chat(three.post(CHAT, new_body(model, {"messages": messages, "stream": True}), **NEW))

    def test_temperature_0_is_greedy(self, three: Any) -> None:
        texts = {check_chat(three.post(CHAT, new_body(MODELS[0], TITLE), **NEW))[0] for _ in range(3)}
        assert len(texts) == 1

    def test_the_recorded_chat_of_0_8_with_an_empty_token_and_a_repetition_penalty_for_another_one(
        self, three: Any
    ) -> None:
        body = {
            "messages": [{"role": "system", "content": ""}, {"role": "user", "content": "hello there"}],
            "stream": True,
            "max_tokens": 1024,
            "stop": ["</s>"],
            "temperature": 0.1,
            "top_p": 0.95,
            "frequency_penalty": 1.1,
        }
        headers = {"accept": "application/json", "user_agent": "OpenAI/JS 4.14.2"}
        for token in ("Bearer", "Bearer ", "Bearer sk-"):
            check_chat(three.post(CHAT, new_body("org/mistral", body), **headers, authorization=token))

    def test_a_text_in_parts(self, three: Any) -> None:
        parts = [{"type": "text", "text": "hello"}]
        messages = [{"role": "user", "content": parts}]
        check_chat(three.post(CHAT, new_body(MODELS[0], {"messages": messages, "stream": True}), **NEW))

    def test_an_unknown_model_is_served_as_if_none_were_named(self, three: Any) -> None:
        check_chat(three.post(CHAT, new_body("somebody/else"), **NEW))

    def test_a_refusal_before_the_stream_is_json_with_a_text(self, three: Any) -> None:
        answer = three.post(CHAT, new_body(MODELS[0], messages=[]), **NEW)
        assert (answer.status, isinstance(answer.json["error"], str)) == (422, True)

    def test_without_max_tokens_an_answer_runs_to_the_end_of_the_context(self, chat_server: Start) -> None:
        wire = chat_server(n_positions=400, answer_tokens=0, step_s=0)
        answer = wire.post(CHAT, new_body(MODELS[0], stream_options={"include_usage": True}), **NEW)
        assert check_chat(answer)[1] == "length"
        assert answer.events[-1]["usage"]["total_tokens"] == 400

    def test_the_model_list(self, three: Any) -> None:
        answer = three.get("/v1/models", authorization="Bearer sk-local").json
        assert answer["object"] == "list"
        assert [model["id"] for model in answer["data"]] == list(MODELS)
        for model in answer["data"]:
            assert model["providers"] == [{"context_length": 4096, "provider": "local"}]
            assert "supports_tools" not in json.dumps(model)
            assert three.get(f"/models/{model['id']}/v1/models/{model['id']}").json == model

    def test_what_the_list_says_of_a_model_lasts_since_it_is_read_once(self, three: Any) -> None:
        def descriptions() -> list[str]:
            return [model["description"] for model in three.get("/v1/models").json["data"]]

        before = descriptions()
        assert before[0] == "llama3, 4096 tokens of context, comes when it is asked for"
        for model in MODELS:
            check_chat(three.post(CHAT, new_body(model), **NEW))
            assert descriptions() == before


class TestStop:
    """Stop in 0.20 closes the connection (contract, section 4.5)."""

    def request(self, wire: Any, model: str) -> bytes:
        return bytes(wire.request("POST", CHAT, json.dumps(new_body(model)), content_type="application/json"))

    def test_in_mid_stream_frees_the_slot(self, endless: Any) -> None:
        with endless.connection(self.request(endless, MODELS[0])) as peer:
            raw = b""
            while raw.count(b"data: ") < 3:
                raw += peer.recv(65536)
            assert entry(endless, MODELS[0])["running"] == 1
        eventually(lambda: entry(endless, MODELS[0])["running"] == 0)

    def test_before_the_first_token_leaves_nothing_waiting(self, endless: Any) -> None:
        with endless.connection(self.request(endless, MODELS[1])) as peer:
            assert peer.recv(100).startswith(b"HTTP/1.1 200 OK")
            eventually(lambda: entry(endless, MODELS[1])["parked"] == 1)
        eventually(lambda: entry(endless, MODELS[1])["parked"] + entry(endless, MODELS[1])["waiting"] == 0)
        eventually(lambda: entry(endless, MODELS[1])["running"] == 0)


class TestLoading:
    """The first tokens after a slow load: headers at once, comments, never a 429 or 5xx (contract, section 1)."""

    SLOW = "[server]\nkeepalive_interval = 0.2\n[swap]\nmin_resident = 0\n"

    def test_comments_come_often_enough_for_both_generations(self) -> None:
        assert 10 <= ServerSettings().keepalive_interval <= 15

    @pytest.mark.parametrize("generation", ["tgi", "openai"])
    def test_a_request_waits_for_its_model_with_headers_and_comments(self, chat_server: Start, generation: str) -> None:
        wire = chat_server(self.SLOW, load_s=1.5)
        path, body = (f"/models/{MODELS[1]}", old_body()) if generation == "tgi" else (CHAT, new_body(MODELS[1]))
        check = check_native if generation == "tgi" else check_chat
        request = wire.request("POST", path, json.dumps(body), content_type="application/json")
        with wire.connection(request) as peer:
            assert peer.recv(15) == b"HTTP/1.1 200 OK"
            assert entry(wire, MODELS[1])["state"] != "available"
            answer, listed = at_once(lambda: wire.post(path, body), lambda: wire.get("/v1/models"))
        assert [model["id"] for model in listed.json["data"]] == list(MODELS)
        check(answer)
        comments = [chunk == b":\n\n" for chunk in answer.chunks]
        first_event = comments.index(False)
        assert first_event >= 1
        assert not any(comments[first_event:])

    def test_the_first_model_s_list_and_answers_come_while_it_loads(self, chat_server: Start) -> None:
        wire = chat_server(self.SLOW, wait=False, load_s=2)
        eventually(lambda: _listens(wire))
        assert [model["id"] for model in wire.get("/v1/models").json["data"]] == list(MODELS)
        assert wire.get("/health").status == 503
        title, answer = at_once(
            lambda: wire.post(CHAT, new_body(MODELS[0], TITLE), **NEW),
            lambda: wire.post(CHAT, new_body(MODELS[0]), **NEW),
        )
        assert answer.chunks[0] == title.chunks[0] == b":\n\n"
        check_chat(title)
        check_chat(answer)


class TestErrorInMidStream:
    """A device that cannot go on, told in the form each generation shows (contract, sections 3.3 and 4.3)."""

    def test_0_8_and_0_9_keep_the_text_and_show_a_string(self, broken: Any) -> None:
        *tokens, last = broken.post(f"/models/{MODELS[0]}", old_body(), **OLD).events
        assert len(tokens) >= 1
        assert all("error" not in event for event in tokens)
        assert set(last) == {"error", "error_type"}
        assert isinstance(last["error"], str)
        assert last["error_type"] == "generation"

    def test_0_20_gets_an_object_with_a_message(self, broken: Any) -> None:
        answer = broken.post(CHAT, new_body(MODELS[1]), **NEW)
        *chunks, last = answer.events
        assert len(chunks) >= 1
        assert all("error" not in chunk for chunk in chunks)
        assert isinstance(last["error"]["message"], str)
        assert answer.body.endswith(b"data: [DONE]\n\n")


class TestEnvironmentFiles:
    """configs/chat-ui/: what users copy fits the server's own configuration."""

    @pytest.fixture
    def old(self) -> dict[str, str]:
        return _environment("tgi.env")

    def test_each_model_of_the_chip_has_an_entry_named_by_its_path(self, old: dict[str, str]) -> None:
        chip = load_settings(ROOT / "configs" / "inf2.toml", {}, {})
        entries = json.loads(old["MODELS"])
        assert [model["name"] for model in entries] == [model.id for model in chip.models]
        for model in entries:
            (endpoint,) = model["endpoints"]
            assert endpoint == {"type": "tgi", "url": f"http://127.0.0.1:8080/models/{model['name']}"}

    def test_its_parameters_are_accepted(self, old: dict[str, str], three: Any) -> None:
        tasks = json.loads(old["TASK_MODEL"])
        for settings in (*json.loads(old["MODELS"]), tasks):
            parameters = {**settings["parameters"], "return_full_text": False}
            check_native(three.post("/", {"inputs": PROMPT, "parameters": parameters, "stream": True}))

    def test_titles_go_to_the_model_that_is_loaded(self, old: dict[str, str]) -> None:
        assert json.loads(old["TASK_MODEL"])["endpoints"] == [{"type": "tgi", "url": "http://127.0.0.1:8080"}]
        assert _environment("openai.env")["TASK_MODEL"] == ""

    def test_the_current_generation_needs_one_url(self) -> None:
        assert _environment("openai.env")["OPENAI_BASE_URL"] == "http://127.0.0.1:8080/v1"


def _environment(name: str) -> dict[str, str]:
    """The variables of a dotenv file; a value in backquotes may have several lines."""
    text = (ROOT / "configs" / "chat-ui" / name).read_text("utf-8")
    lines = re.findall(r"^(\w+)=(?:`([^`]*)`|(.*))$", text, re.MULTILINE)
    return {name: quoted or plain for name, quoted, plain in lines}


def _listens(wire: Any) -> bool:
    try:
        return bool(wire.get("/livez").status == 200)
    except OSError:
        return False
