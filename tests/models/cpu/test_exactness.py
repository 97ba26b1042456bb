"""The guaranteed mode (layout "fixed", float32): a slot's numbers are the same bits whatever the others do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SLOTS = 5
PROMPT = [5, 17, 101, 33, 8, 250, 4, 9, 88, 12, 7]
TOKENS = [3, 77, 150, 20, 31, 9, 64, 200]

# Sizes that no kernel's block divides, a tied head, and the two head layouts.
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("llama3", {}),
    "mistral uneven": ("mistral", {"hidden_size": 60, "intermediate_size": 100, "num_attention_heads": 6}),
    "codellama tied": ("codellama", {"tie_word_embeddings": True}),
}


@pytest.fixture(scope="module", params=CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def loaded(request: pytest.FixtureRequest, tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]) -> Any:
    """A backend of five slots in the guaranteed mode."""
    family, overrides = request.param
    return load_cpu(tiny_checkpoint(family, **overrides), slots=SLOTS, chunk=8, n_positions=96)


def _alone(loaded: Any, forced: Any, slot: int = 0) -> Any:
    sequence = forced(slot, PROMPT, TOKENS)
    sequence.start(loaded)
    while not sequence.done:
        sequence.scores.append(loaded.decode(sequence.next)[0])
    return sequence.scores


def _same_bits(left: Any, right: Any) -> bool:
    return np.stack(left).tobytes() == np.stack(right).tobytes()


def test_says_so(loaded: Any) -> None:
    assert loaded.description.reuse in ("tokens", "chunks")
    assert loaded.description.exact_replay
    assert loaded.description.dtype == "float32"


def test_the_slot_makes_no_difference(loaded: Any, forced: Any) -> None:
    expected = _alone(loaded, forced)
    for slot in range(1, SLOTS):
        assert _same_bits(_alone(loaded, forced, slot), expected)


@pytest.mark.parametrize("live", range(2, SLOTS + 1))
def test_neighbours_and_their_order_make_no_difference(loaded: Any, forced: Any, live: int) -> None:
    expected = _alone(loaded, forced)
    for place in range(live):
        sequence = forced(place, PROMPT, TOKENS)
        others = [forced(slot, PROMPT[slot:], TOKENS[::-1]) for slot in range(live) if slot != place]
        for each in (*others, sequence):
            each.start(loaded)
        everyone = [*others[place:], sequence, *others[:place]]
        while not sequence.done:
            rows = loaded.decode(*[each.next for each in everyone])
            for each, row in zip(everyone, rows, strict=True):
                each.scores.append(row)
        assert _same_bits(sequence.scores, expected)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_joining_leaving_and_being_held_make_no_difference(loaded: Any, forced: Any, data: st.DataObject) -> None:
    """Any schedule of feeds in pieces, holds, departures and decodes of the neighbours."""
    expected = _alone(loaded, forced)
    slots = data.draw(st.permutations(range(SLOTS)))
    sequence, neighbours = forced(slots[0], PROMPT, TOKENS), {}
    sequence.start(loaded)
    while not sequence.done:
        for slot in slots[1:]:
            event = data.draw(st.sampled_from(["stay", "join", "leave"]))
            if event == "join" and slot not in neighbours:
                neighbours[slot] = forced(slot, PROMPT[: data.draw(st.integers(1, len(PROMPT)))], TOKENS * 4)
                neighbours[slot].start(loaded)
            elif event == "leave":
                neighbours.pop(slot, None)
        waits = data.draw(st.booleans())
        live = data.draw(st.permutations([*neighbours.values(), sequence]))
        rows = loaded.decode(*[each.held if each is sequence and waits else each.next for each in live])
        for each, row in zip(live, rows, strict=True):
            if each is not sequence or not waits:
                each.scores.append(row)
    assert _same_bits(sequence.scores, expected)


def test_a_prompt_that_is_held_between_its_pieces_is_not_touched(loaded: Any, forced: Any) -> None:
    """The neighbours' steps repeat the last token of a half-fed prompt: its cache must keep the bits of the feed."""
    expected = _alone(loaded, forced)
    neighbour = forced(1, PROMPT[::-1], TOKENS)
    neighbour.start(loaded)
    piece = loaded.description.chunk
    loaded.backend.feed(2, PROMPT[:piece], 0)
    for _ in range(3):
        neighbour.scores.append(loaded.decode(neighbour.next, (2, PROMPT[piece - 1], piece - 1))[0])
    sequence = forced(2, PROMPT, TOKENS, [loaded.backend.feed(2, PROMPT[piece:], piece).rows[0]])
    while not sequence.done:
        sequence.scores.append(loaded.decode(sequence.next)[0])
    assert _same_bits(sequence.scores, expected)


