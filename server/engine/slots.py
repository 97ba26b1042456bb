"""Which slots are free, and which tokens each of them still holds. Pure: no clock, no device.

A freed slot keeps what was written until it is given away: a prompt that begins with the same tokens then goes on
behind them. Whatever slot saves most, also one that a sequence runs in, is copied where the device can do that, and
is given itself where it cannot or where hardly anything is lost by it. Else a slot that holds nothing is given, the
lowest first; then the one that was freed longest ago.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.protocol import Reuse

_STRIDE = 64
# So many tokens are fed again in no time: no copy is made to save them.
_LITTLE = 16


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is fed for a sequence. `scope`: only prompts of one scope may go on behind each other's tokens.

    `fresh`: every token must be fed, whatever a slot holds (its scores are asked for).
    """

    tokens: tuple[int, ...]
    scope: str = ""
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """The tokens that are surely in `slot`, of a prompt of `scope`."""

    slot: int
    tokens: tuple[int, ...]
    scope: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prompt goes: into `slot`, behind `reused` tokens, which are copied from `source` if that is named."""

    slot: int
    reused: int = 0
    source: int | None = None


class FreeSlots:
    """The slots without a sequence."""

    def __init__(self, slots: int, *, chunk: int = 0, reuse: Reuse = "none", copies: bool = False) -> None:
        """`chunk`: the most tokens of one feed, and with `reuse` "chunks" the grid that feeds are cut by."""
        self._empty = list(range(slots))  # a heap
        self._held: OrderedDict[int, Held] = OrderedDict()  # freed longest ago first
        self._reuse = reuse
        self._chunk = chunk
        self._copies = copies

    def __len__(self) -> int:
        return len(self._empty) + len(self._held)

    def saved(self, prompt: Prompt, running: Iterable[Held] = ()) -> int:
        """How many tokens of `prompt` need not be fed, where the slots of `running` sequences may be copied, too."""
        return self._best(prompt, running)[1]

    def take(self, prompt: Prompt, running: Iterable[Held] = ()) -> Place:
        """A free slot for `prompt`; at least one token is left to feed. `running` are the slots with a sequence."""
        best, saved = self._best(prompt, running)
        if best is None or not saved:
            return Place(self._least())
        if best.slot in self._held and not (self._copies and len(best.tokens) > saved + _LITTLE):
            del self._held[best.slot]
            return Place(best.slot, saved)
        slot = self._least()
        return Place(slot, saved, best.slot if slot != best.slot else None)

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
            self._held[slot] = Held(slot, tokens, prompt.scope)
        else:
            heapq.heappush(self._empty, slot)

    def forget(self, slot: int) -> None:
        """`slot` holds nothing that can be trusted, if it is free."""
        if self._held.pop(slot, None):
            heapq.heappush(self._empty, slot)

    def _best(self, prompt: Prompt, running: Iterable[Held]) -> tuple[Held | None, int]:
        there = [*self._held.values(), *(running if self._copies else ())]
        best = max(there, key=lambda held: self._saved(held, prompt), default=None)
        return best, self._saved(best, prompt) if best else 0

    def _least(self) -> int:
        """The slot whose content is worth least, no longer free."""
        return heapq.heappop(self._empty) if self._empty else self._held.popitem(last=False)[0]

    def _saved(self, held: Held, prompt: Prompt) -> int:
        """How many tokens of `prompt` need not be fed behind those of `held`."""
        if self._reuse == "none" or prompt.fresh or held.scope != prompt.scope:
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
