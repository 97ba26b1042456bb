"""The proof that cuts do not matter, against writers that keep it and that break it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from models.cpu.cuts import LENGTH, cuts_do_not_matter

TOKENS = list(range(LENGTH))


class Slot:
    """Holds what was written; `marks` tells what of a write shows in it."""

    def __init__(self, *, by_feed: bool = False, by_rows: bool = False) -> None:
        self.held = b""
        self.writes: list[tuple[str, int, int]] = []
        self._by_feed, self._by_rows = by_feed, by_rows

    def feed(self, tokens: Sequence[int], position: int) -> bytes:
        return self._write("feed", tokens, position)

    def decode(self, tokens: Sequence[int], position: int) -> bytes:
        assert len(tokens) == 1
        return self._write("decode", tokens, position)

    def _write(self, kind: str, tokens: Sequence[int], position: int) -> bytes:
        assert len(self.held) == 2 * position or position == 0
        self.writes.append((kind, position, len(tokens)))
        mark = (self._by_feed and kind == "decode") + (self._by_rows and len(tokens) % 4 == 3)
        self.held = self.held[: 2 * position] + b"".join(bytes((token, mark)) for token in tokens)
        return self.held


@pytest.mark.parametrize("longest", [5, 64, 256])
def test_a_slot_that_only_knows_its_tokens_passes(longest: int) -> None:
    slot = Slot()
    assert cuts_do_not_matter(slot.feed, slot.decode, TOKENS, longest)
    assert {kind for kind, _, _ in slot.writes} == {"feed", "decode"}
    assert max(count for _, _, count in slot.writes) <= longest


def test_a_decode_that_leaves_other_bits_is_found() -> None:
    slot = Slot(by_feed=True)
    assert not cuts_do_not_matter(slot.feed, slot.decode, TOKENS, 256)


def test_a_number_of_rows_that_leaves_other_bits_is_found() -> None:
    slot = Slot(by_rows=True)
    assert not cuts_do_not_matter(slot.feed, slot.decode, TOKENS[:73], 256)


def test_a_slot_of_few_positions_is_tried_as_far_as_it_goes() -> None:
    slot = Slot()
    assert cuts_do_not_matter(slot.feed, slot.decode, TOKENS[:2], 256)
