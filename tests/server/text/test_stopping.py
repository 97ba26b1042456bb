"""Stop strings: token granularity, across token borders (wire contract, section 6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.stopping import StopStrings


def stopped_at(stop: tuple[str, ...], tokens: list[str]) -> int | None:
    """Index of the token that ends the answer."""
    strings = StopStrings(stop)
    return next((i for i, text in enumerate(tokens) if strings.push(text)), None)


@pytest.mark.parametrize(
    ("stop", "tokens", "index"),
    [
        (("\n\n",), ["a", "\n", "b", "\n", "\n", "c"], 4),
        (("END",), ["the E", "N", "D"], 2),
        (("END",), ["END"], 0),
        (("END",), ["ENDED", "x"], None),
        (("zzz", "b"), ["a", "b"], 1),
        (("离",), ["距", "", "", "离"], 3),
        (("<|eot_id|>",), ["done", "<|eot_id|>"], 1),
        ((), ["a", "b"], None),
    ],
)
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(
    stop: tuple[str, ...], tokens: list[str], index: int | None
) -> None:
    assert stopped_at(stop, tokens) == index


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple),
    st.lists(st.text("ab", max_size=5), max_size=12),
)
def test_equals_looking_at_the_whole_text(stop: tuple[str, ...], tokens: list[str]) -> None:
    expected = next((i for i in range(len(tokens)) if "".join(tokens[: i + 1]).endswith(stop)), None)

    assert stopped_at(stop, tokens) == expected
