"""decoder_input_details through the engine: the prompt's logprobs, whole or in chunks, once after any replay."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.backend import Logits
from models.protocol import Feed, SamplingParams, SimulatedOptions
from models.simulated import SimulatedBackend
from server.core import Finish, Request
from server.engine.generation import Generation

Bench = Callable[..., Any]
PROMPT = (5, 200, 6, 7, 31, 32, 90)


def request(prompt: tuple[int, ...] = PROMPT, wanted: bool = True) -> Request:
    return Request(
        model="m", prompt=prompt, text="", max_new_tokens=6, sampling=SamplingParams(), prompt_logprobs=wanted
    )


def finish(generation: Generation) -> Finish:
    async def last() -> Finish | None:
        return [output async for output in generation][-1].finish

    found = asyncio.run(last())
    assert found is not None
    return found


@pytest.fixture
def expected(tmp_path: Path) -> list[float]:
    """Log-softmax of every row of the backend, by the definition."""
    backend = SimulatedBackend(tmp_path, SimulatedOptions(vocab_size=256))
    backend.load(lambda *_: None)
    scores = backend.feed(0, PROMPT, all_logits=True)
    assert isinstance(scores, Logits)
    rows = scores.rows.astype(np.float64)
    return [float(row[token] - np.log(np.exp(row).sum())) for row, token in zip(rows, PROMPT[1:], strict=False)]


def logprobs(generation: Generation) -> list[float]:
    prompt = finish(generation).prompt
    assert [token.id for token in prompt] == list(PROMPT)
    assert math.isnan(prompt[0].logprob)
    return [token.logprob for token in prompt[1:]]


@pytest.mark.parametrize("chunk", [0, 1, 2, 3, 7])
def test_they_are_the_log_softmax_of_the_raw_rows(bench: Bench, expected: list[float], chunk: int) -> None:
    one = bench(chunk=chunk)
    generation = one.submit(request())
    one.run()
    assert logprobs(generation) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("chunk", [0, 2])
def test_a_replay_neither_doubles_nor_loses_them(bench: Bench, expected: list[float], chunk: int) -> None:
    for cut in range(10):
        one = bench(chunk=chunk)
        generation = one.submit(request())
        for _ in range(cut):
            one.step()
        one.engine.detach()
        one.attach()
        one.run()
        assert logprobs(generation) == pytest.approx(expected, abs=1e-5), cut


@pytest.mark.parametrize("bad", range(4))
def test_a_bad_piece_takes_the_pieces_behind_it_along(bench: Bench, expected: list[float], bad: int) -> None:
    """The last piece is on its way when the one before turns out to be bad: what it draws is nobody's token."""
    quiet = bench()
    alone = quiet.submit(request())
    quiet.run()
    one = bench(chunk=2, faults=(f"feed:{bad}=nan",))
    generation = one.submit(request())
    one.run()
    assert generation.emitted == alone.emitted
    assert logprobs(generation) == pytest.approx(expected, abs=1e-5)


def test_they_are_computed_only_where_they_are_wanted(bench: Bench) -> None:
    one = bench()
    generation = one.submit(request(wanted=False))
    one.run()
    assert finish(generation).prompt == ()
    assert not any(command.scored for command in one.worker.commands if isinstance(command, Feed))


def test_a_prompt_of_one_token_has_no_logprob(bench: Bench) -> None:
    one = bench()
    generation = one.submit(request((9,)))
    one.run()
    (token,) = finish(generation).prompt
    assert (token.id, math.isnan(token.logprob)) == (9, True)


def test_a_backend_that_cannot_score_a_prompt_leaves_them_out(bench: Bench) -> None:
    one = bench()
    one.engine.detach()
    one.engine.attach(one.worker, msgspec.structs.replace(one.worker.description, prefill_logprobs=False))
    generation = one.submit(request())
    one.run()
    assert finish(generation).prompt == ()
