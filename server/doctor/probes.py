"""Reads the system for the checks: files, /proc, and the tools that the Neuron packages bring. Changes nothing.

What cannot be read is captured as unknown; a probe never fails the examination.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from models.neuron.artifacts import ArtifactError, artifacts_in, read_manifest, store_of
from models.protocol import NeuronOptions
from server.doctor import checkpoint_files, interpreter, outputs
from server.doctor.capture import (
    Capture,
    Checkpoint,
    DeviceNode,
    Devices,
    DiskRead,
    Driver,
    Instance,
    Memory,
    Port,
    Process,
    Store,
)
from server.doctor.packages import interpreters_wanted
from server.doctor.releases import COLLECTIVES, DRIVER, RUNTIME
from server.settings import ModelSettings, Settings

_TOOLS = "/opt/aws/neuron/bin"
_TOOL_TIMEOUT_S = 20.0
_DISK_BYTES = 256 * 1024 * 1024
_DISK_SECONDS = 2.0
_PIECE = 4 * 1024 * 1024
_DMI = Path("/sys/devices/virtual/dmi/id")
_LOADED_DRIVER = Path("/sys/module/neuron/version")


def read_system(settings: Settings, environment: Mapping[str, str]) -> Capture:
    """Everything the checks ask for; takes seconds, most of them in the worker's interpreter and on the disk."""
    checkpoints = {model.id: checkpoint_files.look_at(model.path) for model in settings.models}
    wanted = interpreters_wanted(settings)
    neuron = NeuronOptions.__struct_config__.tag
    return Capture(
        devices=_devices(),
        driver=Driver(outputs.module_version(_output("modinfo", "neuron")), _text(_LOADED_DRIVER).strip()),
        system_packages=_system_packages(),
        interpreters={name: interpreter.ask(name, for_neuron=neuron in kinds) for name, kinds in wanted.items()},
        environment=environment,
        memory=Memory(*outputs.memory(_text(Path("/proc/meminfo")))),
        disk=_read_disk(checkpoints),
        port=_port(settings.server.host, settings.server.port),
        instance=_instance(environment),
        checkpoints=checkpoints,
        stores={model.id: _store(model) for model in settings.models},
    )


def _devices() -> Devices:
    nodes = tuple(_node(path) for path in sorted(Path("/dev").glob("neuron[0-9]*")))
    if not nodes:
        return Devices()
    listed = outputs.neuron_ls(_output("neuron-ls", "--json-output"))
    return Devices(nodes, listed, tuple(_holders({node.path for node in nodes})))


def _node(path: Path) -> DeviceNode:
    found = path.stat()
    return DeviceNode(
        str(path),
        _user(found.st_uid),
        _group(found.st_gid),
        stat.filemode(found.st_mode),
        os.access(path, os.R_OK | os.W_OK),
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _system_packages() -> dict[str, str]:
    names = (DRIVER, RUNTIME, COLLECTIVES)
    if shutil.which("dpkg-query"):
        return outputs.package_versions(_output("dpkg-query", "-W", "-f", "${Package} ${Version}\n", *names))
    return outputs.package_versions(_output("rpm", "-q", "--queryformat", "%{NAME} %{VERSION}\n", *names))


def _read_disk(checkpoints: Mapping[str, Checkpoint]) -> DiskRead | None:
    """Read the beginning of the largest weights file, at most 256 MiB and two seconds, past the page cache as far as
    the kernel lets it go: what is mapped by a running worker stays there and counts as fast."""
    files = [file for each in checkpoints.values() for file in Path(each.path).glob("*.safetensors")]
    if not files:
        return None
    largest = max(files, key=lambda file: file.stat().st_size)
    with largest.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, _DISK_BYTES, os.POSIX_FADV_DONTNEED)
        began, size = time.perf_counter(), 0
        while size < _DISK_BYTES and time.perf_counter() - began < _DISK_SECONDS:
            piece = stream.read(_PIECE)
            if not piece:
                break
            size += len(piece)
        return DiskRead(str(largest), size, time.perf_counter() - began)


def _port(host: str, port: int) -> Port:
    if port == 0:
        return Port()
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        inodes = {
            inode
            for table in ("tcp", "tcp6")
            for inode in outputs.listening_inodes(_text(Path("/proc/net") / table), port)
        }
        return Port(error.strerror or str(error), next(_holders({f"socket:[{inode}]" for inode in inodes}), None))
    return Port()


def _instance(environment: Mapping[str, str]) -> Instance:
    """EC2's Nitro instances name their type as the product; the region is known from the user's own settings."""
    vendor = _text(_DMI / "sys_vendor").strip()
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or ""
    return Instance(vendor, _text(_DMI / "product_name").strip() if vendor == "Amazon EC2" else "", region)


def _store(model: ModelSettings) -> Store:
    if not isinstance(model.device, NeuronOptions):
        return Store("")
    store, manifests, broken = store_of(model.device), [], []
    for directory in artifacts_in(store):
        try:
            manifests.append((directory.name, read_manifest(directory)))
        except ArtifactError as error:
            broken.append(str(error))
    return Store(str(store), tuple(manifests), tuple(broken))


def _holders(targets: set[str]) -> Iterator[Process]:
    """Processes with one of these open; those of other users show only to root."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) in targets for link in (directory / "fd").iterdir()):
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                yield Process(int(directory.name), command)
        except OSError:
            continue  # it is gone by now, or another user's


def _output(*command: str) -> str:
    """What a tool prints; "" when it is not there, fails or takes long."""
    program = shutil.which(command[0]) or shutil.which(command[0], path=_TOOLS)
    if program is None:
        return ""
    try:
        run = subprocess.run(
            [program, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
