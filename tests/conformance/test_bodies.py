"""Section 2a of the wire contract: bodies that cannot be read as the expected type are plain text, on every route."""

from __future__ import annotations

from typing import Any

import pytest

ROUTES = [
    "/",
    "/generate",
    "/generate_stream",
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/chat_tokenize",
    "/vertex",
    "/models/org/model",
    "/models/org/model/generate",
    "/models/org/model/v1/completions",
]
FIELDS = {"chat": "messages", "completions": "prompt", "vertex": "instances"}
NOT_JSON = "Failed to parse the request body as JSON: "
WRONG = "Failed to deserialize the JSON body into the target type: "


def refused(answer: Any, status: int, text: str) -> None:
    assert (answer.status, answer.headers["content-type"]) == (status, "text/plain; charset=utf-8")
    assert answer.body.decode() == text


@pytest.mark.parametrize("route", ROUTES)
class TestEveryRoute:
    def test_2a_no_content_type(self, wire: Any, route: str) -> None:
        text = "Expected request with `Content-Type: application/json`"
        refused(wire.send("POST", route, '{"inputs":"x"}'), 415, text)

    def test_2a_a_forms_content_type(self, wire: Any, route: str) -> None:
        text = "Expected request with `Content-Type: application/json`"
        refused(wire.post(route, '{"inputs":"x"}', content_type="application/x-www-form-urlencoded"), 415, text)

    def test_2a_no_body(self, wire: Any, route: str) -> None:
        refused(wire.post(route, ""), 400, NOT_JSON + "EOF while parsing a value at line 1 column 0")

    def test_2a_malformed(self, wire: Any, route: str) -> None:
        answer = wire.post(route, '{"inputs": "x",')
        assert (answer.status, answer.body[: len(NOT_JSON)]) == (400, NOT_JSON.encode())

    def test_2a_empty_object(self, wire: Any, route: str) -> None:
        field = next((field for word, field in FIELDS.items() if word in route), "inputs")
        refused(wire.post(route, "{}"), 422, f"{WRONG}missing field `{field}` at line 1 column 2")

    def test_2a_too_long_by_its_declared_length(self, wire: Any, route: str) -> None:
        answer = wire.post(route, {"inputs": "x" * 2000})
        refused(answer, 413, "Failed to buffer the request body: length limit exceeded")

    def test_2a_too_long_without_a_declared_length(self, wire: Any, route: str) -> None:
        piece = b"400\r\n" + b" " * 0x400 + b"\r\n"
        head = f"POST {route} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        request = head.encode() + b"transfer-encoding: chunked\r\n\r\n" + piece * 2 + b"0\r\n\r\n"
        with wire.connection(request) as peer, peer.makefile("rb") as answer:
            raw = answer.read()
        assert raw.startswith(b"HTTP/1.1 413 ")
        assert raw.endswith(b"\r\n\r\nFailed to buffer the request body: length limit exceeded")


NATIVE = [
    ("inputs-null", '{"inputs":null}', "inputs: invalid type: null, expected a string at line 1 column 15"),
    ("inputs-list", '{"inputs":["x"]}', "inputs: invalid type: sequence, expected a string at line 1 column 16"),
    ("parameters-null", '{"inputs":"x","parameters":null}',
     "parameters: invalid type: null, expected struct GenerateParameters at line 1 column 32"),
    ("inputs-twice", '{"inputs":"x","inputs":"y"}', "duplicate field `inputs` at line 1 column 27"),
]  # fmt: skip

