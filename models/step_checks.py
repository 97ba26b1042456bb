"""Checks of feed and decode calls against a backend's limits, before any device is touched.

One wording and one set of rules for every backend. Knows no device and no numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.backend import StepError
from models.protocol import SlotInput


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What a call may name. `longest_feed` is the most tokens of one feed; `extend`: it may start past position 0."""

    slots: int
    n_positions: int
    vocab_size: int
    longest_feed: int
    extend: bool

    def check_feed(self, slot: int, tokens: Sequence[int], position: int) -> None:
        """StepError unless `tokens` may be written into `slot` from `position` on."""
        self._check_slot(slot)
        if not tokens:
            raise StepError(f"feed of slot {slot} has no tokens: at least one is needed")
        if position and not self.extend:
            raise StepError(f"feed of slot {slot} starts at position {position}: this backend feeds from 0 only")
        if len(tokens) > self.longest_feed:
            raise StepError(f"feed of slot {slot} has {len(tokens)} tokens: at most {self.longest_feed} at a time")
        self._check_position(slot, position)
        self._check_position(slot, position + len(tokens) - 1)
        for token in (min(tokens), max(tokens)):
            self._check_token(slot, token)

    def check_copy(self, source: int, slot: int, length: int) -> None:
        """StepError unless `length` tokens of one slot may be copied to another."""
        for each in (source, slot):
            self._check_slot(each)
            self._check_position(each, length - 1)
        if source == slot:
            raise StepError(f"slot {slot} is to be copied to itself")

    def check_decode(self, live: Sequence[SlotInput]) -> None:
        """StepError unless each row names a slot of its own, a token and a position that exist."""
        if not live:
            raise StepError("decode without a live slot: it would only damage what the slots hold")
        if len({row.slot for row in live}) != len(live):
            raise StepError(f"decode names a slot twice: {[row.slot for row in live]}")
        for row in live:
            self._check_slot(row.slot)
            self._check_position(row.slot, row.position)
            self._check_token(row.slot, row.token)

    def check_mixed(self, live: Sequence[SlotInput], slot: int, tokens: Sequence[int], position: int) -> None:
        """StepError unless both calls are right, and are about different slots."""
        self.check_decode(live)
        self.check_feed(slot, tokens, position)
        if any(row.slot == slot for row in live):
            raise StepError(f"slot {slot} is to be fed and decoded in one step")

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise StepError(f"slot {slot} does not exist: the slots are 0 to {self.slots - 1}")

    def _check_position(self, slot: int, position: int) -> None:
        if not 0 <= position < self.n_positions:
            raise StepError(f"slot {slot}: position {position} is outside 0 to {self.n_positions - 1}")

    def _check_token(self, slot: int, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise StepError(f"slot {slot}: token {token} is outside the vocabulary of {self.vocab_size}")
