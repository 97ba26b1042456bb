"""A prefill beside decoding rows: in one pass of the CPU backend, and as two (`benchmark.py --mixed`)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.backend import MixedStepper
from models.cpu.backend import CpuBackend
from models.protocol import SlotInput


@dataclass(frozen=True, slots=True)
class Mixed:
    """Median seconds beside `rows` rows. `ratio`: the median over the turns of the one pass over the two."""

    rows: int
    apart_s: float
    together_s: float
    ratio: float


def measure(
    backend: CpuBackend, prompt: Sequence[int], counts: Sequence[int], turns: int, clock: Callable[[], float]
) -> list[Mixed]:
    """`prompt` goes into the slot behind the rows, which decode behind prompts of its length, all as often as `turns`
    says. The first turn is not counted."""
    assert isinstance(backend, MixedStepper)
    for slot in range(max(counts)):
        backend.feed(slot, prompt)
    measured = []
    for rows in counts:
        live = [SlotInput(slot, 1, len(prompt)) for slot in range(rows)]
        pairs = []
        for _ in range(turns + 1):
            began = clock()
            backend.decode(live)
            backend.feed(rows, prompt)
            between = clock()
            backend.decode_and_feed(live, rows, prompt)
            pairs.append((between - began, clock() - between))
        apart, together = zip(*pairs[1:], strict=True)
        ratio = statistics.median(both / two for two, both in pairs[1:])
        measured.append(Mixed(rows, statistics.median(apart), statistics.median(together), ratio))
    return measured