PARAMETERS = [
    ("max_new_tokens-negative", '"max_new_tokens":-1', "max_new_tokens: invalid value: integer `-1`, expected u32"),
    ("max_new_tokens-float", '"max_new_tokens":20.0',
     "max_new_tokens: invalid type: floating point `20.0`, expected u32"),
    ("max_new_tokens-string", '"max_new_tokens":"20"', 'max_new_tokens: invalid type: string "20", expected u32'),
    ("max_new_tokens-bool", '"max_new_tokens":true', "max_new_tokens: invalid type: boolean `true`, expected u32"),
    ("max_new_tokens-2^32", '"max_new_tokens":4294967296',
     "max_new_tokens: invalid value: integer `4294967296`, expected u32"),
    ("best_of-negative", '"best_of":-1', "best_of: invalid value: integer `-1`, expected usize"),
    ("truncate-negative", '"truncate":-1', "truncate: invalid value: integer `-1`, expected usize"),
    ("top_n_tokens-negative", '"top_n_tokens":-1', "top_n_tokens: invalid value: integer `-1`, expected u32"),
    ("seed-negative", '"seed":-1', "seed: invalid value: integer `-1`, expected u64"),
    ("seed-2^64", '"seed":18446744073709551616',
     "seed: invalid type: floating point `18446744073709552000.0`, expected u64"),
    ("top_k-2^31", '"top_k":2147483648', "top_k: invalid value: integer `2147483648`, expected i32"),
    ("temperature-string", '"temperature":"1"', 'temperature: invalid type: string "1", expected f32'),
    ("temperature-bool", '"temperature":true', "temperature: invalid type: boolean `true`, expected f32"),
    ("stop-null", '"stop":null', "stop: invalid type: null, expected a sequence"),
    ("stop-string", '"stop":"x"', 'stop: invalid type: string "x", expected a sequence'),
    ("stop-item", '"stop":["x",1]', "stop[1]: invalid type: integer `1`, expected a string"),
    ("do_sample-null", '"do_sample":null', "do_sample: invalid type: null, expected a boolean"),
    ("details-null", '"details":null', "details: invalid type: null, expected a boolean"),
    ("details-int", '"details":1', "details: invalid type: integer `1`, expected a boolean"),
    ("watermark-null", '"watermark":null', "watermark: invalid type: null, expected a boolean"),
    ("grammar-unknown", '"grammar":{"type":"xml","value":""}',
     "grammar.type: unknown variant `xml`, expected one of `json`, `regex`, `json_schema`"),
    ("grammar-no-value", '"grammar":{"type":"json"}', "grammar: missing field `value`"),
    ("grammar-no-type", '"grammar":{"value":{}}', "grammar: missing field `type`"),
    ("regex-not-a-string", '"grammar":{"type":"regex","value":{}}',
     "grammar.value: invalid type: map, expected a string"),
    ("repeated", '"top_k":1,"top_k":1', " duplicate field `top_k`"),
    ("grammar-type-twice", '"grammar":{"type":"regex","type":"regex","value":"a"}', "grammar: duplicate field `type`"),
    ("grammar-value-twice", '"grammar":{"type":"regex","value":"a","value":"a"}', "grammar: duplicate field `value`"),
    ("schema-twice", '"grammar":{"type":"json_schema","value":{"schema":{},"schema":{}}}',
     "grammar.value: duplicate field `schema`"),
]  # fmt: skip

CHAT = [
    ("messages-null", '{"messages":null}', "messages: invalid type: null, expected a sequence"),
    ("no-role", '{"messages":[{"content":"x"}]}', "messages[0]: missing field `role`"),
    ("no-content", '{"messages":[{"role":"user"}]}',
     "messages[0]: data did not match any variant of untagged enum MessageBody"),
    ("null-content", '{"messages":[{"role":"user","content":null}]}',
     "messages[0]: data did not match any variant of untagged enum MessageBody"),
    ("number-content", '{"messages":[{"role":"user","content":"x"},{"role":"user","content":1}]}',
     "messages[1]: data did not match any variant of untagged enum MessageBody"),
    ("unknown-part", '{"messages":[{"role":"user","content":[{"type":"audio"}]}]}',
     "messages[0]: data did not match any variant of untagged enum MessageBody"),
    *[
        (f"{name}-twice", f'{{"messages":[{{"role":"user","content":"x","{name}":"a","{name}":"b"}}]}}',
         f"messages[0]: duplicate field `{name}`")
        for name in ("name", "tool_call_id")
    ],
    ("role-twice", '{"messages":[{"role":"user","role":"system","content":"x"}]}',
     "messages[0]: duplicate field `role`"),
    *[
        (f"{where}-twice", f'{{"messages":[{{"role":"user","content":"x"}},{{"role":"user",{body}}}]}}',
         "messages[1]: data did not match any variant of untagged enum MessageBody")
        for where, body in [
            ("content", '"content":"x","content":"y"'),
            ("tool_calls", '"tool_calls":[],"tool_calls":[]'),
            ("part-type", '"content":[{"type":"text","type":"text","text":"x"}]'),
            ("part-text", '"content":[{"type":"text","text":"x"},{"type":"text","text":"y","text":"z"}]'),
            ("image-url", '"content":[{"type":"image_url","image_url":{"url":"x","url":"y"}}]'),
            ("call-id", '"tool_calls":[{"id":"1","id":"2","function":{"name":"f","arguments":{}}}]'),
            ("call-name", '"tool_calls":[{"id":"1","function":{"name":"f","name":"g","arguments":{}}}]'),
        ]
    ],
    *[
        (f"response_format-{where}-twice", f'{{"messages":[],"response_format":{{{members}}}}}',
         f"response_format{inside}: duplicate field `{where}`")
        for where, members, inside in [
            ("type", '"type":"text","type":"json_object"', ""),
            ("value", '"type":"json","value":{},"value":{}', ""),
            ("json_schema", '"type":"json_schema","json_schema":{"schema":{}},"json_schema":{"schema":{}}', ""),
            ("schema", '"type":"json_schema","json_schema":{"schema":{},"schema":{}}', ".json_schema"),
            ("name", '"type":"json_schema","value":{"name":"a","name":"a","schema":{}}', ".value"),
        ]
    ],
    *[
        (f"tool_choice-{where}-twice", f'{{"messages":[],"tool_choice":{{{members}}}}}',
         "tool_choice: data did not match any variant of untagged enum ToolType")
        for where, members in [
            ("type", '"type":"function","type":"function","function":{"name":"f"}'),
            ("function", '"function":{"name":"f"},"function":{"name":"f"}'),
            ("name", '"function":{"name":"f","name":"f"}'),
        ]
    ],
    ("both-max-tokens", '{"messages":[],"max_tokens":1,"max_completion_tokens":1}', "duplicate field `max_tokens`"),
    ("max_tokens-negative", '{"messages":[],"max_tokens":-1}', "max_tokens: invalid value: integer `-1`, expected u32"),
    ("stream-null", '{"messages":[],"stream":null}', "stream: invalid type: null, expected a boolean"),
    ("stream_options-null", '{"messages":[],"stream_options":null}',
     "stream_options: invalid type: null, expected struct StreamOptions"),
    ("tool_choice-number", '{"messages":[],"tool_choice":1}',
     "tool_choice: data did not match any variant of untagged enum ToolType"),
]  # fmt: skip


