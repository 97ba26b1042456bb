"""The messages to a service manager, on a real datagram socket."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest

from server.errors import ConfigurationError
from server.observe.systemd import Notifier

PID = 4711
both_addresses = pytest.mark.parametrize("service_manager", ["path", "abstract"], indirect=True)


@pytest.fixture
def notifier(service_manager: Any) -> Any:
    notifier = Notifier.of(service_manager.environment(), PID)
    yield notifier
    notifier.close()


@both_addresses
def test_what_is_said_arrives(service_manager: Any, notifier: Notifier) -> None:
    for say in (
        lambda: notifier.more_time(30),
        lambda: notifier.status("loading org/model:\nweights 43%"),
        lambda: notifier.ready("serving org/model"),
        notifier.alive,
        notifier.reloading,
        lambda: notifier.stopping("stopping"),
    ):
        say()
        service_manager.receive(60)
    *said, reloading, stopping = service_manager.received
    assert said == [
        {"EXTEND_TIMEOUT_USEC": "30000000"},
        {"STATUS": "loading org/model: weights 43%"},
        {"READY": "1", "STATUS": "serving org/model"},
        {"WATCHDOG": "1"},
    ]
    assert reloading["RELOADING"] == "1"
    assert int(reloading["MONOTONIC_USEC"]) > 0
    assert stopping == {"STOPPING": "1", "STATUS": "stopping"}


def test_without_a_service_manager_nothing_is_said() -> None:
    notifier = Notifier.of({"WATCHDOG_USEC": "1000000"}, PID)
    assert (notifier.wanted, notifier.watchdog_s) == (False, 0.0)
    notifier.ready("serving")
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(PID)}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_fed_by_the_process_it_is_meant_for(environment: dict[str, str], seconds: float) -> None:
    notifier = Notifier.of({"NOTIFY_SOCKET": "/run/notify", **environment}, PID)
    assert (notifier.wanted, notifier.watchdog_s) == (True, seconds)
    notifier.close()


@pytest.mark.parametrize(
    "environment",
    [{"NOTIFY_SOCKET": "notify"}, {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "a minute"}],
)
def test_an_environment_that_makes_no_sense_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="allowed is"):
        Notifier.of(environment, PID)


@both_addresses
def test_what_a_busy_service_manager_does_not_take_comes_later_the_last_of_each_kind(
    service_manager: Any, notifier: Notifier
) -> None:
    # How many messages fit is the kernel's affair: a limit of the receiver's, or of the sender's buffer.
    taken = fill(notifier)
    notifier.status("loading 1%")
    notifier.more_time(30)
    notifier.status("loading 2%")
    notifier.ready("serving")
    notifier.more_time(31)
    assert notifier.unsent == 3
    for number in range(taken):
        assert service_manager.receive(60) == {"STATUS": str(number)}
    while notifier.unsent:
        notifier.alive()
        service_manager.receive(60)
    service_manager.receive_all()
    late = service_manager.received[taken:]
    assert late[:3] == [
        {"STATUS": "loading 2%"},
        {"READY": "1", "STATUS": "serving"},
        {"EXTEND_TIMEOUT_USEC": "31000000"},
    ]
    assert late[3:]
    assert all(message == {"WATCHDOG": "1"} for message in late[3:])


def fill(notifier: Notifier) -> int:
    """Say the numbers from 0 on until one is not taken; how many were."""
    for number in range(1_000_000):
        notifier.status(str(number))
        if notifier.unsent:
            return number
    raise AssertionError("the service manager's socket takes everything")


def test_a_service_manager_that_is_gone_harms_nobody(
    service_manager: Any, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    service_manager.close()
    os.unlink(service_manager.address)
    with caplog.at_level(logging.WARNING):
        notifier.ready("serving")
    assert "the service manager cannot be told READY=1: [Errno" in caplog.text
