"""Proves, on this very CPU, how many rows a decode step may have without a row's numbers depending on the others.

Matrix kernels may pick another order of summation for another number of rows, or for another place in a block. So a
loaded decoder is probed: the same (token, position) alone, in company, and in other places must score the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from models.backend import FloatRows

# Scores the tokens, one a row; all rows stand at the same position over slots of the same content.
Probe = Callable[[Sequence[int]], FloatRows]


def candidate_counts(slots: int) -> tuple[int, ...]:
    """The row counts worth proving: all up to 16, then about every eighth more, and `slots`.

    A step is padded to the next one, so at most a ninth of its rows is idle, and up to 16 none where all are proven.
    """
    counts = [1]
    while counts[-1] < slots:
        counts.append(min(counts[-1] + max(counts[-1] // 8, 1), slots))
    return tuple(counts)


def proven_counts(probe: Probe, tokens: Sequence[int], stepped: Callable[[], None]) -> tuple[int, ...]:
    """The row counts, ascending, in which every row scores the same bits at any place and in any company.

    `tokens` are distinct, one for each slot; `stepped` is called after each probe step (`probe_steps` in all). When
    rows of the full count depend on their place, only (1,) is left: a row alone has neither place nor company.
    """
    slots = len(tokens)

    def score(placed: Sequence[int]) -> dict[int, FloatRows]:
        rows = probe(placed)
        stepped()
        return dict(zip(placed, rows, strict=True))

    expected = score(tokens)
    proven = []
    for count in candidate_counts(slots):
        agrees = [_agrees(score(placed), expected) for placed in _placements(tokens, count)]
        if all(agrees):
            proven.append(count)
    return tuple(proven) if slots in proven else (1,)


def probe_steps(slots: int) -> int:
    """How many steps `proven_counts` runs."""
    return 1 + sum(len(_placements(range(slots), count)) for count in candidate_counts(slots))


def _placements(tokens: Sequence[int], count: int) -> list[list[int]]:
    """Rows of `count` tokens: each token comes at another place and beside other tokens than in `tokens`."""
    slots = len(tokens)
    # Load time: the full count, which every proof is held against, is placed in two ways, the others in one.
    rotations = sorted({1 % slots, (slots // 2 + 1) % slots} if count == slots else {(slots // 2 + 1) % slots})
    return [[*tokens[shift:], *tokens[:shift]][:count] for shift in rotations]


def _agrees(scored: dict[int, FloatRows], expected: dict[int, FloatRows]) -> bool:
    return all(np.array_equal(row, expected[token]) for token, row in scored.items())


def runs(live: int, counts: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Cuts `live` rows into runs: the rows of each, and the proven count that it is padded to."""
    start = 0
    while start < live:
        count = next((count for count in counts if count >= live - start), counts[-1])
        yield slice(start, min(start + count, live)), count
        start += count
