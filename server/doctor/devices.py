"""The Neuron devices: whether they are there, may be used, suffice, and are free. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from models.planner.hardware import CORES_PER_CHIP
from models.protocol import NeuronOptions
from server.doctor.capture import DeviceNode, Devices, Process
from server.doctor.finding import Finding, fail, ok, warn
from server.settings import Settings

# How our own workers appear in a list of processes.
_WORKER = "models/__main__.py"


def check_devices(settings: Settings, devices: Devices) -> Iterator[Finding]:
    """Findings on /dev/neuron*, the number of cores and their holders."""
    wanted = cores_wanted(settings)
    if not devices.nodes:
        yield _absent(wanted)
        return
    yield _nodes(devices.nodes, wanted)
    cores = _cores(devices)
    if wanted > cores:
        yield fail(
            "cores",
            f"{cores} NeuronCores, the configuration wants {wanted}",
            f"set tp_degree to at most {cores}, or take a larger instance",
        )
    else:
        yield ok("cores", f"{cores} NeuronCores, {wanted} wanted by the configuration")
    yield _holders(devices, wanted)


def cores_wanted(settings: Settings) -> int:
    """NeuronCores of the largest model, or up to the last one that a model names; 0 when none runs on Neuron."""
    wanted = 0
    for model in settings.models:
        if isinstance(model.device, NeuronOptions):
            last = model.device.cores.rpartition("-")[2]
            wanted = max(wanted, int(last) + 1 if last.isdigit() else model.device.tp_degree)
    return wanted


def _absent(wanted: int) -> Finding:
    if not wanted:
        return ok("devices", "no Neuron device, and the configuration needs none")
    return fail(
        "devices",
        f"no /dev/neuron*, the configuration wants {wanted} NeuronCores",
        "on an inf2 instance: install aws-neuronx-dkms and load it (sudo modprobe neuron; lsmod | grep neuron); in a "
        "container: --device=/dev/neuron0; anywhere else: serve configs/cpu.toml",
    )


def _nodes(nodes: tuple[DeviceNode, ...], wanted: int) -> Finding:
    closed = [node for node in nodes if not node.usable]
    described = ", ".join(f"{node.path} ({node.mode} {node.owner}:{node.group})" for node in nodes)
    if not closed:
        return ok("devices", described)
    node = closed[0]
    if not wanted:
        return warn("devices", f"{described}: not usable by this user", "nothing, while the configuration needs none")
    advice = f"sudo usermod -aG {node.group} $USER, then log in again"
    if node.group == "root" or not node.mode.startswith("crw-rw"):
        advice = (
            f"sudo chgrp neuron {node.path} && sudo chmod 660 {node.path} (a udev rule keeps it so), and join the group"
        )
    return fail("devices", f"{described}: this user may not read and write {node.path}", advice)


def _cores(devices: Devices) -> int:
    if devices.listed is not None:
        return sum(device.cores for device in devices.listed)
    return CORES_PER_CHIP * len(devices.nodes)


def _holders(devices: Devices, wanted: int) -> Finding:
    """neuron-ls names processes that the runtime serves; the open files of /proc, those of this user at least."""
    listed = {process.pid: process for device in devices.listed or () for process in device.processes}
    holders = tuple((listed or {process.pid: process for process in devices.holders}).values())
    source = "neuron-ls" if devices.listed is not None else "open files in /proc; of other users only as root"
    if not holders:
        return ok("cores free", f"nobody holds a core ({source})")
    named = "; ".join(_named(process) for process in holders)
    ours = all(_WORKER in process.command for process in holders)
    if ours or not wanted:
        return warn(
            "cores free",
            f"held by {named}",
            "a neuronx-serve that already runs: a second one needs cores of its own" if ours else "nothing",
        )
    return fail("cores free", f"held by {named}", f"end it (kill {holders[0].pid}): a core belongs to one process")


def _named(process: Process) -> str:
    return f"process {process.pid} ({process.command})"
