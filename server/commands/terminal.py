"""Progress of a long command: one line that is redrawn on a terminal, now and then a plain line anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

_BAR = 24
_GIGABYTE = 1_000_000_000
_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class Pace:
    """The rate of one phase, measured from its first report on: what was done before then took no time here."""

    done: int
    began: float

    def left(self, done: int, total: int, now: float) -> float | None:
        """Seconds until `total`; None until something was done."""
        fresh = done - self.done
        return (total - done) * (now - self.began) / fresh if fresh > 0 else None


class ProgressLine:
    """Shows phase, amount, elapsed time and time left on `stream`; `amount` words a count of units."""

    def __init__(
        self,
        stream: TextIO,
        amount: Callable[[int, int], str] = lambda done, total: f"{done}/{total}",
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = 10.0,
    ) -> None:
        self._stream = stream
        self._amount = amount
        self._clock = clock
        self._interval_s = interval_s
        self._redraws = stream.isatty()
        self._state: tuple[str, int, int] | None = None
        self._pace = Pace(0, 0.0)
        self._written: tuple[str, float] = ("", 0.0)

    def update(self, phase: str, done: int, total: int) -> None:
        """Take a report. Off a terminal, the first and last of a phase are always written."""
        now = self._clock()
        new_phase = self._state is None or self._state[0] != phase
        if new_phase:
            self._pace = Pace(done, now)
        self._state = (phase, done, total)
        if self._redraws or new_phase or done == total or now - self._written[1] >= self._interval_s:
            self._write(now)

    def tick(self) -> None:
        """Show the time that has passed since the last report; a terminal only."""
        if self._redraws and self._state is not None:
            self._write(self._clock())

    def close(self) -> None:
        """Leave the line as it is and go to the next."""
        if self._redraws and self._state is not None:
            self._stream.write("\n")
            self._stream.flush()
        self._state = None

    def _write(self, now: float) -> None:
        assert self._state is not None
        phase, done, total = self._state
        line = f"{phase} {self._amount(done, total)}"
        if self._redraws:
            filled = _BAR * done // total if total else _BAR
            line = f"{line} [{'#' * filled}{'.' * (_BAR - filled)}] {duration(now - self._pace.began)} elapsed"
        left = self._pace.left(done, total, now)
        if left is not None and done < total:
            line += f", about {duration(left)} left"
        if line != self._written[0]:
            self._stream.write(f"\r{line}\x1b[K" if self._redraws else f"{line}\n")
            self._stream.flush()
        self._written = (line, now)


def duration(seconds: float) -> str:
    """Minutes and seconds, "3:07", with hours in front where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: int) -> str:
    """Bytes for people: "15.0 GB", "0.3 MB"."""
    return f"{count / _GIGABYTE:.1f} GB" if count >= _GIGABYTE else f"{count / _MEGABYTE:.1f} MB"


def bytes_of(done: int, total: int) -> str:
    """An amount of bytes for a ProgressLine."""
    return f"{size(done)} of {size(total)}"
