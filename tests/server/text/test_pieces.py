"""Which decoders work token by token, and what a token is in bytes."""

from __future__ import annotations

from typing import Any

import pytest

from server.text.pieces import piece_reader

REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
FALLBACK, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(steps)}


def test_byte_level_maps_stand_ins_to_their_bytes() -> None:
    piece = piece_reader({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True})

    assert piece is not None
    assert piece("Ġhello") == b" hello"
    assert piece("è·") == b"\xe8\xb7"
    assert piece("<|im_end|>") == b"<|im_end|>"
    assert piece("an added token 离") == "an added token 离".encode()


@pytest.mark.parametrize(
    "decoder",
    [
        sequence(REPLACE, FALLBACK, FUSE, STRIP),
        sequence(FALLBACK, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}),
    ],
)
def test_sentencepiece_maps_spaces_and_byte_tokens(decoder: dict[str, Any]) -> None:
    piece = piece_reader(decoder)

    assert piece is not None
    assert piece("▁hello") == b" hello"
    assert piece("<0xE8>") == b"\xe8"
    assert piece("<0xZZ>") == b"<0xZZ>"


def test_without_byte_fallback_a_byte_token_is_its_name() -> None:
    piece = piece_reader(REPLACE)

    assert piece is not None
    assert piece("<0xE8>") == b"<0xE8>"


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        sequence(FUSE, REPLACE),
        sequence(REPLACE, STRIP),
        sequence(REPLACE, FUSE, {"type": "Strip", "content": " ", "start": 0, "stop": 1}),
        sequence({"type": "Replace", "pattern": {"Regex": "▁+"}, "content": " "}),
    ],
)
def test_decoders_that_look_beyond_one_token_are_left_to_the_library(decoder: dict[str, Any] | None) -> None:
    assert piece_reader(decoder) is None
