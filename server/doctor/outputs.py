"""Reads what the system's tools and files print. Pure: text in, captured values out.

neuron-ls's JSON is as published for SDK 2.19 to 2.26 (2.34 renames it); the versions of packages as dpkg-query and rpm
print them. What a future tool prints otherwise counts as not readable, never as an error.
"""

from __future__ import annotations

import msgspec

from server.doctor.capture import NeuronDevice, Process

_LISTEN = "0A"


class _Process(msgspec.Struct, frozen=True):
    pid: int
    command: str = "?"


class _Device(msgspec.Struct, frozen=True):
    neuron_device: int
    nc_count: int
    memory_size: int = 0
    neuron_processes: tuple[_Process, ...] | None = None


def neuron_ls(text: str) -> tuple[NeuronDevice, ...] | None:
    """`neuron-ls --json-output`; None when it is not that."""
    try:
        devices = msgspec.json.decode(text, type=tuple[_Device, ...])
    except msgspec.DecodeError:
        return None
    return tuple(
        NeuronDevice(
            device.neuron_device,
            device.nc_count,
            device.memory_size,
            tuple(Process(process.pid, process.command) for process in device.neuron_processes or ()),
        )
        for device in devices
    )


def package_versions(text: str) -> dict[str, str]:
    """ "NAME VERSION" lines, as `dpkg-query -W -f '${Package} ${Version}\\n'` or rpm's --queryformat print them; a
    package that was removed has no version."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def module_version(text: str) -> str:
    """The version of `modinfo neuron`; "" when it has none."""
    return next((line.split()[1] for line in text.splitlines() if line.startswith("version:") and line.split()[1:]), "")


def memory(text: str) -> tuple[int, int]:
    """(total, available) bytes of /proc/meminfo."""
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in text.splitlines())}
    return sizes["MemTotal"], sizes["MemAvailable"]


def listening_inodes(text: str, port: int) -> set[str]:
    """Inodes of the sockets that listen on `port`, of /proc/net/tcp or tcp6."""
    found = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
            found.add(fields[9])
    return found
