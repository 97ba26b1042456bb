"""Incremental text: no U+FFFD for a character that is split over tokens, and nothing held back for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cpu.embedded import embedded_directory
from server.text.tokenizer import REPLACEMENT, Detokenizer, Tokenizer

# Short texts of every kind, with the characters that need several tokens well represented.
texts = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("你好距离🙂👍é \n")), max_size=40)


def pushes(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [detokenizer.push(token) for token in ids]


@pytest.fixture(scope="session", params=["byte_level", "byte_fallback", "windowed"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Tokenizer)
    return found


@given(texts)
@settings(max_examples=150, deadline=None)
def test_the_pieces_join_to_the_whole_and_no_character_is_broken(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)

    pieces = pushes(tokenizer, ids)

    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert REPLACEMENT in text or not any(REPLACEMENT in piece for piece in pieces)


@given(texts, st.data())
@settings(max_examples=100, deadline=None)
def test_a_cut_anywhere_delivers_all_complete_characters(tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    cut = data.draw(st.integers(0, len(ids)))

    delivered = "".join(pushes(tokenizer, ids[:cut]))

    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert whole.startswith(delivered)
    assert not tokenizer.bytewise or delivered == tokenizer.decode(ids[:cut], skip_special_tokens=True).rstrip(
        REPLACEMENT
    )


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_tokens_at_all_join_to_what_decoding_them_gives(
    byte_level: Tokenizer, byte_fallback: Tokenizer, data: st.DataObject
) -> None:
    tokenizer = data.draw(st.sampled_from([byte_level, byte_fallback]))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=40))

    spoken = "".join(
        text for token, text in zip(ids, pushes(tokenizer, ids), strict=True) if token not in tokenizer.special_ids
    )

    whole = tokenizer.decode(ids, skip_special_tokens=True)
    # An incomplete last character is the one thing that decoding shows and a stream still holds back.
    assert whole in (spoken, spoken + REPLACEMENT)


@pytest.mark.parametrize("text", ["🙂", "距离", "👩‍👩‍👧", "🇨🇳"])
def test_the_completing_token_carries_the_whole_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode("a" + text, add_special_tokens=False)

    pieces = [piece for piece in pushes(tokenizer, ids) if piece]

    assert "".join(pieces).strip(" ") == "a" + text


def bytes_of(tokenizer: Tokenizer, body: bytes) -> list[int]:
    """The tokens that stand for single bytes."""
    one = {tokenizer.piece(i): i for i in reversed(range(tokenizer.vocab_size)) if i not in tokenizer.special_ids}
    return [one[bytes([byte])] for byte in body]


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_bytes_that_cannot_become_a_character_hold_nothing_back(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)

    assert pushes(tokenizer, bytes_of(tokenizer, b"\xff\xff")) == [REPLACEMENT, REPLACEMENT]
    assert pushes(tokenizer, bytes_of(tokenizer, b"\xe8\xb7" + b"ab")) == ["", "", REPLACEMENT + "a", "b"]


def test_valid_characters_survive_beside_an_invalid_byte(byte_fallback: Tokenizer) -> None:
    """The library's own decoder would turn all seven bytes of such a run into U+FFFD."""
    ids = bytes_of(byte_fallback, "离离".encode() + b"\xff")

    assert "".join(pushes(byte_fallback, ids)) == "离离" + REPLACEMENT
    assert byte_fallback.decode(ids, skip_special_tokens=True) == "离离" + REPLACEMENT


def test_an_unknown_decoder_holds_no_more_than_a_character(windowed: Tokenizer, byte_level: Tokenizer) -> None:
    ids = bytes_of(byte_level, b"\xff" * 8)

    assert [len(text) for text in pushes(windowed, ids)] == [0, 0, 0, 4, 0, 0, 0, 4]


def test_a_special_token_has_its_own_text_and_leaves_the_rest_alone(tokenizer: Tokenizer) -> None:
    split = tokenizer.encode("🙂", add_special_tokens=False)
    ids = [*split[:-1], 2, split[-1]]

    pieces = pushes(tokenizer, ids)

    assert pieces[-2] == "</s>"
    assert pieces[-1] == "🙂"


def test_the_first_word_behind_a_prompt_keeps_its_space(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("The quick brown", add_special_tokens=True)
    whole = tokenizer.encode("The quick brown fox", add_special_tokens=True)
    assert whole[: len(prompt)] == prompt

    assert "".join(pushes(tokenizer, whole[len(prompt) :], prompt)) == " fox"


@pytest.mark.parametrize(
    "text",
    ["写一篇小学生心理健康的作文，不超过300字。", "Dear 👩‍👩‍👧, ça va?", "\tindented\n\n  text"],
)
def test_the_embedded_model_speaks_every_language(embedded_set_up: None, text: str) -> None:
    tokenizer = Tokenizer.load(embedded_directory())
    ids = tokenizer.encode(text, add_special_tokens=False)

    pieces = pushes(tokenizer, ids)

    assert "".join(pieces) == text
    assert all(REPLACEMENT not in piece for piece in pieces)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama3", {"model_type": "llama", "vocab_size": 128_256, "eos_token_id": 128_001}),
        ("llama2", {"model_type": "llama", "vocab_size": 32_016, "eos_token_id": 2}),
    ],
)
def test_published_tokenizers_stream_what_they_encode(
    published: Callable[[str, dict[str, Any]], Path], name: str, config: dict[str, Any]
) -> None:
    tokenizer = Tokenizer.load(published(name, config))

    for text in ("计算一下北京到上海的距离", "👩‍👩‍👧 and 🇨🇳, naïve  spaces\n\n", "𠜎𠜱 ᚠᛇᚻ"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = pushes(tokenizer, ids)
        assert "".join(pieces).removeprefix(" " if name == "llama2" else "") == text
        assert all(REPLACEMENT not in piece for piece in pieces)
