"""Naming a model (section 18 of the wire contract) and the swap API (docs/architecture.md, Exchanging models)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

BODY = {"inputs": "hello", "parameters": {"max_new_tokens": 50, "details": True}}
LOCAL = {"content_type": "application/json"}


@pytest.fixture(autouse=True)
def first_model_is_active(wire: Any) -> Iterator[None]:
    yield
    assert wire.post("/models/org/model/activate?wait=true", {}).status == 200


def ends_by_itself(answer: Any) -> bool:
    """org/model-2 ends after five tokens, org/model never does."""
    body = answer.json[0] if isinstance(answer.json, list) else answer.json
    return body["details"]["finish_reason"] == "eos_token"


class TestNaming:
    """Section 18."""

    @pytest.mark.parametrize(
        "path",
        [
            "/models/org/model-2/generate",
            "/models/org/model-2",
            "/models/org%2Fmodel-2/generate",
            "/generate?model=org/model-2",
            "/?model=org/model-2",
            "/?model=org%2Fmodel-2",
        ],
        ids=lambda path: f"18-{path}",
    )
    def test_by_path_and_query(self, wire: Any, path: str) -> None:
        assert ends_by_itself(wire.post(path, BODY))

    def test_18_by_parameter(self, wire: Any) -> None:
        assert ends_by_itself(wire.post("/", {**BODY, "parameters": {**BODY["parameters"], "model": "org/model-2"}}))

    @pytest.mark.parametrize("name", [None, "", "tgi", "dummy", "http://127.0.0.1:8080", 5], ids=lambda n: f"18-{n}")
    def test_unknown_names_go_to_the_active_model(self, wire: Any, name: object) -> None:
        answer = wire.post("/generate", {**BODY, "parameters": {**BODY["parameters"], "model": name}})
        assert not ends_by_itself(answer)

    def test_18_chat_by_body(self, wire: Any) -> None:
        body = {"messages": [{"role": "user", "content": "hi"}], "model": "org/model-2", "temperature": 0}
        answer = wire.post("/v1/chat/completions", body).json
        assert (answer["model"], answer["choices"][0]["finish_reason"]) == ("org/model-2", "stop")

    def test_18_a_bare_request_stays_on_the_model_that_a_named_one_brought(self, wire: Any) -> None:
        wire.post("/generate?model=org/model-2", BODY)
        assert ends_by_itself(wire.post("/generate", BODY))
        assert wire.get("/info").json["model_id"] == "org/model-2"
        assert wire.get("/info?model=org/model").json["model_id"] == "org/model"

    def test_18_streams_wait_for_their_model(self, wire: Any) -> None:
        answer = wire.post("/models/org/model-2/generate_stream", BODY)
        assert (answer.status, answer.events[-1]["details"]["finish_reason"]) == (200, "eos_token")


class TestExchange:
    """Design, section 7."""

    def test_get_models(self, wire: Any) -> None:
        answer = wire.get("/models").json
        assert answer["object"] == "list"
        assert [entry["id"] for entry in answer["data"]] == ["org/model", "org/model-2"]
        assert answer["data"][0] == {
            "id": "org/model",
            "family": "llama",
            "state": "available",
            "active": True,
            "progress": None,
            "waiting": 0,
            "running": 0,
            "parked": 0,
            "slots": 4,
            "memory_bytes": None,
            "error": None,
        }
        assert wire.get("/models/org/model").json == answer["data"][0]

    def test_activate_an_available_model_is_200(self, wire: Any) -> None:
        answer = wire.post("/models/org/model/activate", {})
        assert (answer.status, answer.json["state"]) == (200, "available")

    def test_activate_another_is_202_and_becomes_available(self, wire: Any) -> None:
        answer = wire.post("/models/org/model-2/activate", {})
        assert (answer.status, answer.json["id"]) == (202, "org/model-2")
        answer = wire.post("/models/org/model-2/activate?wait=true", {})
        assert (answer.status, answer.json["state"]) == (200, "available")
        assert wire.get("/models/org/model").json["state"] == "unloaded"

    def test_unload_is_202(self, wire: Any) -> None:
        assert wire.post("/models/org/model-2/unload", {}).status == 202

    def test_events(self, wire: Any) -> None:
        with wire.connection(wire.request("GET", "/models/events")) as peer, peer.makefile("rb") as answer:
            lines = iter(answer)
            head = b"".join(iter(lambda: next(lines), b"\r\n"))
            assert b"content-type: text/event-stream\r\n" in head
            first = next(line for line in lines if line.startswith(b"data: "))
            assert json.loads(first[6:])["id"] == "org/model"
            wire.post("/models/org/model-2/activate", {})
            states = []
            while "available" not in states:
                line = next(lines)
                if line.startswith(b"data: ") and (entry := json.loads(line[6:]))["id"] == "org/model-2":
                    states.append(entry["state"])
            assert [s for s in ("unloaded", "staging", "loading", "available") if s in states] == list(
                dict.fromkeys(states)
            )


class TestWhoMay:
    """Design, section 7: without an admin key, only this machine; no page of another origin."""

    @pytest.mark.parametrize("action", ["activate", "unload"])
    @pytest.mark.parametrize(
        "headers",
        [
            {"x_forwarded_for": "10.0.0.1"},
            {"forwarded": "for=10.0.0.1"},
            {"x_forwarded_proto": "https"},
            {"host": "attacker.example"},
            {"host": "attacker.example:8080"},
            {"origin": "https://attacker.example"},
            {"origin": "null"},
        ],
        ids=lambda headers: "-".join(f"{k}={v}" for k, v in headers.items()),
    )
    def test_what_could_come_from_elsewhere_is_403(self, wire: Any, action: str, headers: dict[str, str]) -> None:
        answer = wire.post(f"/models/org/model-2/{action}", {}, **headers)
        assert (answer.status, answer.json["error_type"]) == (403, "forbidden")

    def test_a_form_of_another_page_is_415(self, wire: Any) -> None:
        answer = wire.send("POST", "/models/org/model-2/activate", "", content_type="text/plain")
        assert answer.status == 415
        assert wire.send("POST", "/models/org/model-2/activate").status == 415

    @pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:1", "127.1.2.3", "[::1]:1"])
    def test_loopback_hosts_may(self, wire: Any, host: str) -> None:
        assert wire.post("/models/org/model/activate", {}, host=host).status == 200
        assert wire.post("/models/org/model/activate", {}, host=host, origin=f"http://{host}").status == 200

    def test_no_cors(self, wire: Any) -> None:
        answer = wire.post("/models/org/model/activate", {})
        assert "access-control-allow-origin" not in answer.headers
        preflight = wire.send("OPTIONS", "/models/org/model/activate", origin="https://attacker.example")
        assert (preflight.status, preflight.headers["allow"]) == (405, "POST")
        assert "access-control-allow-origin" not in preflight.headers

    def test_with_an_admin_key_whoever_has_it(self, guarded: Any) -> None:
        path = "/models/org/model/activate"
        assert guarded.post(path, {}).status == 403
        assert guarded.post(path, {}, authorization="Bearer Secret").status == 403
        assert guarded.post(path, {}, authorization="Bearer Admin", x_forwarded_for="10.0.0.1").status == 200
