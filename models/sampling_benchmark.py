"""`python -m models.sampling_benchmark`: what one step's sampling takes, alone, on one core. Milliseconds, medians.

The kinds of rows take turns with the ways to draw, so a busy neighbour slows them alike. Knows no device and no server.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.backend import Logits
from models.protocol import SamplingParams
from models.sampler import sample
from models.sequence_sampler import SequenceSampler

# The nuclei alone are taken at temperature 1, where they are the widest.
WAYS = {
    "top-k 50, top-p 0.95": SamplingParams(do_sample=True, temperature=0.8, top_k=50, top_p=0.95),
    "greedy": SamplingParams(),
    "temperature 0.8": SamplingParams(do_sample=True, temperature=0.8),
    "top-p 0.95": SamplingParams(do_sample=True, top_p=0.95),
    "typical-p 0.95": SamplingParams(do_sample=True, typical_p=0.95),
}
LIKELY = 20  # tokens of a row over noise that have most of its mass


def rows_of(kind: str, count: int, vocabulary: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Logits, float32 (count, vocabulary): "likely" (over noise of deviation 2.5), "flat" (deviation 0.1) or "zipf"."""
    random = np.random.default_rng(seed)
    if kind == "zipf":
        ranked = -1.2 * np.log(np.arange(1, vocabulary + 1))
        rows = np.stack([random.permutation(ranked) for _ in range(count)])
    elif kind == "flat":
        rows = random.normal(0.0, 0.1, (count, vocabulary))
    elif kind == "likely":
        rows = random.normal(0.0, 2.5, (count, vocabulary))
        for row in rows:
            row[random.choice(vocabulary, LIKELY, replace=False)] += random.uniform(15.0, 20.0, LIKELY)
    else:
        raise ValueError(f"kind {kind!r} must be likely, flat or zipf")
    return rows.astype(np.float32)


def measure(rows: npt.NDArray[np.float32], turns: int) -> dict[str, float]:
    """Median milliseconds of one step over all rows, by the way to draw."""
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn, (way, params) in itertools.product(range(turns + 1), WAYS.items()):
        samplers = [SequenceSampler(params, ()) for _ in rows]
        began = time.perf_counter()
        sample(Logits(rows), samplers, _never)
        if turn:  # the first one warms up
            taken[way].append(1000 * (time.perf_counter() - began))
    return {way: statistics.median(times) for way, times in taken.items()}


def _never(rows: list[int]) -> Logits:
    raise AssertionError(f"whole rows are not asked for once more: {rows}")


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m models.sampling_benchmark", description=__doc__)
    parser.add_argument("--rows", type=int, default=10, help="rows of a step; default 10")
    parser.add_argument("--vocab", type=int, default=128_256, help="default 128256")
    parser.add_argument("--turns", type=int, default=25, help="default 25")
    args = parser.parse_args(arguments)
    if args.rows < 1 or args.turns < 1 or args.vocab < LIKELY:
        parser.error(f"--rows and --turns must be 1 or more, --vocab {LIKELY} or more")
    print("ms    " + "  ".join(way.rjust(8) for way in WAYS))
    for kind in ("likely", "flat", "zipf"):
        took = measure(rows_of(kind, args.rows, args.vocab), args.turns)
        print(f"{kind:6}" + "  ".join(f"{took[way]:.2f}".rjust(max(8, len(way))) for way in WAYS), flush=True)


if __name__ == "__main__":
    main()