def starts(answer: Any, reason: str) -> None:
    assert (answer.status, answer.headers["content-type"]) == (422, "text/plain; charset=utf-8")
    assert (
        answer.body.decode().startswith(WRONG + reason + " at line 1 column ") or answer.body.decode() == WRONG + reason
    )


@pytest.mark.parametrize("route", ["/", "/generate", "/generate_stream"])
@pytest.mark.parametrize(("body", "reason"), [pytest.param(b, r, id=f"2a-{i}") for i, b, r in NATIVE])
def test_native_bodies(wire: Any, route: str, body: str, reason: str) -> None:
    starts(wire.post(route, body), reason)


@pytest.mark.parametrize(("member", "reason"), [pytest.param(m, r, id=f"2a-3-{i}") for i, m, r in PARAMETERS])
def test_native_parameters(wire: Any, member: str, reason: str) -> None:
    path = "parameters:" if reason.startswith(" ") else "parameters."
    starts(wire.post("/generate_stream", f'{{"inputs":"x","parameters":{{{member}}}}}'), path + reason)


@pytest.mark.parametrize(("body", "reason"), [pytest.param(b, r, id=f"2a-11-{i}") for i, b, r in CHAT])
def test_chat_bodies(wire: Any, body: str, reason: str) -> None:
    starts(wire.post("/v1/chat/completions", body), reason)


ONE = '"parameters":{"max_new_tokens":1'
ACCEPTED = [
    ("2a-vendor-json", {"content_type": "application/vnd.x+json; charset=utf-8"}, '{"inputs":"x",' + ONE + "}}"),
    ("2a-unknown-fields", {}, '{"inputs":"x","extra":{"a":[1]},' + ONE + ',"stop_sequences":["x"]}}'),
    ("2a-nulls", {}, '{"inputs":"x",' + ONE + ',"best_of":null,"temperature":null,"top_k":null,"top_p":null,'
     '"typical_p":null,"seed":null,"truncate":null,"top_n_tokens":null,"grammar":null,"adapter_id":null,'
     '"return_full_text":null,"repetition_penalty":null,"frequency_penalty":null}}'),
    ("3-integer-for-a-float", {}, '{"inputs":"x",' + ONE + ',"temperature":1}}'),
    ("3-largest-seed", {}, '{"inputs":"x",' + ONE + ',"seed":18446744073709551615}}'),
    ("3-watermark-and-adapter", {}, '{"inputs":"x",' + ONE + ',"watermark":true,"adapter_id":"none"}}'),
    ("3-escaped-astral", {}, r'{"inputs":"\ud83d\ude00",' + ONE + "}}"),
    ("17-chat-ui-0.8", {}, '{"inputs":"<s>hi",' + ONE + ',"return_full_text":false},'
     '"stream":false,"options":{"use_cache":false}}'),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "body"), [pytest.param(h, b, id=i) for i, h, b in ACCEPTED])
def test_accepted_bodies(wire: Any, headers: dict[str, str], body: str) -> None:
    answer = wire.post("/generate", body, **headers)
    assert (answer.status, list(answer.json)) == (200, ["generated_text"])
