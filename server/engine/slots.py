"""Which slots are free, and which tokens each of them still holds. Pure: no clock, no device.

A freed slot keeps what was written until it is given away: a prompt that begins with the same tokens then goes on
behind them. The slot that saves most is given; where none saves anything one that holds nothing, the lowest first;
then the one that was freed longest ago.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from models.protocol import Reuse

_STRIDE = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is fed for a sequence. `scope`: only prompts of one scope may go on behind each other's tokens.

    `fresh`: every token must be fed, whatever a slot holds (its scores are asked for).
    """

    tokens: tuple[int, ...]
    scope: str = ""
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class _Held:
    tokens: tuple[int, ...]
    scope: str


class FreeSlots:
    """The slots without a sequence."""

    def __init__(self, slots: int, *, chunk: int = 0, reuse: Reuse = "none") -> None:
        """`chunk`: the most tokens of one feed, and with `reuse` "chunks" the grid that feeds are cut by."""
        self._empty = list(range(slots))  # a heap
        self._held: OrderedDict[int, _Held] = OrderedDict()  # freed longest ago first
        self._reuse = reuse
        self._chunk = chunk

    def __len__(self) -> int:
        return len(self._empty) + len(self._held)

    def take(self, prompt: Prompt) -> tuple[int, int]:
        """(slot, tokens of the prompt that it holds already); at least one token is left to feed."""
        best, saved = -1, 0
        for slot, held in self._held.items():
            if (common := self._saved(held, prompt)) > saved:
                best, saved = slot, common
        if saved:
            del self._held[best]
        elif self._empty:
            best = heapq.heappop(self._empty)
        else:
            best, _ = self._held.popitem(last=False)
        return best, saved

    def give_back(self, slot: int, prompt: Prompt, written: int, answer: Sequence[int] = ()) -> None:
        """`slot` is free; the first `written` tokens of `prompt` are surely in it, then `answer`; what is behind
        does not matter.
        """
        if self._reuse == "none":
            written, answer = 0, ()
        elif self._reuse == "chunks":  # what a step wrote, or the last piece, has other bits than a whole chunk
            written, answer = written - written % self._chunk, ()
        tokens = (*prompt.tokens[:written], *answer)
        if tokens:
            self._held[slot] = _Held(tokens, prompt.scope)
        else:
            heapq.heappush(self._empty, slot)

    def _saved(self, held: _Held, prompt: Prompt) -> int:
        if prompt.fresh or held.scope != prompt.scope:
            return 0
        common = min(common_length(held.tokens, prompt.tokens), len(prompt.tokens) - 1)
        return common - common % self._chunk if self._reuse == "chunks" else common


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    shorter = min(len(left), len(right))
    for start in range(0, shorter, _STRIDE):  # slices are compared in C
        stop = min(start + _STRIDE, shorter)
        if left[start:stop] != right[start:stop]:
            return next(place for place in range(start, stop) if left[place] != right[place])
    return shorter
