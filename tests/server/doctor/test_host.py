"""Memory, disk, port and instance."""

from __future__ import annotations

from typing import Any

import pytest

from server.doctor.capture import DiskRead, Instance, Memory, Port, Process

GIB = 1024**3


def test_a_host_that_can_never_hold_the_load_fails(inf2: Any) -> None:
    found = inf2.trouble(memory=Memory(4 * GIB, 3 * GIB))
    assert (found.level, found.check) == ("fail", "fit")
    assert "GiB of the host" in found.text


def test_a_host_that_is_busy_is_a_warning(inf2: Any) -> None:
    found = inf2.trouble(memory=Memory(16 * GIB, 3 * GIB))
    assert (found.level, found.check) == ("warn", "fit")


def test_a_rate_says_how_long_a_load_takes(inf2: Any) -> None:
    found = next(found for found in inf2.findings(disk=DiskRead("f", 256_000_000, 1.0)) if found.check == "disk")
    assert found.level == "ok"
    assert found.text.startswith("256 MB/s over 256 MB of f; a load takes at least: meta-llama/Meta-Llama-3-8B")


def test_a_disk_slower_than_the_slowest_volume_is_a_warning(inf2: Any) -> None:
    found = inf2.trouble(disk=DiskRead("f", 50_000_000, 1.0))
    assert (found.level, found.check) == ("warn", "disk")


def test_a_slow_disk_does_not_matter_to_a_small_model(laptop: Any) -> None:
    assert laptop.troubles(disk=DiskRead("f", 50_000_000, 1.0)) == []


@pytest.mark.parametrize("disk", [None, DiskRead("empty", 0, 0.1)])
def test_nothing_to_read_is_no_trouble(inf2: Any, disk: DiskRead | None) -> None:
    assert inf2.troubles(disk=disk) == []


@pytest.mark.parametrize(
    ("port", "level", "text"),
    [
        (Port("Address already in use"), "fail", "Address already in use"),
        (Port("Permission denied"), "fail", "Permission denied"),
        (Port("Address already in use", Process(7, "nginx: master")), "fail", "taken by process 7 (nginx: master)"),
        (Port("Address already in use", Process(8, "/venv/bin/neuronx-serve serve")), "warn", "neuronx-serve"),
    ],
)
def test_a_port_that_cannot_be_had(inf2: Any, port: Port, level: str, text: str) -> None:
    found = inf2.trouble(port=port)
    assert (found.level, found.check) == (level, "port")
    assert text in found.text


@pytest.mark.parametrize("name", ["", "m5.large", "inf1.xlarge"])
def test_another_machine_is_told_where_to_get_one(inf2: Any, name: str) -> None:
    found = inf2.trouble(instance=Instance("Amazon EC2", name, "eu-west-3"))
    assert (found.level, found.check) == ("warn", "instance")
    assert "us-east-1 and us-west-2" in found.advice
    assert "Running On-Demand Inf instances" in found.advice
