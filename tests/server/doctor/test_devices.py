"""Device nodes, cores and their holders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from server.doctor.capture import DeviceNode, Devices, NeuronDevice, Process

NODE = DeviceNode("/dev/neuron0", "root", "neuron", "crw-rw----", True)
JUPYTER = Process(4711, "python -m ipykernel_launcher")
WORKER = Process(815, "/opt/neuron/bin/python /srv/models/__main__.py 7 800")


def holding(*processes: Process) -> Devices:
    return Devices((NODE,), (NeuronDevice(0, 2, 1 << 35, processes),))


def test_a_machine_in_order_has_nothing_to_be_done(inf2: Any) -> None:
    assert inf2.troubles() == []
    assert [found.text for found in inf2.findings() if found.check == "devices"] == [
        "/dev/neuron0 (crw-rw---- root:neuron)"
    ]


def test_no_device_fails_where_one_is_wanted(inf2: Any) -> None:
    found = inf2.trouble(devices=Devices())
    assert (found.level, found.check) == ("fail", "devices")
    assert "modprobe neuron" in found.advice
    assert "--device=/dev/neuron0" in found.advice


def test_no_device_is_right_where_none_is_wanted(laptop: Any) -> None:
    assert laptop.troubles() == []


@pytest.mark.parametrize(
    ("group", "mode", "advice"),
    [
        ("neuron", "crw-rw----", "sudo usermod -aG neuron $USER"),
        ("root", "crw-------", "sudo chgrp neuron /dev/neuron0"),
        ("neuron", "crw-------", "sudo chmod 660 /dev/neuron0"),
    ],
)
def test_a_node_that_may_not_be_opened_names_the_way_in(inf2: Any, group: str, mode: str, advice: str) -> None:
    node = dataclasses.replace(NODE, usable=False, group=group, mode=mode)
    found = inf2.trouble(devices=Devices((node,), (NeuronDevice(0, 2, 1 << 35, ()),)))
    assert (found.level, found.check) == ("fail", "devices")
    assert advice in found.advice


def test_more_cores_than_there_are(inf2_with: Callable[..., Any]) -> None:
    machine = inf2_with(tp_degree=8)
    found = next(found for found in machine.findings() if found.check == "cores")
    assert (found.level, found.text) == ("fail", "2 NeuronCores, the configuration wants 8")


def test_a_model_that_names_its_cores_wants_those_before_them_too(inf2_with: Callable[..., Any]) -> None:
    machine = inf2_with(tp_degree=1, cores="1", quant="s8")
    assert "2 wanted" in next(found.text for found in machine.findings() if found.check == "cores")


def test_without_neuron_ls_the_nodes_are_counted(inf2: Any) -> None:
    findings = inf2.findings(devices=Devices((NODE,)))
    assert "2 NeuronCores, 2 wanted" in next(found.text for found in findings if found.check == "cores")
    assert "open files in /proc" in next(found.text for found in findings if found.check == "cores free")


@pytest.mark.parametrize("devices", [holding(JUPYTER), Devices((NODE,), None, (JUPYTER,))], ids=["neuron-ls", "proc"])
def test_whoever_holds_the_cores_is_named(inf2: Any, devices: Devices) -> None:
    found = inf2.trouble(devices=devices)
    assert (found.level, found.check) == ("fail", "cores free")
    assert "process 4711 (python -m ipykernel_launcher)" in found.text
    assert "kill 4711" in found.advice


def test_cores_held_by_a_server_that_runs_are_no_failure(inf2: Any) -> None:
    found = inf2.trouble(devices=holding(WORKER))
    assert (found.level, found.check) == ("warn", "cores free")


def test_a_device_that_nobody_wants_may_be_busy_and_closed(laptop: Any) -> None:
    node = dataclasses.replace(NODE, usable=False)
    devices = Devices((node,), (NeuronDevice(0, 2, 1 << 35, (JUPYTER,)),))
    assert laptop.troubles(devices=devices) == [("warn", "devices"), ("warn", "cores free")]
