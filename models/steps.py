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
from functools import partial

import msgspec

from models.backend import (
    Backend,
    Candidates,
    ConfigurationError,
    DeviceError,
    DeviceSampler,
    Logits,
    MixedStepper,
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


class _UnusableGrammar(Exception):
    """Grammars cannot be used here."""


@dataclass(slots=True)
class Occupant:
    """What sits in a slot. `last` is written at `position` by the next decode, or again if the slot is held."""

    sequence: int
    last: int
    position: int
    start: Start | None = None  # None while its prompt is still being fed
    sampler: SequenceSampler | None = None
    generated: int = 0


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
        if isinstance(command, Feed):
            drawn = self._feed(command)
        elif command.feed is None:
            drawn = self._decode(command)
        else:
            drawn = self._decode_and_feed(command, command.feed)
        elapsed = time.perf_counter() - began
        return Stepped(
            step=command.step,
            drawn=drawn,
            prompt_logprobs=self._prompt_logprobs,
            device_s=elapsed - self._sampling_s,
            sampling_s=self._sampling_s,
        )

    def _feed(self, feed: Feed) -> tuple[Drawn, ...]:
        if self._is_void(feed):
            return ()
        try:
            sampler = self._prepare(feed)
            scores = self._backend.feed(feed.slot, feed.tokens, feed.position, all_logits=bool(feed.scored))
        except (StepError, _UnusableGrammar) as error:
            return self._refuse(feed, error)
        if feed.scored:
            scores = self._scored(feed, scores)
            if any(map(math.isnan, self._prompt_logprobs)):
                self._occupants.pop(feed.slot, None)
                return (Drawn(feed.slot, feed.sequence, -1, 0.0, "non_finite"),)
        drawing = self._seat(feed, sampler)
        return self._advance(drawing, scores, full=lambda rows: self._feed_again(feed, rows)) if drawing else ()

    def _decode_and_feed(self, decode: Decode, feed: Feed) -> tuple[Drawn, ...]:
        """In one pass; or one after the other, where the prompt's own scores are wanted or something is amiss.

        In one pass the bad rows of both count together, as those of one device call.
        """
        waiting = (*decode.held, (feed.slot, feed.sequence))
        self._release_but({*decode.live, *waiting})
        slots, held = self._present(decode.live), self._present(decode.held)
        backend = self._backend
        if slots and not feed.scored and not self._is_void(feed) and isinstance(backend, MixedStepper):
            try:
                sampler = self._prepare(feed)
                inputs = self._inputs([*slots, *held])
                scores = backend.decode_and_feed(inputs, feed.slot, feed.tokens, feed.position)
            except (StepError, _UnusableGrammar) as error:
                # Nothing was done. Whose fault it is shows when they go alone; a backend's own would only be slow.
                logger.warning("step %d is done in two passes: %s", decode.step, error)
            else:
                seat = self._seat(feed, sampler)
                rows = Logits(scores.rows[1 - len(seat) : 1 + len(slots)])  # a piece draws nothing
                return self._advance([*seat, *slots], rows, full=partial(_full_rows, rows))
        return (*self._decode(msgspec.structs.replace(decode, held=waiting)), *self._feed(feed))

    def _is_void(self, feed: Feed) -> bool:
        """Whether its first pieces were refused while this one was on its way."""
        return feed.position > feed.reused and not self._holds(feed.slot, feed.sequence)

    def _prepare(self, feed: Feed) -> SequenceSampler | None:
        """What must be there before a feed; the sampler that comes with its last piece. Repeating it is idempotent."""
        sampler = None
        if (start := feed.start) is not None:
            sampler = SequenceSampler(start.sampling, start.history, start.emitted, self._matcher(start))
            if isinstance(self._backend, DeviceSampler):
                self._backend.configure(feed.slot, start.sampling)
        if feed.source is not None:
            self._copy(feed.source, feed.slot, feed.reused)
        return sampler

    def _seat(self, feed: Feed, sampler: SequenceSampler | None) -> list[int]:
        """It was fed. Its slot if a token is to be drawn there: its prompt is whole then."""
        end = feed.position + len(feed.tokens)
        self._occupants[feed.slot] = Occupant(feed.sequence, feed.tokens[-1], end - 1, feed.start, sampler)
        return [] if feed.start is None else [feed.slot]

    def _refuse(self, feed: Feed, error: StepError | _UnusableGrammar) -> tuple[Drawn, ...]:
        """This prompt's mistake, found before the device was touched, and nobody else's."""
        self._occupants.pop(feed.slot, None)
        if isinstance(error, _UnusableGrammar):
            logger.error("the grammar of sequence %d cannot be followed: %s", feed.sequence, error)
            return (Drawn(feed.slot, feed.sequence, -1, 0.0, "grammar"),)
        logger.error("the prompt of sequence %d is refused: %s", feed.sequence, error)
        return (Drawn(feed.slot, feed.sequence, -1, 0.0, "refused"),)

    def _copy(self, source: int, slot: int, length: int) -> None:
        if not isinstance(self._backend, SlotCopier):
            raise StepError("this backend cannot copy what one slot holds to another")
        self._backend.copy(source, slot, length)

    def _matcher(self, start: Start) -> Matcher | None:
        if start.grammar is None:
            return None
        if self._vocabulary is None:
            raise _UnusableGrammar("there is no vocabulary for grammars")
        try:
            return Matcher(self._vocabulary, start.grammar, start.eos, start.emitted)
        except ConfigurationError as error:
            raise _UnusableGrammar(str(error)) from error

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
        self._release_but({*decode.live, *decode.held})
        slots = self._present(decode.live)
        if not slots:
            return ()
        # A slot whose prompt is half fed repeats its last token: left out, the device would overwrite its cache.
        inputs = self._inputs([*slots, *self._present(decode.held)])
        scores = self._backend.decode(inputs)
        return self._advance(slots, scores, full=lambda rows: _full_rows(self._backend.decode(inputs, full=True), rows))

    def _release_but(self, named: set[tuple[int, int]]) -> None:
        """Forget whom the scheduler has released: a stop string, a cancel."""
        for slot, occupant in list(self._occupants.items()):
            if (slot, occupant.sequence) not in named:
                del self._occupants[slot]

    def _present(self, named: tuple[tuple[int, int], ...]) -> list[int]:
        """The slots of those who are still there."""
        return [slot for slot, sequence in named if self._holds(slot, sequence)]

    def _inputs(self, slots: list[int]) -> list[SlotInput]:
        occupants = self._occupants
        return [SlotInput(slot, occupants[slot].last, occupants[slot].position) for slot in slots]

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
