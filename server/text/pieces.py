"""What one token contributes to a text, in bytes.

The decoders of the served families work token by token: a text is the concatenation of its tokens' bytes, read as
UTF-8. That makes detokenising incremental by nature, and independent of where a text is cut. Only the space that
sentencepiece's decoders strip from the very start of a text is left out here: an answer follows a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Piece = Callable[[str], bytes]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def piece_reader(decoder: Mapping[str, Any] | None) -> Piece | None:
    """The function from a token's name to its bytes, for the `decoder` of a tokenizer.json; None: not tokenwise.

    Known are ByteLevel (Llama 3, SmolLM2), and sentencepiece's as Replace or Metaspace, ByteFallback, Fuse, Strip
    (Llama 2, CodeLlama, Mistral).
    """
    steps = list(_flattened(decoder)) if decoder else []
    if [step.get("type") for step in steps] == ["ByteLevel"]:
        return _byte_level
    spaces: list[tuple[str, str]] = []
    byte_fallback = fused = False
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not fused:
                spaces.append((old, new))
            case {"type": "Metaspace", "replacement": str(old)} if not fused:
                spaces.append((old, " "))
            case {"type": "ByteFallback"} if not fused:
                byte_fallback = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "stop": 0} if fused:
                pass
            case _:
                return None
    return _sentencepiece(spaces, byte_fallback) if spaces else None


def _flattened(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder.get("type") == "Sequence":
        for step in decoder.get("decoders", ()):
            yield from _flattened(step)
    else:
        yield decoder


def _sentencepiece(spaces: list[tuple[str, str]], byte_fallback: bool) -> Piece:
    def piece(token: str) -> bytes:
        found = _BYTE_TOKEN.fullmatch(token) if byte_fallback else None
        if found:
            return bytes([int(found[1], 16)])
        for old, new in spaces:
            token = token.replace(old, new)
        return token.encode("utf-8", "replace")

    return piece


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 stands for itself, the rest for 256 and up."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(itself)]
    return {chr(byte): byte for byte in itself} | {chr(256 + i): byte for i, byte in enumerate(moved)}


_ALPHABET = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    """An added token may hold characters outside the alphabet: it stands for itself then."""
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode("utf-8", "replace")
