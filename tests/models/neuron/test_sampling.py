"""The settings by which the cores draw: one for each slot, in the words of the library's GenerationConfig."""

from __future__ import annotations

import pytest

from models.backend import StepError
from models.neuron.sampling import GLOBAL_TOP_K, SlotSampling
from models.protocol import SamplingParams


def test_every_slot_is_greedy_until_it_is_told_otherwise() -> None:
    assert SlotSampling(slots=3, vocab_size=32_000).fields() == {
        "do_sample": True,
        "dynamic": True,
        "per_batch_line": True,
        "global_top_k": GLOBAL_TOP_K,
        "top_k": [1, 1, 1],
        "top_p": [1.0, 1.0, 1.0],
        "temperature": [1.0, 1.0, 1.0],
        "top_p_min_tokens": [1, 1, 1],
    }


def test_a_slot_takes_its_requests_parameters_and_leaves_the_others_alone() -> None:
    slots = SlotSampling(slots=3, vocab_size=32_000)
    assert slots.put(1, SamplingParams(do_sample=True, temperature=0.7, top_k=40, top_p=0.9))
    fields = slots.fields()
    assert (fields["top_k"], fields["top_p"]) == ([1, 40, 1], [1.0, 0.9, 1.0])
    assert fields["temperature"] == [1.0, 0.7, 1.0]


def test_the_device_is_written_to_only_when_something_changes() -> None:
    slots = SlotSampling(slots=2, vocab_size=32_000)
    sampled = SamplingParams(do_sample=True, top_k=40)
    assert not slots.put(0, SamplingParams())
    assert slots.put(0, sampled)
    assert not slots.put(0, sampled)
    assert slots.put(1, sampled)
    assert slots.put(0, SamplingParams())


def test_a_greedy_request_is_greedy_whatever_its_filters_say() -> None:
    slots = SlotSampling(slots=1, vocab_size=32_000)
    assert not slots.put(0, SamplingParams(do_sample=False, temperature=2.0, top_k=40))


@pytest.mark.parametrize(("asked", "vocab_size", "built"), [(0, 32_000, 256), (1000, 32_000, 256), (0, 100, 100)])
def test_no_draw_looks_further_than_the_graphs_do(asked: int, vocab_size: int, built: int) -> None:
    slots = SlotSampling(slots=1, vocab_size=vocab_size)
    slots.put(0, SamplingParams(do_sample=True, top_k=asked))
    assert (slots.fields()["top_k"], slots.fields()["global_top_k"]) == ([built], built)


def test_the_lists_are_new_each_time_since_the_library_changes_what_it_is_given() -> None:
    slots = SlotSampling(slots=1, vocab_size=32_000)
    given = slots.fields()
    given["top_k"] = "changed"
    given["temperature"].append(0.0)  # type: ignore[attr-defined]
    assert slots.fields()["temperature"] == [1.0]
    assert slots.fields()["top_k"] == [1]


@pytest.mark.parametrize("slot", [-1, 2])
def test_a_slot_that_does_not_exist_is_refused(slot: int) -> None:
    with pytest.raises(StepError, match=f"slot {slot} does not exist"):
        SlotSampling(slots=2, vocab_size=32_000).put(slot, SamplingParams())
