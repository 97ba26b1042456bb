"""Which free slot a prompt gets, and how much of it is there already."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.protocol import Reuse
from server.engine.slots import FreeSlots, Held, Place, Prompt, common_length

CHAT = tuple(range(100, 120))


def slots(count: int, reuse: Reuse = "tokens", chunk: int = 8, copies: bool = False) -> FreeSlots:
    return FreeSlots(count, chunk=chunk, reuse=reuse, copies=copies)


def use(free: FreeSlots, prompt: Prompt, answer: tuple[int, ...] = ()) -> Place:
    """A sequence comes, is fed whole, answers and ends."""
    place = free.take(prompt)
    free.give_back(place.slot, prompt, len(prompt.tokens), answer)
    return place


def test_the_lowest_slot_that_holds_nothing_comes_first() -> None:
    free = slots(3)
    assert [free.take(Prompt((each,))) for each in range(3)] == [Place(0), Place(1), Place(2)]
    assert len(free) == 0


def test_the_next_turn_goes_on_behind_the_prompt_and_its_answer() -> None:
    free = slots(2)
    use(free, Prompt(CHAT), answer=(7, 8))
    assert free.take(Prompt((*CHAT, 7, 8, 9))) == Place(0, len(CHAT) + 2)


def test_a_repeated_prompt_feeds_its_last_token() -> None:
    free = slots(1)
    use(free, Prompt(CHAT))
    assert free.take(Prompt(CHAT)) == Place(0, len(CHAT) - 1)


def test_the_slot_that_saves_most_is_given() -> None:
    free = slots(3)
    held = [Prompt((*CHAT[:10], 1)), Prompt((*CHAT[:15], 2)), Prompt((*CHAT[:12], 3))]
    taken = [free.take(prompt).slot for prompt in held]
    for slot, prompt in zip(taken, held, strict=True):
        free.give_back(slot, prompt, len(prompt.tokens))
    assert free.take(Prompt(CHAT)) == Place(1, 15)


def test_a_prompt_that_nothing_helps_overwrites_what_was_used_longest_ago() -> None:
    free = slots(2)
    use(free, Prompt((1, 2)))
    use(free, Prompt((3, 4)))
    use(free, Prompt((1, 2, 5)))  # slot 0 again
    assert free.take(Prompt((9, 9))) == Place(1, 0)


def test_other_keys_find_nothing() -> None:
    free = slots(1)
    use(free, Prompt(CHAT, scope="a key"))
    assert free.take(Prompt(CHAT, scope="another")) == Place(0, 0)


def test_a_prompt_that_wants_scores_is_fed_whole() -> None:
    free = slots(1)
    use(free, Prompt(CHAT))
    assert free.take(Prompt(CHAT, fresh=True)) == Place(0, 0)


def test_what_was_not_surely_written_is_not_held() -> None:
    free = slots(1)
    free.give_back(free.take(Prompt(CHAT)).slot, Prompt(CHAT), 4)
    assert free.take(Prompt(CHAT)) == Place(0, 4)


def test_without_reuse_nothing_is_held() -> None:
    free = slots(2, "none")
    use(free, Prompt(CHAT))
    assert free.take(Prompt(CHAT)) == Place(0, 0)


# --- where a slot can be copied


def test_a_chat_keeps_its_slot_when_another_begins_alike() -> None:
    free = slots(3, copies=True)
    long = tuple(range(200, 300))
    use(free, Prompt((*CHAT, 1)), answer=long)
    assert use(free, Prompt((*CHAT, 2)), answer=long) == Place(1, len(CHAT), source=0)
    assert free.take(Prompt((*CHAT, 1, *long, 3))) == Place(0, len(CHAT) + 1 + len(long))


def test_hardly_anything_lost_is_no_reason_for_a_copy() -> None:
    free = slots(2, copies=True)
    use(free, Prompt((*CHAT, 1, 2, 3)))
    assert free.take(Prompt((*CHAT, 4))) == Place(0, len(CHAT))


def test_what_runs_is_copied_and_never_given() -> None:
    free = slots(2, copies=True)
    running = Held(free.take(Prompt(CHAT)).slot, CHAT[:12], "")
    assert free.take(Prompt(CHAT), [running]) == Place(1, 12, source=0)


def test_another_keys_slot_is_not_copied() -> None:
    assert slots(2, copies=True).take(Prompt(CHAT), [Held(7, CHAT, "another")]) == Place(0)


def test_the_last_free_slot_is_taken_with_what_it_holds() -> None:
    free = slots(1, copies=True)
    use(free, Prompt((*CHAT, *range(200, 300))))
    assert free.take(Prompt((*CHAT, 1))) == Place(0, len(CHAT))


def test_by_chunks_only_whole_feeds_are_copied() -> None:
    free = slots(2, "chunks", chunk=8, copies=True)
    assert free.take(Prompt((*CHAT, 0)), [Held(1, CHAT, "")]) == Place(0, 16, source=1)


@pytest.mark.parametrize(("common", "reused"), [(7, 0), (8, 8), (15, 8), (16, 16), (20, 16)])
def test_by_chunks_only_whole_feeds_are_reused(common: int, reused: int) -> None:
    free = slots(1, "chunks", chunk=8)
    use(free, Prompt((*CHAT[:common], 1, 2, 3, 4, 5, 6, 7, 8)), answer=(9,))
    assert free.take(Prompt((*CHAT, 0))) == Place(0, reused)


def test_by_chunks_an_answer_is_never_reused() -> None:
    free = slots(1, "chunks", chunk=8)
    use(free, Prompt(CHAT[:10]), answer=CHAT[10:])
    assert free.take(Prompt((*CHAT, 0))) == Place(0, 8)


@given(st.lists(st.integers(0, 1), max_size=200), st.lists(st.integers(0, 1), max_size=200), st.integers(0, 150))
def test_the_common_length_is_that_of_the_longest_common_prefix(left: list[int], right: list[int], same: int) -> None:
    left, right = [0] * same + left, [0] * same + right
    length = common_length(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]
