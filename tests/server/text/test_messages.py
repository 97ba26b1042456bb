"""The plain text of messages, and folding them for templates that know only user and assistant in turns."""

from __future__ import annotations

import msgspec
import pytest

from server.text.messages import Message, folded, text_of_message


def read(body: str) -> Message:
    return msgspec.json.decode(body, type=Message)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"role":"user","content":"hi"}', "hi"),
        ('{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}', "ab"),
        (
            '{"role":"user","content":[{"type":"text","text":"see "},'
            '{"type":"image_url","image_url":{"url":"http://x/y.png"}}]}',
            "see ![](http://x/y.png)",
        ),
        (
            '{"role":"assistant","tool_calls":[{"id":"0","type":"function","function":{"name":"f","arguments":"{}"}}]}',
            '[{"id":"0","type":"function","function":{"description":null,"name":"f","arguments":"{}"}}]',
        ),
    ],
)
def test_content_becomes_text_as_in_tgi(body: str, text: str) -> None:
    assert text_of_message(read(body)) == text


def turns(*pairs: tuple[str, str]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in pairs]


def pairs(messages: list[Message]) -> list[tuple[str, object]]:
    return [(message.role, message.content) for message in messages]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([("system", "S"), ("user", "a")], [("user", "S\n\na")]),
        ([("system", ""), ("user", "a")], [("user", "a")]),
        ([("developer", "S"), ("system", "T"), ("user", "a")], [("user", "S\n\nT\n\na")]),
        ([("user", "a"), ("user", "b"), ("assistant", "c")], [("user", "a\n\nb"), ("assistant", "c")]),
        ([("user", "a"), ("system", "S"), ("user", "b")], [("user", "S\n\na\n\nb")]),
        ([("system", "S")], [("user", "S")]),
        ([("system", "S"), ("assistant", "x")], [("user", "S"), ("assistant", "x")]),
        ([("user", "a"), ("assistant", "b"), ("user", "c")], [("user", "a"), ("assistant", "b"), ("user", "c")]),
    ],
)
def test_folding(before: list[tuple[str, str]], after: list[tuple[str, str]]) -> None:
    assert pairs(folded(turns(*before))) == after
