"""How often a mode says something else: nothing for the guaranteed mode itself, everything for another model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.cpu.divergence import Divergence, answers, diverges

PROMPTS = ([5, 17, 101, 33], [8, 250], [4, 9, 88, 12, 7])
TOKENS = 12


def test_the_guaranteed_mode_does_not_diverge_from_itself(
    tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]
) -> None:
    backend = load_cpu(tiny_checkpoint("llama3")).backend
    guaranteed = answers(backend, PROMPTS, TOKENS)

    assert [len(answer) for answer in guaranteed] == [TOKENS] * len(PROMPTS)
    itself = diverges("itself", backend, PROMPTS, guaranteed)
    assert itself == Divergence("itself", 0.0, 0.0, itself.perplexity)
    assert itself.perplexity >= 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_packed_layout_gives_the_guaranteed_answers_about_the_same_perplexity(
    tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any], dtype: str
) -> None:
    directory = tiny_checkpoint("llama3")
    exact = load_cpu(directory).backend
    guaranteed = answers(exact, PROMPTS, TOKENS)
    expected = diverges("exact", exact, PROMPTS, guaranteed).perplexity

    packed = load_cpu(directory, layout="packed", dtype=dtype).backend
    measured = diverges("packed", packed, PROMPTS, guaranteed)

    assert measured.perplexity == pytest.approx(expected, rel=1e-4 if dtype == "float32" else 5e-2)


def test_another_model_diverges_nearly_everywhere(
    tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]
) -> None:
    exact, other = (load_cpu(tiny_checkpoint(family)).backend for family in ("mistral", "llama3"))
    guaranteed = answers(exact, PROMPTS, TOKENS)

    measured = diverges("other", other, PROMPTS, guaranteed)

    assert measured.other > 0.5
    assert measured.perplexity > diverges("exact", exact, PROMPTS, guaranteed).perplexity
