"""Numbers that are not finite: one sequence's row is that sequence's affair, several rows are the device's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from models.backend import DeviceError
from models.neuron.tnx import NeuronBackend
from models.protocol import Decode, Feed, NeuronOptions, SamplingParams, Start
from models.steps import Steps

OPTIONS = NeuronOptions(
    slots=4, n_positions=64, amp="f32", context_buckets=(16, 32), token_buckets=(32, 64), compile="if-missing"
)
PROMPTS = ((7, 101, 33), (201, 12, 5, 40), (9, 9))
LIVE = tuple((slot, slot) for slot in range(len(PROMPTS)))


@pytest.fixture
def spoilt(faked: ModuleType, tiny_checkpoint: Callable[..., Path]) -> tuple[Steps, set[int]]:
    """A worker's steps over the driver, and the slots whose rows the library answers with NaN."""
    backend = NeuronBackend(tiny_checkpoint("llama3"), OPTIONS)
    backend.stage(lambda *report: None)
    backend.load(lambda *report: None)
    model, bad = backend._model, set[int]()

    class Spoilt(type(model)):  # type: ignore[misc]
        def __call__(self, input_ids: Any, cache_ids: Any, start_ids: Any) -> Any:
            logits = super().__call__(input_ids, cache_ids, start_ids).clone()
            logits[[slot in bad for slot in start_ids.tolist()], 0] = torch.nan
            return logits

    model.__class__ = Spoilt
    return Steps(backend), bad


def _feed(slot: int, emitted: tuple[int, ...] = ()) -> Feed:
    start = Start(sampling=SamplingParams(), eos=(), max_new_tokens=20, emitted=emitted)
    return Feed(step=0, slot=slot, sequence=slot, tokens=PROMPTS[slot], start=start)


def _decode(steps: Steps, live: tuple[tuple[int, int], ...] = LIVE) -> dict[int, tuple[int, str]]:
    return {drawn.slot: (drawn.token, drawn.finish) for drawn in steps.run(Decode(step=0, live=live)).drawn}


def test_one_bad_row_ends_its_sequence_and_no_other(spoilt: tuple[Steps, set[int]]) -> None:
    steps, bad = spoilt
    first = {slot: steps.run(_feed(slot)).drawn[0].token for slot, _ in LIVE}
    bad.add(1)
    second = _decode(steps)
    assert second[1] == (-1, "non_finite")
    assert [second[slot][1] for slot in (0, 2)] == ["", ""]
    bad.clear()

    third = _decode(steps)
    assert set(third) == {0, 2}
    assert steps.run(_feed(1, emitted=(first[1],))).drawn == ()  # as the API process replays it
    fourth = _decode(steps)

    for slot in (0, 1, 2):
        steps.run(_feed(slot))
    assert _decode(steps) == {**second, 1: fourth[1]}
    assert {slot: token for slot, token in _decode(steps).items() if slot != 1} == third


def test_a_bad_prompt_row_ends_that_sequence(spoilt: tuple[Steps, set[int]]) -> None:
    steps, bad = spoilt
    steps.run(_feed(0))
    bad.add(2)
    (drawn,) = steps.run(_feed(2)).drawn
    assert (drawn.token, drawn.finish) == (-1, "non_finite")
    assert _decode(steps, ((0, 0),))[0][1] == ""


def test_several_bad_rows_are_the_devices_fault(spoilt: tuple[Steps, set[int]]) -> None:
    steps, bad = spoilt
    for slot, _ in LIVE:
        steps.run(_feed(slot))
    bad.update({0, 2})
    with pytest.raises(DeviceError, match="2 of 3 rows are not finite"):
        _decode(steps)
