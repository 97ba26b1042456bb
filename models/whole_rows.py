"""Draws from whole rows of scores, some rows at a time: greedy, the temperature alone, and filters of any length.

Rows are those after penalties and grammar, with a finite highest entry. Knows no sequence and no candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.draws import Asked, Choice, Doubles, Floats, Ids, mass_of, pick, room, taken, tempered
from models.filters import best, choices, draw, logs, survivors

_TILE = 1 << 18  # numbers, float32: a mebibyte


def tiles(rows: Ids, width: int) -> Iterator[Ids]:
    """As many of these rows at a time as stay in the processor's cache from one pass to the next, or one."""
    count = max(1, _TILE // width)
    return (rows[first : first + count] for first in range(0, rows.size, count))


@dataclass(frozen=True, slots=True)
class Block:
    """Raw scores of some rows, float32 (rows, vocab_size), the highest of each, and what each asks for."""

    rows: Floats
    highest: Floats
    asked: Asked


def greedy(block: Block) -> list[Choice]:
    values = tempered(block.rows, block.highest)
    mass = mass_of(_weights_of(values))
    tokens = block.rows.argmax(axis=1)
    return choices(tokens, np.zeros(tokens.size), logs(mass), best(lambda rows: taken(values, rows), block.asked))


def unfiltered(block: Block) -> list[Choice]:
    values = tempered(block.rows, block.highest, block.asked.temperature)
    tokens, mass = pick(_weights_of(values), block.asked.number)
    drawn = values[np.arange(tokens.size), tokens]
    return choices(tokens, drawn, logs(mass), best(lambda rows: taken(values, rows), block.asked))


def _weights_of(values: Floats) -> Floats:
    return np.exp(values, out=room("weights", *values.shape))


@dataclass(frozen=True, slots=True)
class Weighed:
    """Rows at their temperature, their exponentials and the sum of those (see models/draws.py)."""

    values: Floats
    weights: Floats
    mass: Doubles
    asked: Asked

    @classmethod
    def of(cls, block: Block) -> Weighed:
        values = tempered(block.rows, block.highest, block.asked.temperature)
        weights = _weights_of(values)
        return cls(values, weights, mass_of(weights), block.asked)

    def at(self, rows: Ids) -> Weighed:
        if rows.size == len(self.values):
            return self
        return Weighed(self.values[rows], self.weights[rows], self.mass[rows], self.asked.at(rows))


def filtered(rows: Weighed) -> list[Choice]:
    return draw(survivors(rows.values, rows.weights, rows.mass, rows.asked), rows.asked)


def logprobs_of(rows: Floats, tokens: Ids) -> list[float]:
    """Log-softmax of token i in row i of raw logits; NaN in a row that has NaN."""
    values = tempered(rows, rows.max(axis=1))
    chosen = values[np.arange(tokens.size), tokens].tolist()
    return [value - whole for value, whole in zip(chosen, logs(mass_of(_weights_of(values))), strict=True)]
