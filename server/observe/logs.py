"""Logging: readable lines or JSON lines on one stream, written by a thread, so that a full pipe never stops the loop.

Knows nothing of what is logged. A record's `extra` fields are written behind its message.
"""

from __future__ import annotations

import copy
import logging
import logging.handlers
import queue
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import msgspec

LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
RECENT = 200
_OWN = ("server", "models")
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "taskName"}


@contextmanager
def logging_to(stream: TextIO, level: str, json_output: bool) -> Iterator[None]:
    """Log to `stream` until the block ends: the project's loggers from `level` (a key of LEVELS) on, the libraries' own
    from warning on. Everything logged in the block is written when it ends."""
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    sender = _Sender(records)
    output = logging.StreamHandler(stream)
    output.setFormatter(JsonLines() if json_output else TextLines())
    writer = logging.handlers.QueueListener(records, output)
    root = logging.getLogger()
    root.addHandler(sender)
    for name in _OWN:
        logging.getLogger(name).setLevel(LEVELS[level])
    writer.start()
    try:
        yield
    finally:
        root.removeHandler(sender)
        writer.stop()


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.123Z  INFO server.cli: message key=value`, then the traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {key}={value}" for key, value in _extra(record).items())
        line = f"{_timestamp(record)} {record.levelname:>7} {record.name}: {record.getMessage()}{extra}"
        return f"{line}\n{record.exc_text}" if record.exc_text else line


class JsonLines(logging.Formatter):
    """One object a line, with TGI's keys: timestamp, level, message, target; then the extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": _timestamp(record),
            "level": record.levelname,
            "message": record.getMessage(),
            "target": record.name,
            **_extra(record),
        }
        if record.exc_text:
            line["exception"] = record.exc_text
        return msgspec.json.encode(line, enc_hook=str).decode()


class RecentLines(logging.Handler):
    """Keeps the last lines in memory, for the admin page.

    Of an exception only the type is kept: what it says may quote a prompt.
    """

    def __init__(self, most: int = RECENT) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=most)
        self.setFormatter(TextLines())

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep what is logged until the block ends."""
        logging.getLogger().addHandler(self)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's line; the oldest one goes when there are too many."""
        kind = record.exc_info[0] if record.exc_info else None
        bare = copy.copy(record)
        bare.exc_info = bare.exc_text = None
        try:
            self._lines.append(self.format(bare) + (f" [{kind.__name__}: see the server's own log]" if kind else ""))
        except Exception:
            self.handleError(record)

    def lines(self) -> list[str]:
        """Oldest first."""
        return list(self._lines)


class _Sender(logging.handlers.QueueHandler):
    """Hands over a record with its text made, since the arguments may change before the writer gets to it."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record.exc_info = None
        return record


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}
