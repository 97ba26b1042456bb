"""What sampling remembers of one sequence, and the penalties that follow from it.

Rules, with their sources:

- repetition penalty over prompt and output: a positive logit is divided, a negative one multiplied (arXiv:1909.05858)
- frequency penalty: subtracts penalty * (times the token was generated); presence penalty: subtracts the penalty once
  for every token that was generated (the formula in OpenAI's API reference; both count the output only)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from models.draws import LOWEST, Asked, Floats, Ids, Numbers, positive
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
        self._numbers = Numbers(params.seed)
        # What the next draw asks for, as Asked takes it.
        top_p = params.top_p if params.top_p < 1.0 else math.inf
        self.asked = (positive(params.temperature), params.top_k, top_p, params.typical_p, params.top_n_tokens)
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
        return self._numbers.at(self.drawn)


def asked_of(samplers: Sequence[SequenceSampler]) -> Asked:
    """What the next tokens of these sequences ask for, and their random numbers; a greedy one has none."""
    return Asked.of([(*each.asked, each.uniform() if each.params.do_sample else 0.0) for each in samplers])


def penalise_rows(rows: Floats, samplers: Sequence[SequenceSampler]) -> None:
    """Change raw rows, float32 (rows, vocab_size) and contiguous, by their penalties."""
    owners, ids, counts = touched(samplers)
    places, flat = owners * rows.shape[1] + ids, rows.reshape(-1)
    flat[places] = penalise(flat[places], counts, owners, samplers)


def mask_rows(rows: Floats, samplers: Sequence[SequenceSampler]) -> None:
    """Rule out what their grammars, which all of them have, do not allow."""
    allowed = np.stack([each.matcher.allowed(rows.shape[1]) for each in samplers if each.matcher is not None])
    np.copyto(rows, np.float32(-math.inf), where=~allowed)


def touched(samplers: Sequence[SequenceSampler]) -> tuple[Ids, Ids, Floats]:
    """(owners, ids, counts): what penalties touch in all of these sequences; see SequenceSampler.penalties."""
    each = [sampler.penalties() for sampler in samplers]
    owners = np.repeat(np.arange(len(samplers)), [ids.size for ids, _ in each])
    return owners, np.concatenate([ids for ids, _ in each]), np.concatenate([counts for _, counts in each])


def penalise(logits: Floats, counts: Floats, owners: Ids, samplers: Sequence[SequenceSampler]) -> Floats:
    """The three penalties on the logits of tokens that occurred: each one in the sequence samplers[owners[i]], where it
    was generated counts[i] times."""
    params = [each.params for each in samplers]
    repetition = np.array([positive(each.repetition_penalty) for each in params], dtype=np.float32)
    frequency = np.array([each.frequency_penalty for each in params], dtype=np.float32)
    presence = np.array([each.presence_penalty for each in params], dtype=np.float32)
    factors = repetition.take(owners)
    moved = np.where(logits < 0, logits * factors, logits / factors)
    if frequency.any():
        moved -= frequency.take(owners) * counts
    if presence.any():
        moved -= presence.take(owners) * (counts > 0)
    # An absurd penalty may not turn a finite row into one without an answer; what was masked stays masked.
    clipped: Floats = np.where(np.isneginf(logits), logits, np.clip(moved, LOWEST, -LOWEST))
    return clipped
