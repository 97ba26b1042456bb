"""Which step the device runs next. Pure: events in, one plan out; no clock, no I/O.

First come, first served. One prompt is fed at a time, in pieces of at most `chunk` tokens where the backend can
extend; between two feeds come at least `decode_per_feed` decode steps while others are live, none when nobody is. Where
the backend can do both in one pass, a feed comes in the same step as a decode, the last of those that it waits for.
What a free slot holds already of a prompt is not fed again (slots.py), nor what a running sequence's slot holds, once
its first row has shown that it is good.
Plans may be asked for ahead of the results of earlier ones: a sequence that has ended in the meantime is skipped by
the worker, which runs plans in order, so a freed slot may be fed again at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.protocol import Reuse
from server.engine.slots import FreeSlots, Held, Place, Prompt


@dataclass(frozen=True, slots=True)
class FeedPlan:
    """Put prompt tokens [start, stop) of `sequence` into `slot`; `last`: the prompt is complete then.

    The first `reused` tokens were there already, or are copied from `source` now: the piece that starts behind them is
    the first.
    """

    step: int
    slot: int
    sequence: int
    start: int
    stop: int
    last: bool
    reused: int = 0
    source: int | None = None


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """One token for each live (slot, sequence); `held` is the one whose prompt is half fed, if any and if it is not
    the one of `feed`, which is done in the same step."""

    step: int
    live: tuple[tuple[int, int], ...]
    held: tuple[tuple[int, int], ...] = ()
    feed: FeedPlan | None = None


Plan = FeedPlan | DecodePlan

# Feeding so many tokens takes longer than a decode step, so a prompt waits for one to be spared them.
_WORTH_A_STEP = 64


def feed_of(plan: Plan) -> FeedPlan | None:
    """What a step feeds."""
    return plan.feed if isinstance(plan, DecodePlan) else plan


@dataclass(slots=True)
class _Occupant:
    """A sequence with a slot since step `since`: `planned` of its prompt's tokens are written or on their way,
    `written` surely."""

    sequence: int
    since: int
    prompt: Prompt
    place: Place
    planned: int
    written: int

    @property
    def slot(self) -> int:
        return self.place.slot

    @property
    def seen(self) -> bool:
        """Whether the whole prompt was written, and its first row came back; a bad one would have freed the slot."""
        return self.written == len(self.prompt.tokens)

    @property
    def holds(self) -> Held:
        """What is in the slot when the whole prompt is written."""
        return Held(self.slot, self.prompt.tokens, self.prompt.scope)


class Scheduler:
    """The slots of one loaded model and who waits for them."""

    def __init__(
        self,
        *,
        slots: int,
        chunk: int = 0,
        decode_per_feed: int = 1,
        reuse: Reuse = "none",
        copies: bool = False,
        mixed: bool = False,
    ) -> None:
        """`chunk` 0: prompts are fed whole. `mixed`: a step may decode and feed."""
        self._chunk = chunk
        self._mixed = mixed
        self._decode_per_feed = decode_per_feed
        self._free = FreeSlots(slots, chunk=chunk, reuse=reuse, copies=copies)
        self._waiting: OrderedDict[int, Prompt] = OrderedDict()
        self._feeding: _Occupant | None = None
        self._running: dict[int, _Occupant] = {}
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

    def add(self, sequence: int, prompt: Prompt) -> None:
        """`sequence` waits behind all others."""
        self._waiting[sequence] = prompt

    def requeue(self, sequence: int, prompt: Prompt) -> None:
        """`sequence` gives up its slot, whose content is worthless, and is fed anew, before all others.

        What is worthless may have come with the tokens that it went on behind: all of its prompt is fed this time.
        """
        occupant = self._occupant(sequence)
        if occupant is not None and occupant.place.source is not None:
            self._free.forget(occupant.place.source)
        self.remove(sequence, None)
        self._waiting[sequence] = replace(prompt, fresh=True)
        self._waiting.move_to_end(sequence, last=False)

    def fed(self, plan: FeedPlan) -> None:
        """The worker has done `plan`. Of a sequence that was removed meanwhile, or sent back: no error."""
        occupant = self._occupant(plan.sequence)
        if occupant is not None and plan.step >= occupant.since:
            occupant.written = plan.stop

    def remove(self, sequence: int, answer: Sequence[int] | None = ()) -> None:
        """`sequence` ended or was cancelled: its slot is free. Unknown sequences are no error.

        `answer`: tokens that were surely written behind the whole prompt; None: nothing in the slot can be trusted.
        """
        self._waiting.pop(sequence, None)
        occupant = self._occupant(sequence)
        if occupant is None:
            return
        if occupant is self._feeding:
            self._feeding = None
        else:
            del self._running[sequence]
        written = 0 if answer is None else occupant.written
        self._free.give_back(occupant.slot, occupant.prompt, written, answer or ())

    def plan(self) -> Plan | None:
        """The next step; None when there is nothing to do."""
        feeding = self._next_feeding() if self._may_feed() else None
        if not self._running:
            return self._feed(feeding, self._next_step()) if feeding else None
        if feeding is None:
            return self._decode()
        return self._decode_and_feed(feeding) if self._mixed else self._feed(feeding, self._next_step())

    def _occupant(self, sequence: int) -> _Occupant | None:
        feeding = self._feeding
        return feeding if feeding is not None and feeding.sequence == sequence else self._running.get(sequence)

    def _may_feed(self) -> bool:
        decodes = self._decodes_since_feed + self._mixed  # a mixed step brings one itself
        return not self._running or decodes >= self._decode_per_feed

    def _next_feeding(self) -> _Occupant | None:
        if self._feeding is None and self._waiting and self._free and self.admitting:
            seen = [each.holds for each in self._running.values() if each.seen]
            unseen = [each.holds for each in self._running.values() if not each.seen]
            head = next(iter(self._waiting.values()))
            if unseen and self._free.saved(head, (*seen, *unseen)) > self._free.saved(head, seen) + _WORTH_A_STEP:
                return None  # the first rows are on their way: a step or two
            sequence, prompt = self._waiting.popitem(last=False)
            place = self._free.take(prompt, seen)
            written = place.reused if place.source is None else 0  # a copy is made with the first piece
            self._feeding = _Occupant(sequence, self._step + 1, prompt, place, planned=place.reused, written=written)
        return self._feeding

    def _feed(self, feeding: _Occupant, step: int) -> FeedPlan:
        start, length = feeding.planned, len(feeding.prompt.tokens)
        stop = length if not self._chunk else min(length, start + self._chunk)
        feeding.planned = stop
        last = stop == length
        if last:
            self._running[feeding.sequence] = feeding
            self._feeding = None
        self._decodes_since_feed = 0
        place = feeding.place
        source = place.source if start == place.reused else None
        return FeedPlan(step, place.slot, feeding.sequence, start, stop, last, place.reused, source)

    def _decode(self) -> DecodePlan:
        self._decodes_since_feed += 1
        feeding = self._feeding
        return DecodePlan(self._next_step(), self._live(), ((feeding.slot, feeding.sequence),) if feeding else ())

    def _decode_and_feed(self, feeding: _Occupant) -> DecodePlan:
        step, live = self._next_step(), self._live()  # whoever is whole now has no token yet
        return DecodePlan(step, live, feed=self._feed(feeding, step))

    def _live(self) -> tuple[tuple[int, int], ...]:
        """In the order of the slots: a backend may take those that lie side by side in one piece."""
        return tuple(sorted((occupant.slot, sequence) for sequence, occupant in self._running.items()))

    def _next_step(self) -> int:
        self._step += 1
        return self._step
