"""What the CPU benchmark computes from what it measures."""

from __future__ import annotations

from collections.abc import Iterator

from models.cpu.benchmark import rates


class Timed:
    """Takes the given seconds, one a turn, of a clock that only it moves."""

    now = 0.0

    def __init__(self, name: str, *seconds: float) -> None:
        self.name = name
        self._seconds: Iterator[float] = iter(seconds)

    def generate(self, new_tokens: int) -> None:
        Timed.now += next(self._seconds)


def test_each_turn_is_compared_with_the_fastest_generate_of_that_turn() -> None:
    # The neighbours were busy in the second turn: everything took ten times as long.
    theirs = [Timed("dynamic", 8.0, 80.0, 9.0), Timed("static", 6.0, 90.0, 8.0)]
    ours = [Timed("ours", 2.0, 40.0, 2.0)]

    rows = {rate.variant: rate for rate in rates(theirs, ours, new_tokens=24, turns=3, clock=lambda: Timed.now)}

    assert rows["ours"].ratio == 3.0  # of 3, 2 and 4
    assert rows["ours"].tokens_per_s == 10 * 24 / 2.0
    assert rows["static"].ratio == 1.0
