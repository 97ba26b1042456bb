"""What sampling remembers of one sequence, and the penalties that follow from it.

Rules, with their sources:

- repetition penalty over prompt and output: a positive logit is divided, a negative one multiplied (arXiv:1909.05858)
- frequency penalty: subtracts penalty * (times the token was generated); presence penalty: subtracts the penalty once
  for every token that was generated (the formula in OpenAI's API reference; both count the output only)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.draws import Floats, Ids, positive, uniform
from models.matcher import Matcher
from models.protocol import SamplingParams


class SequenceSampler:
    """What sampling remembers of one sequence: how often each token occurred, and which draw comes next.

    `history` is the prompt, which only the repetition penalty reads. `emitted` are tokens that were drawn earlier
    (a replay): the next draw is number len(emitted). `matcher` has taken them already.
    """

    def __init__(
        self,
        params: SamplingParams,
        history: Sequence[int],
        emitted: Sequence[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        self.params = params
        self.matcher = matcher
        self.drawn = 0
        self.penalised = (
            params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
        )
        prompt = dict.fromkeys(history) if params.repetition_penalty != 1.0 else {}
        self._places = {token: place for place, token in enumerate(prompt)}
        self._ids = np.array(list(prompt), dtype=np.int64)
        self._counts = np.zeros(len(prompt), dtype=np.float32)
        for token in emitted:
            self._count(token)

    def advance(self, token: int) -> None:
        """Take `token` as the next one of the output."""
        self._count(token)
        if self.matcher is not None:
            self.matcher.advance(token)

    def _count(self, token: int) -> None:
        self.drawn += 1
        if not self.penalised:
            return
        place = self._places.setdefault(token, len(self._places))
        if place == self._ids.size:
            room = np.zeros(max(64, place), dtype=np.int64)
            self._ids = np.concatenate([self._ids, room])
            self._counts = np.concatenate([self._counts, room.astype(np.float32)])
        self._ids[place] = token
        self._counts[place] += 1

    def penalties(self) -> tuple[Ids, Floats]:
        """(ids, counts): the tokens that the penalties touch, and how often each was generated (0: prompt only).

        Views of arrays that are kept from step to step: a long prompt is not gone through for every token.
        """
        size = len(self._places)
        return self._ids[:size], self._counts[:size]

    @property
    def only_lowers(self) -> bool:
        """True when no penalty can raise a logit."""
        params = self.params
        return params.repetition_penalty >= 1.0 and params.frequency_penalty >= 0.0 and params.presence_penalty >= 0.0

    def uniform(self) -> float:
        """The random number of the next token."""
        return uniform(self.params.seed, self.drawn)


def penalised(row: Floats, sampler: SequenceSampler) -> Floats:
    row = row.copy()
    ids, counts = sampler.penalties()
    row[ids] = penalise(row[ids], counts, sampler.params)
    return row


def penalise(logits: Floats, counts: Floats, params: SamplingParams) -> Floats:
    """The three penalties on the logits of tokens that occurred; `counts` says how often each was generated."""
    with np.errstate(over="ignore"):
        penalty = positive(params.repetition_penalty)
        moved = np.where(logits < 0, logits * penalty, logits / penalty)
        moved -= np.float32(params.frequency_penalty) * counts
        moved -= np.where(counts > 0, np.float32(params.presence_penalty), np.float32(0.0))
    # An absurd penalty may not turn a finite row into one without an answer; what was masked stays masked.
    limit = np.finfo(np.float32).max
    clipped: Floats = np.where(np.isneginf(logits), logits, np.clip(moved, -limit, limit))
    return clipped