@pytest.mark.parametrize("length", [1, 2, 8])
def test_the_last_row_is_the_same_where_every_row_is_scored(loaded: Any, length: int) -> None:
    every = loaded.backend.feed(0, PROMPT[:length], all_logits=True).rows[-1:]
    last = loaded.backend.feed(1, PROMPT[:length]).rows
    assert np.allclose(last, every, atol=1e-5)
    if loaded.description.reuse == "tokens":  # as cuts.py found: feeds of any length compute a row alike
        assert _same_bits(last, every)


def test_repeating_a_step_repeats_its_bits(loaded: Any) -> None:
    for slot in (0, 1):
        loaded.feed(slot, PROMPT)
    live = [(0, 3, len(PROMPT)), (1, 8, len(PROMPT))]
    first = loaded.decode(*live)
    assert np.array_equal(loaded.decode(*reversed(live))[::-1], first)


def test_a_feed_in_the_same_pieces_repeats_its_bits_in_any_slot(loaded: Any) -> None:
    expected = loaded.feed(0, PROMPT)
    for slot in range(SLOTS):
        assert np.array_equal(loaded.feed(slot, PROMPT), expected)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_going_on_behind_what_a_slot_holds_makes_no_difference(loaded: Any, data: st.DataObject) -> None:
    """What prefix reuse rests on. Where kernels are blind to the number of rows: from any position on, in feeds of any
    size and decodes among neighbours; else (here the sizes that no kernel's block divides) from whole chunks on.
    """
    any_cut = loaded.description.reuse == "tokens"
    prompt = (PROMPT * 7)[:70]  # over the edge of a block of positions

    for start in range(0, len(prompt), 8):
        expected = loaded.backend.feed(0, prompt[start : start + 8], start).rows[0]
    neighbours = data.draw(st.lists(st.integers(1, SLOTS - 1), unique=True))
    for slot in neighbours:
        loaded.backend.feed(slot, prompt[:slot], 0)
    position = data.draw(st.integers(0, len(prompt) - 1))
    position -= 0 if any_cut else position % 8
    while position < len(prompt):
        piece = data.draw(st.integers(1, 8)) if any_cut else 8
        tokens = prompt[position : position + piece]
        if len(tokens) == 1 and position and data.draw(st.booleans()):
            rows = loaded.decode(*[(slot, prompt[slot - 1], slot - 1) for slot in neighbours], (0, tokens[0], position))
            row = rows[-1]
        else:
            row = loaded.backend.feed(0, tokens, position).rows[0]
        position += len(tokens)
    assert np.array_equal(row, expected)


def test_another_load_repeats_the_bits(
    loaded: Any, forced: Any, tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]
) -> None:
    """What a replay after a crash rests on. One position fewer makes it another backend of the same shapes."""
    expected = _alone(loaded, forced)
    directory = loaded.backend._directory
    assert _same_bits(_alone(load_cpu(directory, slots=SLOTS, chunk=8, n_positions=95), forced), expected)


def test_the_embedded_model_goes_on_behind_whatever_a_slot_holds(
    embedded_model: Path, load_cpu: Callable[..., Any]
) -> None:
    loaded = load_cpu(embedded_model, slots=2, n_positions=256)
    prompt = list(range(1000, 1150))
    for start in range(0, len(prompt), 32):
        expected = loaded.backend.feed(0, prompt[start : start + 32], start).rows[0]

    loaded.backend.feed(1, prompt[:31], 0)
    for position in range(31, 35):
        loaded.decode((1, prompt[position], position))
    for start, stop in ((35, 61), (61, 62), (62, 92), (92, 120), (120, 149)):
        loaded.backend.feed(1, prompt[start:stop], start)
    decoded = loaded.decode((1, prompt[149], 149))[0]
    fed = loaded.backend.feed(1, prompt[149:], 149).rows[0]

    assert loaded.description.reuse == "chunks" or (np.array_equal(decoded, expected) and np.array_equal(fed, expected))


def test_the_embedded_model_keeps_its_bits_beside_neighbours(
    embedded_model: Path, load_cpu: Callable[..., Any], forced: Any
) -> None:
    loaded = load_cpu(embedded_model, slots=8, n_positions=256)
    prompt = list(range(1000, 1070))
    expected = forced(0, prompt, TOKENS)
    expected.start(loaded)
    while not expected.done:
        expected.scores.append(loaded.decode(expected.next)[0])
    sequences = [forced(slot, prompt if slot == 5 else prompt[slot:], TOKENS) for slot in range(8)]
    for each in sequences:
        each.start(loaded)
    for step in range(len(TOKENS)):
        live = [each for each in sequences if each.slot == 5 or (each.slot + step) % 3]
        rows = loaded.decode(*[each.next for each in live])
        for each, row in zip(live, rows, strict=True):
            each.scores.append(row)
    assert _same_bits(sequences[5].scores, expected.scores)
