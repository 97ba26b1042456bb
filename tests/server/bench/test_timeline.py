"""The definitions of the engine's figures, on timelines made by hand."""

from __future__ import annotations

import pytest

from server.bench.timeline import (
    Step,
    full_decodes,
    host_added_s,
    idle_share,
    percentile,
    slot_occupancy,
    throughput_ratio,
)


def decode(rows: int, idle_s: float = 0.001, waiting: int = 0) -> Step:
    return Step("decode", rows, device_s=0.02, sampling_s=0.004, idle_s=idle_s, waiting=waiting)


def feed(waiting: int = 0) -> Step:
    return Step("prefill", 1, device_s=0.05, sampling_s=0.001, idle_s=0.0, waiting=waiting)


def test_only_a_decode_with_all_slots_behind_another_one_counts() -> None:
    steps = [feed(), decode(3), decode(4), decode(4), feed(), decode(4), decode(4), decode(3)]
    assert full_decodes(steps, 4) == [(steps[2], steps[3]), (steps[5], steps[6])]


def test_what_the_host_adds_is_neither_the_set_time_nor_sampling() -> None:
    late = Step("decode", 4, device_s=0.0215, sampling_s=0.004, idle_s=0.001)
    assert host_added_s(late, decode(4, idle_s=0.0005), 0.02) == pytest.approx(0.002)


def test_throughput_is_that_of_the_set_time_over_start_to_start() -> None:
    pairs = [(decode(4), decode(4))] * 3
    assert throughput_ratio(pairs, 0.02) == pytest.approx(0.02 / 0.025)


def test_idle_is_neither_running_nor_drawing() -> None:
    assert idle_share([decode(4), decode(4, idle_s=0.026)]) == pytest.approx(0.027 / 0.075)


class TestOccupancy:
    def test_without_anybody_waiting_there_is_none(self) -> None:
        assert slot_occupancy([decode(2), decode(2)], 2) is None

    def test_it_begins_when_all_slots_are_taken_and_ends_when_nobody_waits(self) -> None:
        steps = [decode(1, waiting=9), decode(2, waiting=1), decode(1, waiting=1), decode(1)]
        assert slot_occupancy(steps, 2) == pytest.approx(3 / 4)

    def test_in_a_feed_the_slot_that_is_filled_counts(self) -> None:
        steps = [decode(4, waiting=2), decode(3, waiting=2), feed(waiting=1)]
        expected = (4 * 0.025 + 3 * 0.025 + 4 * 0.051) / (4 * 0.101)
        assert slot_occupancy(steps, 4) == pytest.approx(expected)


def test_percentiles() -> None:
    assert percentile([3.0], 99) == 3.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)
