"""How often a mode says something else than the guaranteed one, and than itself in other company.

A number that is rounded in another way changes an answer only where two tokens are about equally likely; from there on
it is another answer. So what is counted is places, along answers that are given, and answers that company changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from models.backend import FloatRows, Logits
from models.protocol import SlotInput

# Begun texts of several kinds: what stands here decides nothing but has to be language.
BEGINNINGS = (
    "The lighthouse keeper had not spoken to anybody since the autumn storms, and when the boat",
    "To make bread at home, begin with flour, water, salt and yeast. First",
    "Photosynthesis is the process by which plants",
    "def median(values):\n    '''The middle of a list of numbers.'''\n",
    "Dear Ms. Alvarez,\n\nThank you for your letter of last week. I am writing to",
    "The three causes of the French Revolution that historians name most often are",
    "Once upon a time, in a village at the foot of a mountain, there lived a girl who",
    "Question: A train leaves at 9:15 and arrives at 11:40. How long is the journey?\nAnswer:",
    "In the second half of the match the home team",
    "Water boils at a lower temperature on a mountain because",
)


class Decoding(Protocol):
    """What is compared: the part of a backend that makes whole rows."""

    def feed(self, slot: int, tokens: Sequence[int]) -> Logits: ...

    def decode(self, live: Sequence[SlotInput]) -> Logits: ...


@dataclass(frozen=True, slots=True)
class Divergence:
    """`changed`: the share of greedy answers that are other tokens in company than alone. Along the guaranteed
    answers: `other`, the share of places at which another token is the likeliest, and their `perplexity`."""

    variant: str
    changed: float
    other: float
    perplexity: float


def beginnings(directory: Path) -> list[list[int]]:
    """The tokens of BEGINNINGS in the checkpoint's vocabulary."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [list(each.ids) for each in tokenizer.encode_batch(BEGINNINGS)]


def answers(backend: Decoding, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """`count` greedy tokens behind each prompt, all decoded together: prompt i in slot i."""
    rows = _fed(backend, prompts)
    given = [[token] for token in rows.argmax(1).tolist()]
    for step in range(count - 1):
        rows = backend.decode([SlotInput(i, each[-1], len(prompts[i]) + step) for i, each in enumerate(given)]).rows
        for each, token in zip(given, rows.argmax(1).tolist(), strict=True):
            each.append(token)
    return given


def diverges(
    name: str, backend: Decoding, prompts: Sequence[Sequence[int]], guaranteed: Sequence[Sequence[int]]
) -> Divergence:
    """`guaranteed`: an answer to each prompt, as the guaranteed mode gave it."""
    count = len(guaranteed[0])
    alone = [answers(backend, [prompt], count)[0] for prompt in prompts]
    together = answers(backend, prompts, count)
    changed = sum(left != right for left, right in zip(alone, together, strict=True))
    other, nats = 0, 0.0
    rows = _fed(backend, prompts)
    for step in range(count):
        tokens = [answer[step] for answer in guaranteed]
        other += int((rows.argmax(1) != tokens).sum())
        nats -= float(_log_probabilities(rows, tokens).sum())
        rows = backend.decode([SlotInput(i, token, len(prompts[i]) + step) for i, token in enumerate(tokens)]).rows
    places = count * len(prompts)
    return Divergence(name, changed / len(prompts), other / places, math.exp(nats / places))


def _fed(backend: Decoding, prompts: Sequence[Sequence[int]]) -> FloatRows:
    return np.concatenate([backend.feed(slot, prompt).rows for slot, prompt in enumerate(prompts)])


def _log_probabilities(rows: FloatRows, tokens: Sequence[int]) -> FloatRows:
    """Of one token a row."""
    shifted = rows - rows.max(1, keepdims=True)
    chosen: FloatRows = shifted[range(len(tokens)), tokens] - np.log(np.exp(shifted).sum(1))
    return chosen
