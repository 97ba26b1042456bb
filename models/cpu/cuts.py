"""Proves, on this very CPU, that what a slot holds does not depend on how its tokens were cut into feeds and decodes.

Then all that a slot holds may serve the next sequence that begins alike, and its text is the one of a prompt fed whole.
Matrix kernels may round differently for other numbers of rows, so a loaded decoder is tried, as rows.py does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

# Writes the tokens at the position, as one feed or, a single token, as a decode; answers what is to be the same:
# everything that the slot holds then, and the scores of the last token.
Write = Callable[[Sequence[int], int], bytes]

# Over the edge of a block of 64 positions, with remainders of every kind.
LENGTH = 75
_CUTS = (3, 4, 5, 12, 41, 64, 66, 67, 74)


def cuts_do_not_matter(feed: Write, decode: Write, tokens: Sequence[int], longest: int) -> bool:
    """Whether `tokens` in feeds of `longest` and in other pieces leave the same bits, also where single ones decode."""
    whole = [feed(tokens[start:stop], start) for start, stop in _pieces((), len(tokens), longest)]
    return all(
        [
            (single if start and stop - start == 1 else feed)(tokens[start:stop], start)
            for start, stop in _pieces(_CUTS, len(tokens), longest)
        ][-1]
        == whole[-1]
        for single in (feed, decode)
    )


def _pieces(cuts: Sequence[int], length: int, longest: int) -> list[tuple[int, int]]:
    """[0, length) cut at `cuts`, and wherever a piece would be longer than `longest`."""
    bounds = [0, *(cut for cut in cuts if cut < length), length]
    return [
        (start, min(start + longest, after))
        for before, after in itertools.pairwise(bounds)
        for start in range(before, after, longest)
    ]
