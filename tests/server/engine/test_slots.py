"""Which free slot a prompt gets, and how much of it is there already."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.protocol import Reuse
from server.engine.slots import FreeSlots, Prompt, common_length

CHAT = tuple(range(100, 120))


def slots(count: int, reuse: Reuse = "tokens", chunk: int = 8) -> FreeSlots:
    return FreeSlots(count, chunk=chunk, reuse=reuse)


def use(free: FreeSlots, prompt: Prompt, answer: tuple[int, ...] = ()) -> tuple[int, int]:
    """A sequence comes, is fed whole, answers and ends."""
    slot, reused = free.take(prompt)
    free.give_back(slot, prompt, len(prompt.tokens), answer)
    return slot, reused


def test_the_lowest_slot_that_holds_nothing_comes_first() -> None:
    free = slots(3)
    assert [free.take(Prompt((each,))) for each in range(3)] == [(0, 0), (1, 0), (2, 0)]
    assert len(free) == 0


def test_the_next_turn_goes_on_behind_the_prompt_and_its_answer() -> None:
    free = slots(2)
    use(free, Prompt(CHAT), answer=(7, 8))
    assert free.take(Prompt((*CHAT, 7, 8, 9))) == (0, len(CHAT) + 2)


def test_a_repeated_prompt_feeds_its_last_token() -> None:
    free = slots(1)
    use(free, Prompt(CHAT))
    assert free.take(Prompt(CHAT)) == (0, len(CHAT) - 1)


def test_the_slot_that_saves_most_is_given() -> None:
    free = slots(3)
    held = [Prompt((*CHAT[:10], 1)), Prompt((*CHAT[:15], 2)), Prompt((*CHAT[:12], 3))]
    taken = [free.take(prompt)[0] for prompt in held]
    for slot, prompt in zip(taken, held, strict=True):
        free.give_back(slot, prompt, len(prompt.tokens))
    assert free.take(Prompt(CHAT)) == (1, 15)


def test_a_prompt_that_nothing_helps_overwrites_what_was_used_longest_ago() -> None:
    free = slots(2)
    use(free, Prompt((1, 2)))
    use(free, Prompt((3, 4)))
    use(free, Prompt((1, 2, 5)))  # slot 0 again
    assert free.take(Prompt((9, 9))) == (1, 0)


def test_other_keys_find_nothing() -> None:
    free = slots(1)
    use(free, Prompt(CHAT, scope="a key"))
    assert free.take(Prompt(CHAT, scope="another")) == (0, 0)


def test_a_prompt_that_wants_scores_is_fed_whole() -> None:
    free = slots(1)
    use(free, Prompt(CHAT))
    assert free.take(Prompt(CHAT, fresh=True)) == (0, 0)


def test_what_was_not_surely_written_is_not_held() -> None:
    free = slots(1)
    slot, _ = free.take(Prompt(CHAT))
    free.give_back(slot, Prompt(CHAT), 4)
    assert free.take(Prompt(CHAT)) == (0, 4)


def test_without_reuse_nothing_is_held() -> None:
    free = slots(2, "none")
    use(free, Prompt(CHAT))
    assert free.take(Prompt(CHAT)) == (0, 0)


@pytest.mark.parametrize(("common", "reused"), [(7, 0), (8, 8), (15, 8), (16, 16), (20, 16)])
def test_by_chunks_only_whole_feeds_are_reused(common: int, reused: int) -> None:
    free = slots(1, "chunks", chunk=8)
    use(free, Prompt((*CHAT[:common], 1, 2, 3, 4, 5, 6, 7, 8)), answer=(9,))
    assert free.take(Prompt((*CHAT, 0))) == (0, reused)


def test_by_chunks_an_answer_is_never_reused() -> None:
    free = slots(1, "chunks", chunk=8)
    use(free, Prompt(CHAT[:10]), answer=CHAT[10:])
    assert free.take(Prompt((*CHAT, 0))) == (0, 8)


@given(st.lists(st.integers(0, 1), max_size=200), st.lists(st.integers(0, 1), max_size=200), st.integers(0, 150))
def test_the_common_length_is_that_of_the_longest_common_prefix(left: list[int], right: list[int], same: int) -> None:
    left, right = [0] * same + left, [0] * same + right
    length = common_length(left, right)
    assert left[:length] == right[:length]
    assert length == min(len(left), len(right)) or left[length] != right[length]
