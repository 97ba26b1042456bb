"""Which step the device runs next. Pure: events in, one plan out; no clock, no I/O, no tokens.

First come, first served. One prompt is fed at a time, in pieces of at most `chunk` tokens where the backend can
extend; between two feeds come at least `decode_per_feed` decode steps while others are live, none when nobody is.
Plans may be asked for ahead of the results of earlier ones: a sequence that has ended in the meantime is skipped by
the worker, which runs plans in order, so a freed slot may be fed again at once.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FeedPlan:
    """Put prompt tokens [start, stop) of `sequence` into `slot`; `last`: the prompt is complete then."""

    step: int
    slot: int
    sequence: int
    start: int
    stop: int
    last: bool


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """One token for each live (slot, sequence); `held` is the one whose prompt is half fed, if any."""

    step: int
    live: tuple[tuple[int, int], ...]
    held: tuple[tuple[int, int], ...] = ()


Plan = FeedPlan | DecodePlan


@dataclass(slots=True)
class _Feeding:
    sequence: int
    prompt_tokens: int
    slot: int
    fed: int = 0


class Scheduler:
    """The slots of one loaded model and who waits for them."""

    def __init__(self, *, slots: int, chunk: int = 0, decode_per_feed: int = 1) -> None:
        """`chunk` 0: prompts are fed whole."""
        self._chunk = chunk
        self._decode_per_feed = decode_per_feed
        self._free = list(range(slots))  # a heap: the lowest slot first
        self._waiting: OrderedDict[int, int] = OrderedDict()  # sequence -> prompt tokens
        self._feeding: _Feeding | None = None
        self._running: dict[int, int] = {}  # sequence -> slot
        self._decodes_since_feed = 0
        self._step = 0
        self.admitting = True

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._running) + (self._feeding is not None)

    @property
    def running_sequences(self) -> tuple[int, ...]:
        """The sequences that are being decoded."""
        return tuple(self._running)

    def add(self, sequence: int, prompt_tokens: int) -> None:
        """`sequence` waits behind all others."""
        self._waiting[sequence] = prompt_tokens

    def requeue(self, sequence: int, prompt_tokens: int) -> None:
        """`sequence` gives up its slot and is fed anew, before all others."""
        self.remove(sequence)
        self._waiting[sequence] = prompt_tokens
        self._waiting.move_to_end(sequence, last=False)

    def remove(self, sequence: int) -> None:
        """`sequence` ended or was cancelled: its slot is free. Unknown sequences are no error."""
        if sequence in self._running:
            heapq.heappush(self._free, self._running.pop(sequence))
        elif self._feeding is not None and self._feeding.sequence == sequence:
            heapq.heappush(self._free, self._feeding.slot)
            self._feeding = None
        else:
            self._waiting.pop(sequence, None)

    def plan(self) -> Plan | None:
        """The next step; None when there is nothing to do."""
        if self._may_feed() and (feeding := self._next_feeding()):
            return self._feed(feeding)
        return self._decode() if self._running else None

    def _may_feed(self) -> bool:
        return not self._running or self._decodes_since_feed >= self._decode_per_feed

    def _next_feeding(self) -> _Feeding | None:
        if self._feeding is None and self._waiting and self._free and self.admitting:
            sequence, prompt_tokens = self._waiting.popitem(last=False)
            self._feeding = _Feeding(sequence, prompt_tokens, heapq.heappop(self._free))
        return self._feeding

    def _feed(self, feeding: _Feeding) -> FeedPlan:
        start = feeding.fed
        stop = feeding.prompt_tokens if not self._chunk else min(feeding.prompt_tokens, start + self._chunk)
        feeding.fed = stop
        last = stop == feeding.prompt_tokens
        if last:
            self._running[feeding.sequence] = feeding.slot
            self._feeding = None
        self._decodes_since_feed = 0
        return FeedPlan(self._next_step(), feeding.slot, feeding.sequence, start, stop, last)

    def _decode(self) -> DecodePlan:
        self._decodes_since_feed += 1
        live = tuple((slot, sequence) for sequence, slot in self._running.items())
        feeding = self._feeding
        return DecodePlan(self._next_step(), live, ((feeding.slot, feeding.sequence),) if feeding else ())

    def _next_step(self) -> int:
        self._step += 1
        return self._step
