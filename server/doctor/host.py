"""The machine around the device: memory, disk, port, instance. Pure; the arithmetic of a fit is the planner's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from models.planner import refusal
from models.planner.fit import gib
from models.planner.hardware import INSTANCES
from models.planner.timing import load
from models.protocol import NeuronOptions
from server.doctor.capture import Checkpoint, DiskRead, Instance, Memory, Port
from server.doctor.devices import cores_wanted
from server.doctor.finding import Finding, fail, ok, warn
from server.settings import Settings

_MB = 1e6
# A gp3 volume as it is created gives 125 MB/s.
_SLOW_BYTES_PER_S = 100e6
# AWS counts the on-demand Inf quota in vCPUs, and a new account has none.
_QUOTA = (
    'the quota "Running On-Demand Inf instances" (L-1945791B) counts vCPUs (4 for inf2.xlarge, 32 for inf2.8xlarge; a '
    "new account has 0): aws service-quotas get-service-quota --service-code ec2 --quota-code L-1945791B"
)
_REGIONS = (
    "inf2 instances are in us-east-1 and us-west-2, and in some others: `aws ec2 describe-instance-type-offerings`"
)


def check_memory(settings: Settings, checkpoints: Mapping[str, Checkpoint], memory: Memory) -> Iterator[Finding]:
    """Whether each model fits its cores and the host's memory, by the planner."""
    yield ok("memory", f"{gib(memory.available)} of {gib(memory.total)} GiB available")
    for model in settings.models:
        spec = checkpoints[model.id].spec
        if spec is None:
            continue
        never = refusal(spec, model.device, memory.total)
        now = refusal(spec, model.device, memory.available)
        if never:
            yield fail("fit", f"{model.id}: {never}", "change the configuration; neuronx-serve plan shows the numbers")
        elif now:
            yield warn("fit", f"{model.id}: {now}", "end what else runs; a neuronx-serve that runs counts too")
        else:
            yield ok("fit", f"{model.id} fits")


def check_disk(settings: Settings, checkpoints: Mapping[str, Checkpoint], disk: DiskRead | None) -> Iterator[Finding]:
    """The rate at which a checkpoint can be read, and what that makes of a load."""
    if disk is None or disk.seconds <= 0 or not disk.size:
        yield ok("disk", "not measured: there is no checkpoint to read")
        return
    rate = disk.size / disk.seconds
    text = f"{rate / _MB:.0f} MB/s over {disk.size / _MB:.0f} MB of {disk.path}"
    slow = [f"{name} {seconds:.0f} s" for name, seconds in _loads(settings, checkpoints, rate)]
    if slow:
        text += f"; a load takes at least: {', '.join(slow)}"
    if cores_wanted(settings) and rate < _SLOW_BYTES_PER_S:
        yield warn("disk", text, "give the volume more throughput (gp3: up to 1000 MB/s): it bounds every exchange")
    else:
        yield ok("disk", text)


def check_port(settings: Settings, port: Port) -> Iterator[Finding]:
    """Whether the server could listen."""
    where = f"{settings.server.host}:{settings.server.port}"
    if not port.error:
        yield ok("port", f"{where} is free")
    elif port.holder is None:
        yield fail("port", f"{where}: {port.error}", "give another one: --port, or server.port")
    elif "neuronx-serve" in port.holder.command or "server.cli" in port.holder.command:
        yield warn(
            "port", f"{where} is taken by neuronx-serve (process {port.holder.pid})", "nothing, if it is meant to run"
        )
    else:
        yield fail(
            "port",
            f"{where} is taken by process {port.holder.pid} ({port.holder.command})",
            "end it, or give another port: --port, or server.port",
        )


def check_instance(settings: Settings, instance: Instance) -> Iterator[Finding]:
    """Whether this is the machine that the configuration is for; where to get one."""
    wanted = cores_wanted(settings)
    if not wanted:
        return
    name = instance.type or "a machine that does not say what it is"
    where = f" in {instance.region}" if instance.region else ""
    known = next((each for each in INSTANCES if each.name == instance.type), None)
    if known is None:
        kind = "no Inferentia2 instance" if instance.type else "no instance of EC2 as far as it says"
        yield warn("instance", f"{name}{where}: {kind}", f"{_REGIONS}; {_QUOTA}")
    elif known.cores < wanted:
        yield warn("instance", f"{name}{where} has {known.cores} NeuronCores, {wanted} are wanted", _QUOTA)
    else:
        yield ok("instance", f"{name}{where}: {known.cores} NeuronCores, {gib(known.host_bytes)} GiB")


def _loads(settings: Settings, checkpoints: Mapping[str, Checkpoint], rate: float) -> Iterator[tuple[str, float]]:
    for model in settings.models:
        spec = checkpoints[model.id].spec
        if isinstance(model.device, NeuronOptions) and spec is not None:
            yield model.id, load(spec, rate).optimistic
