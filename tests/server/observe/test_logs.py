"""Log lines as an operator reads them, and as a log collector does."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

from server.observe.logs import RecentLines, logging_to

log = logging.getLogger("server.test_logs")


def lines(json_output: bool, level: str = "info") -> list[str]:
    stream = io.StringIO()
    with logging_to(stream, level, json_output):
        log.debug("hidden")
        log.info("%d slots", 8, extra={"model": "org/tiny"})
        logging.getLogger("somelibrary").info("hidden")
        logging.getLogger("somelibrary").warning("odd")
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("failed")
    return stream.getvalue().splitlines()


def test_text_lines_have_time_level_origin_message_and_fields() -> None:
    first, second, third, *traceback = lines(json_output=False)
    assert first.endswith("Z    INFO server.test_logs: 8 slots model=org/tiny")
    assert second.endswith(" WARNING somelibrary: odd")
    assert third.endswith("   ERROR server.test_logs: failed")
    assert traceback[0] == "Traceback (most recent call last):"
    assert traceback[-1] == "ValueError: broken"


def test_json_lines_have_tgi_s_keys() -> None:
    first, second, third = map(json.loads, lines(json_output=True))
    assert list(first) == ["timestamp", "level", "message", "target", "model"]
    assert first["level"] == "INFO"
    assert first["message"] == "8 slots"
    assert first["target"] == "server.test_logs"
    assert first["model"] == "org/tiny"
    assert second["message"] == "odd"
    assert third["exception"].endswith("ValueError: broken")


@pytest.mark.parametrize(("level", "count"), [("trace", 4), ("debug", 4), ("info", 3), ("warn", 2), ("error", 2)])
def test_the_level_is_that_of_the_project_s_own_loggers(level: str, count: int) -> None:
    assert len(lines(json_output=True, level=level)) == count


def test_a_stuck_reader_of_the_log_stops_nobody() -> None:
    released = threading.Event()

    class StuckPipe(io.StringIO):
        def write(self, text: str) -> int:
            released.wait()
            return super().write(text)

    stream = StuckPipe()
    with logging_to(stream, "info", json_output=False):
        for i in range(1000):
            log.info("line %d", i)
        assert stream.getvalue() == ""
        released.set()
    assert len(stream.getvalue().splitlines()) == 1000


def test_the_last_lines_are_kept_without_what_exceptions_say() -> None:
    recent = RecentLines(most=3)
    with recent.attached():
        for i in range(3):
            log.warning("line %d", i, extra={"model": "org/tiny"})
        try:
            raise ValueError("a prompt")
        except ValueError:
            log.exception("failed")
    log.warning("afterwards")
    first, second, failed = recent.lines()
    assert first.endswith(" WARNING server.test_logs: line 1 model=org/tiny")
    assert second.endswith(" WARNING server.test_logs: line 2 model=org/tiny")
    assert failed.endswith("ERROR server.test_logs: failed [ValueError: see the server's own log]")
