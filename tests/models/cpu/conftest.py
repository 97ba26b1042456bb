"""Loaded CPU backends, and sequences that run on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.backend import FloatRows
from models.cpu.backend import CpuBackend
from models.protocol import CpuOptions, Description, SlotInput


@dataclass(slots=True)
class Loaded:
    """A loaded backend and its description."""

    backend: CpuBackend
    description: Description

    def feed(self, slot: int, prompt: Sequence[int], piece: int = 0) -> FloatRows:
        """A whole prompt in pieces of `piece` tokens (the backend's chunk if 0); logits of every token."""
        size = piece or self.description.chunk
        return np.concatenate(
            [
                self.backend.feed(slot, prompt[start : start + size], start, all_logits=True).rows
                for start in range(0, len(prompt), size)
            ]
        )

    def decode(self, *live: tuple[int, int, int]) -> FloatRows:
        """One step of (slot, token, position) rows."""
        return self.backend.decode([SlotInput(*row) for row in live]).rows


@dataclass(slots=True)
class Forced:
    """A sequence whose tokens are given beforehand: `scores` collects the logits of each step."""

    slot: int
    prompt: Sequence[int]
    tokens: Sequence[int]
    scores: list[FloatRows] = field(default_factory=list)

    def start(self, loaded: Loaded) -> None:
        self.scores.append(loaded.feed(self.slot, self.prompt)[-1])

    @property
    def done(self) -> bool:
        return len(self.scores) > len(self.tokens)

    @property
    def next(self) -> tuple[int, int, int]:
        step = len(self.scores) - 1
        return self.slot, self.tokens[step], len(self.prompt) + step

    @property
    def held(self) -> tuple[int, int, int]:
        """The row that repeats what was written last."""
        written = [*self.prompt, *self.tokens[: len(self.scores) - 1]]
        return self.slot, written[-1], len(written) - 1


@pytest.fixture(scope="session")
def load_cpu() -> Iterator[Callable[..., Loaded]]:
    """load_cpu(directory, **options): a loaded backend, closed at the end of the session; equal calls share one."""
    loaded: dict[tuple[Path, CpuOptions], Loaded] = {}

    def load(directory: Path, **options: Any) -> Loaded:
        chosen = CpuOptions(**{"slots": 4, "n_positions": 64, "chunk": 32, "threads": 2, **options})
        if (directory, chosen) not in loaded:
            backend = CpuBackend(directory, chosen)
            backend.stage(lambda *report: None)
            loaded[directory, chosen] = Loaded(backend, backend.load(lambda *report: None))
        return loaded[directory, chosen]

    yield load
    for each in loaded.values():
        each.backend.close()


@pytest.fixture
def forced() -> type[Forced]:
    """forced(slot, prompt, tokens): see Forced."""
    return Forced
