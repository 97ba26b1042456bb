"""Draws one token for each row of scores: penalties, filters, the draw, logprobs. Runs in the worker.

Knows no slot, no device and no text. The order of the processors is TGI's (wire contract, section 3): repetition
penalty, frequency penalty, presence penalty, grammar, temperature, top-k, top-p, typical-p, draw. Greedy rows take the
penalties and the grammar and nothing else. `logprob` is the log-softmax after all of them.

Rows that ask for the same way to draw go through it together, as many at a time as stay in the processor's cache: a
pass over a row then reads what the pass before has left there. Which rows those are changes no bit of an answer.

A row is not finite when its highest logit is not: NaN anywhere, +inf anywhere, or -inf everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from models.backend import Candidates, Logits, Scores, TokenIds
from models.candidates import proven
from models.draws import NARROW, NOT_FINITE, Choice, Floats, Ids, taken
from models.heads import BEYOND, Heads, draw_heads, few, heads_of, reaching
from models.selection import SHORT, group_size
from models.sequence_sampler import SequenceSampler, asked_of, mask_rows, penalise_rows
from models.whole_rows import Block, Weighed, filtered, greedy, logprobs_of, tiles, unfiltered

# Asks for the whole rows of these indices, in this order: the same step once more, with nothing left out.
FullRows = Callable[[list[int]], Logits]


def logprobs(rows: Floats, tokens: Sequence[int]) -> tuple[float, ...]:
    """Log-softmax of token i in row i of raw logits, float32 (len(tokens), vocab_size); NaN in a row that has NaN."""
    chosen = np.array(tokens, dtype=np.int64)
    with _unbounded():
        return tuple(
            each
            for tile in tiles(np.arange(chosen.size), rows.shape[1])
            for each in logprobs_of(taken(rows, tile), chosen[tile])
        )


def sample(scores: Scores, samplers: Sequence[SequenceSampler], full: FullRows) -> list[Choice]:
    """One Choice a row, row i by samplers[i], which advances by that token.

    A row of Candidates is answered from them where that provably equals the whole row's answer; the others are asked
    for by one call of `full`, and drawn with the same random number.
    """
    match scores:
        case Logits():
            choices = choose(scores.rows, samplers)
        case Candidates():
            choices = _from_candidates(scores, samplers, full)
        case TokenIds():
            choices = [Choice(token, 0.0) for token in scores.ids.tolist()]
    for choice, sampler in zip(choices, samplers, strict=True):
        if choice.finite:
            sampler.advance(choice.token)
    return choices


def _unbounded() -> np.errstate:
    """What is too large, too small or no number is told apart by its value."""
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


def _from_candidates(scores: Candidates, samplers: Sequence[SequenceSampler], full: FullRows) -> list[Choice]:
    with _unbounded():
        drawn = proven(scores, samplers)
    missing = [row for row, choice in enumerate(drawn) if choice is None]
    if missing:
        whole = choose(full(missing).rows, [samplers[row] for row in missing])
        for row, choice in zip(missing, whole, strict=True):
            drawn[row] = choice
    return [choice for choice in drawn if choice is not None]


class _Way(Enum):
    GREEDY = auto()
    UNFILTERED = auto()
    HEAD = auto()
    NUCLEUS = auto()
    FILTERED = auto()


class _Kind(NamedTuple):
    """Rows that share their passes: a way to draw, the group_size of what is listed, whether penalties and whether a
    grammar come first, and which filters go through whole rows."""

    way: _Way
    size: int
    penalised: bool
    masked: bool
    filters: tuple[bool, ...] = ()


def _kind(sampler: SequenceSampler, vocabulary: int) -> _Kind:
    params = sampler.params
    before = (sampler.penalised, sampler.matcher is not None)
    if not params.do_sample:
        return _Kind(_Way.GREEDY, 1, *before)
    if params.top_k and params.top_k + BEYOND <= min(NARROW, vocabulary):
        return _Kind(_Way.HEAD, group_size(vocabulary, params.top_k + BEYOND), *before)
    if not params.top_k and params.top_p < 1.0 and vocabulary >= 4 * SHORT:
        return _Kind(_Way.NUCLEUS, group_size(vocabulary, SHORT), *before)
    if params.top_k or params.top_p < 1.0 or params.typical_p < 1.0:
        return _filtered(sampler)
    return _Kind(_Way.UNFILTERED, 1, *before)


def _filtered(sampler: SequenceSampler) -> _Kind:
    params = sampler.params
    filters = (params.top_k > 0, params.top_p < 1.0, params.typical_p < 1.0)
    return _Kind(_Way.FILTERED, 1, sampler.penalised, sampler.matcher is not None, filters)


def choose(rows: Floats, samplers: Sequence[SequenceSampler]) -> list[Choice]:
    """The tokens of whole rows, float32 (rows, vocab_size), which are not changed. Does not advance the samplers.

    ValueError when there are not as many rows as samplers.
    """
    if len(rows) != len(samplers):
        raise ValueError(f"{len(rows)} rows for {len(samplers)} samplers: each row needs its own")
    with _unbounded():
        return _Draws(rows, samplers).run()


class _Draws:
    """The draws of one step from whole rows."""

    def __init__(self, rows: Floats, samplers: Sequence[SequenceSampler]) -> None:
        self._rows = rows
        self._samplers = samplers
        self._asked = asked_of(samplers)
        self._choices = [NOT_FINITE] * len(samplers)
        self._heads: list[tuple[Ids, Heads]] = []  # and of which rows they are
        self._undecided: list[int] = []  # rows that no head decides

    def run(self) -> list[Choice]:
        vocabulary = self._rows.shape[1]
        self._draw({row: _kind(sampler, vocabulary) for row, sampler in enumerate(self._samplers)})
        if self._heads:
            self._draw_heads()
        if self._undecided:
            self._draw({row: _filtered(self._samplers[row]) for row in sorted(self._undecided)})
        return self._choices

    def _draw(self, kinds: Mapping[int, _Kind]) -> None:
        members: dict[_Kind, list[int]] = {}
        for row, kind in kinds.items():
            members.setdefault(kind, []).append(row)
        for kind, rows in members.items():
            for tile in tiles(np.array(rows), self._rows.shape[1]):
                finite, block = self._block(tile, kind)
                if finite.size:
                    self._draw_block(kind, finite, block)

    def _block(self, tile: Ids, kind: _Kind) -> tuple[Ids, Block]:
        """The rows of a tile after penalties and grammar, and which they are: those that are finite."""
        rows = taken(self._rows, tile)
        highest = rows.max(axis=1)
        finite = np.isfinite(highest)
        if kind.penalised or kind.masked:
            rows, samplers = rows.copy(), [self._samplers[row] for row in tile.tolist()]
            if kind.penalised:
                penalise_rows(rows, samplers)
            if kind.masked:
                mask_rows(rows, samplers)
            highest = rows.max(axis=1)
            finite &= np.isfinite(highest)  # it is -inf where the row itself has ruled out all that its grammar allows
        if not finite.all():
            rows, highest, tile = rows[finite], highest[finite], tile[finite]
        asked = self._asked if tile.size == len(self._choices) else self._asked.at(tile)
        return tile, Block(rows, highest, asked)

    def _draw_block(self, kind: _Kind, rows: Ids, block: Block) -> None:
        match kind.way:
            case _Way.GREEDY:
                self._put(rows, greedy(block))
            case _Way.UNFILTERED:
                self._put(rows, unfiltered(block))
            case _Way.FILTERED:
                self._put(rows, filtered(Weighed.of(block)))
            case _Way.HEAD:
                heads = heads_of(block.rows, block.highest, block.asked.top_k + BEYOND, kind.size)
                listed = few(heads)
                self._heads.append((rows[listed], heads.of(listed)))
                self._undecided += rows[~listed].tolist()
            case _Way.NUCLEUS:
                self._draw_nuclei(rows, Weighed.of(block), block, kind.size)

    def _draw_nuclei(self, rows: Ids, weighed: Weighed, block: Block, size: int) -> None:
        """List the heads of nuclei that have one; from the others, rows are drawn while they are in the cache."""
        # No weight is above 1: the mass alone may tell that so few do not come to a share.
        short = block.asked.top_p * weighed.mass <= NARROW
        if short.any():
            heads = heads_of(block.rows, block.highest, np.full(rows.size, SHORT), size, weighed.mass)
            short &= few(heads) & reaching(heads, weighed.weights, block.asked.top_p)
            self._heads.append((rows[short], heads.of(short)))
        if not short.all():
            self._put(rows[~short], filtered(weighed.at(np.flatnonzero(~short))))

    def _draw_heads(self) -> None:
        rows = np.concatenate([members for members, _ in self._heads])
        if not rows.size:
            return
        asked = self._asked if len(self._choices) == 1 else self._asked.at(rows)
        drawn = draw_heads(Heads.joined([heads for _, heads in self._heads]), asked)
        self._put(rows, drawn)

    def _put(self, rows: Ids, choices: Sequence[Choice | None]) -> None:
        for row, choice in zip(rows.tolist(), choices, strict=True):
            if choice is None:
                self._undecided.append(row)
            else:
                self._choices[row] = choice
