"""Runs steps on a loaded backend and draws their tokens.

It keeps what a slot needs between two steps (last token, position, end tokens, budget, sampler), so that the API
process may plan a step before it has seen the tokens of the previous one. Knows no socket, no text, no scheduling.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from models.backend import (
    Backend,
    Candidates,
    ConfigurationError,
    DeviceError,
    DeviceSampler,
    Logits,
    Scores,
    SlotCopier,
    StepError,
    TokenIds,
)
from models.draws import Choice
from models.matcher import Matcher, Vocabulary
from models.protocol import Decode, Drawn, Feed, SlotInput, Start, Stepped
from models.sampler import logprobs, sample
from models.sequence_sampler import SequenceSampler

logger = logging.getLogger(__name__)

# Given row indices of the step just run: the same rows over the whole vocabulary.
FullRows = Callable[[list[int]], Logits]


@dataclass(slots=True)
class Occupant:
    """What sits in a slot. `last` is written at `position` by the next decode, or again if the slot is held."""

    sequence: int
    last: int
    position: int
    start: Start | None = None  # None while its prompt is still being fed
    sampler: SequenceSampler | None = None
    generated: int = 0

    @property
    def fed(self) -> bool:
        return self.start is not None


class Steps:
    """Runs feeds and decodes of one loaded backend and draws their tokens."""

    def __init__(self, backend: Backend, vocabulary: Vocabulary | None = None) -> None:
        """Without a vocabulary no sequence may have a grammar."""
        self._backend = backend
        self._vocabulary = vocabulary
        self._occupants: dict[int, Occupant] = {}
        self._prompt_logprobs: tuple[float, ...] = ()
        self._sampling_s = 0.0

    def run(self, command: Feed | Decode) -> Stepped:
        """The step's tokens. DeviceError when the numbers of several sequences are unusable at once."""
        began = time.perf_counter()
        self._sampling_s = 0.0
        self._prompt_logprobs = ()
        drawn = self._feed(command) if isinstance(command, Feed) else self._decode(command)
        elapsed = time.perf_counter() - began
        return Stepped(
            step=command.step,
            drawn=drawn,
            prompt_logprobs=self._prompt_logprobs,
            device_s=elapsed - self._sampling_s,
            sampling_s=self._sampling_s,
        )

    def _feed(self, feed: Feed) -> tuple[Drawn, ...]:
        if feed.position > feed.reused and not self._holds(feed.slot, feed.sequence):
            return ()  # its first pieces were refused while this one was on its way
        try:
            matcher = self._matcher(feed.start) if feed.start is not None else None
        except ConfigurationError as error:
            logger.error("the grammar of sequence %d cannot be followed: %s", feed.sequence, error)
            self._occupants.pop(feed.slot, None)
            return (Drawn(feed.slot, feed.sequence, -1, 0.0, "grammar"),)
        try:
            if feed.start is not None and isinstance(self._backend, DeviceSampler):
                self._backend.configure(feed.slot, feed.start.sampling)
            if feed.source is not None:
                self._copy(feed.source, feed.slot, feed.reused)
            scores = self._backend.feed(feed.slot, feed.tokens, feed.position, all_logits=bool(feed.scored))
        except StepError as error:
            # Refused before the device was touched: this prompt's mistake, and nobody else's.
            logger.error("the prompt of sequence %d is refused: %s", feed.sequence, error)
            self._occupants.pop(feed.slot, None)
            return (Drawn(feed.slot, feed.sequence, -1, 0.0, "refused"),)
        if feed.scored:
            scores = self._scored(feed, scores)
            if any(map(math.isnan, self._prompt_logprobs)):
                self._occupants.pop(feed.slot, None)
                return (Drawn(feed.slot, feed.sequence, -1, 0.0, "non_finite"),)
        end = feed.position + len(feed.tokens)
        start = feed.start
        if start is None:
            self._occupants[feed.slot] = Occupant(feed.sequence, feed.tokens[-1], end - 1)
            return ()
        occupant = Occupant(
            feed.sequence,
            feed.tokens[-1],
            end - 1,
            start,
            SequenceSampler(start.sampling, start.history, start.emitted, matcher),
        )
        self._occupants[feed.slot] = occupant
        return self._advance([feed.slot], scores, full=lambda rows: self._feed_again(feed, rows))

    def _copy(self, source: int, slot: int, length: int) -> None:
        if not isinstance(self._backend, SlotCopier):
            raise StepError("this backend cannot copy what one slot holds to another")
        self._backend.copy(source, slot, length)

    def _matcher(self, start: Start) -> Matcher | None:
        """ConfigurationError where grammars cannot be used."""
        if start.grammar is None:
            return None
        if self._vocabulary is None:
            raise ConfigurationError("there is no vocabulary for grammars")
        return Matcher(self._vocabulary, start.grammar, start.eos, start.emitted)

    def _scored(self, feed: Feed, scores: Scores) -> Logits:
        """Keep the logprobs of `feed.scored`, and the last row of the prompt's scores."""
        if not isinstance(scores, Logits) or len(scores.rows) != len(feed.tokens):
            raise DeviceError(f"the backend was asked for all {len(feed.tokens)} rows of logits and gave others")
        began = time.perf_counter()
        self._prompt_logprobs = logprobs(scores.rows[: len(feed.scored)], feed.scored)
        self._sampling_s += time.perf_counter() - began
        return Logits(scores.rows[-1:])

    def _feed_again(self, feed: Feed, rows: list[int]) -> Logits:
        """A feed always scores the whole vocabulary where the backend has no candidates for it."""
        scores = self._backend.feed(feed.slot, feed.tokens, feed.position)
        return _full_rows(scores, rows)

    def _decode(self, decode: Decode) -> tuple[Drawn, ...]:
        named = {*decode.live, *decode.held}
        for slot, occupant in list(self._occupants.items()):
            if (slot, occupant.sequence) not in named:
                del self._occupants[slot]  # released by the scheduler: a stop string, a cancel
        slots = [slot for slot, sequence in decode.live if self._holds(slot, sequence)]
        if not slots:
            return ()
        # A slot whose prompt is half fed repeats its last token: left out, the device would overwrite its cache.
        held = [slot for slot, sequence in decode.held if self._holds(slot, sequence)]
        inputs = [SlotInput(s, self._occupants[s].last, self._occupants[s].position) for s in (*slots, *held)]
        scores = self._backend.decode(inputs)
        return self._advance(slots, scores, full=lambda rows: _full_rows(self._backend.decode(inputs, full=True), rows))

    def _holds(self, slot: int, sequence: int) -> bool:
        """Whether `sequence` is still there: it may have ended in the step before."""
        occupant = self._occupants.get(slot)
        return occupant is not None and occupant.sequence == sequence

    def _advance(self, slots: list[int], scores: Scores, full: FullRows) -> tuple[Drawn, ...]:
        """Move each slot on by one token: a replayed one where tokens of before are left, else a drawn one."""
        fresh = [row for row, slot in enumerate(slots) if not self._replay(slot)]
        began = time.perf_counter()
        lost = {row: failure for row in fresh if (failure := self._grammar_failure(slots[row]))}
        ended = tuple(self._drop(slots[row], failure) for row, failure in lost.items())
        fresh = [row for row in fresh if row not in lost]
        if not fresh:
            return ended
        samplers = [self._sampler(slots[row]) for row in fresh]
        choices = sample(_rows(scores, fresh), samplers, lambda rows: full([fresh[row] for row in rows]))
        self._sampling_s += time.perf_counter() - began
        if len(choices) > 1 and sum(not choice.finite for choice in choices) > 1:
            raise DeviceError(f"{sum(not choice.finite for choice in choices)} of {len(choices)} rows are not finite")
        return (*ended, *(self._draw(slots[row], choice) for row, choice in zip(fresh, choices, strict=True)))

    def _grammar_failure(self, slot: int) -> str:
        matcher = self._sampler(slot).matcher
        return matcher.failure() if matcher is not None else ""

    def _drop(self, slot: int, failure: str) -> Drawn:
        """End a sequence whose grammar cannot be followed."""
        sequence = self._occupants.pop(slot).sequence
        logger.error("the grammar of sequence %d cannot be followed: %s", sequence, failure)
        return Drawn(slot, sequence, -1, 0.0, "grammar")

    def _replay(self, slot: int) -> bool:
        occupant = self._occupants[slot]
        start = occupant.start
        if start is None or occupant.generated >= len(start.emitted):
            return False
        self._append(occupant, start.emitted[occupant.generated])
        return True

    def _draw(self, slot: int, choice: Choice) -> Drawn:
        occupant = self._occupants[slot]
        if not choice.finite:
            del self._occupants[slot]
            return Drawn(slot, occupant.sequence, -1, 0.0, "non_finite")
        self._append(occupant, choice.token)
        start = occupant.start
        assert start is not None
        finish = ""
        if occupant.generated >= start.max_new_tokens:  # before the end token: TGI reports `length` for both
            finish = "length"
        elif choice.token in start.eos:
            finish = "eos_token"
        if finish:
            del self._occupants[slot]
        return Drawn(slot, occupant.sequence, choice.token, choice.logprob, finish, choice.top)  # type: ignore[arg-type]

    @staticmethod
    def _append(occupant: Occupant, token: int) -> None:
        occupant.last = token
        occupant.position += 1
        occupant.generated += 1

    def _sampler(self, slot: int) -> SequenceSampler:
        sampler = self._occupants[slot].sampler
        assert sampler is not None
        return sampler


def _rows(scores: Scores, rows: list[int]) -> Scores:
    """The scores of `rows` only; the same object when that is all of them, in order."""
    if isinstance(scores, Logits):
        return scores if len(rows) == len(scores.rows) else Logits(scores.rows[rows])
    if isinstance(scores, Candidates):
        return Candidates(scores.ids[rows], scores.values[rows], scores.normalisers[rows])
    return TokenIds(scores.ids[rows])


def _full_rows(scores: Scores, rows: list[int]) -> Logits:
    """The rows of a step that was asked for the whole vocabulary."""
    if not isinstance(scores, Logits):
        raise DeviceError(f"the backend was asked for full logits and answered with {type(scores).__name__}")
    return Logits(scores.rows[rows])
