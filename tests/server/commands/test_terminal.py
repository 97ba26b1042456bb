"""Progress as it is read on a terminal and in a log."""

from __future__ import annotations

import io

import pytest

from server.commands.terminal import Pace, ProgressLine, bytes_of, duration, size


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_leaves_out_what_was_done_before() -> None:
    pace = Pace(done=3, began=10.0)
    assert pace.left(3, 5, now=70.0) is None
    assert pace.left(4, 5, now=70.0) == 60.0
    assert pace.left(5, 5, now=70.0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (187, "3:07"), (3600, "1:00:00"), (45296, "12:34:56")]
)
def test_a_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert [size(count) for count in (0, 310_000, 15_000_000_000)] == ["0.0 MB", "0.3 MB", "15.0 GB"]
    assert bytes_of(1_200_000_000, 15_000_000_000) == "1.2 GB of 15.0 GB"


class TestLog:
    def test_the_first_and_last_of_a_phase_and_now_and_then_one_between(self) -> None:
        stream, clock = io.StringIO(), Clock()
        line = ProgressLine(stream, clock=clock)
        line.update("loading", 0, 4)
        for done in (1, 2, 3):
            clock.now += 6
            line.update("loading", done, 4)
        line.update("loading", 4, 4)
        line.tick()
        line.update("trying", 0, 1)
        line.close()
        assert stream.getvalue() == "loading 0/4\nloading 2/4, about 0:12 left\nloading 4/4\ntrying 0/1\n"

    def test_nothing_is_said_twice(self) -> None:
        stream = io.StringIO()
        line = ProgressLine(stream)
        line.update("loading", 4, 4)
        line.update("loading", 4, 4)
        assert stream.getvalue() == "loading 4/4\n"


class TestTerminal:
    def test_one_line_is_redrawn_with_a_bar_and_the_time(self) -> None:
        stream, clock = Terminal(), Clock()
        line = ProgressLine(stream, clock=clock)
        line.update("compiling", 1, 4)
        clock.now += 60
        line.tick()
        line.update("compiling", 2, 4)
        line.close()
        assert stream.getvalue().split("\r")[1:] == [
            "compiling 1/4 [######..................] 0:00 elapsed\x1b[K",
            "compiling 1/4 [######..................] 1:00 elapsed\x1b[K",
            "compiling 2/4 [############............] 1:00 elapsed, about 2:00 left\x1b[K\n",
        ]

    def test_nothing_is_drawn_before_the_first_report(self) -> None:
        stream = Terminal()
        line = ProgressLine(stream)
        line.tick()
        line.close()
        assert stream.getvalue() == ""
