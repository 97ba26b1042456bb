"""What is known of Inferentia2 and the instances that carry it: constants, each with its source. No arithmetic.

AWS publishes the chip's numbers and the prices; everything that this project has not seen on a device says so.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1024**3
MIB = 1024**2

# One Inferentia2 chip: 32 GiB, 820 GB/s and 190 TFLOPS in bfloat16, shared evenly by two NeuronCores (AWS, Inf2
# architecture page). A core's runtime reports 15.97 of its 16 GiB.
CORES_PER_CHIP = 2
CORE_BYTES = int(15.97 * GIB)
CORE_BYTES_PER_S = 820e9 / CORES_PER_CHIP
CORE_FLOPS = 190e12 / CORES_PER_CHIP

# Weights and KV cache a core at which a configuration counts as tight. Where the line is, only a device can tell: no
# one has published an 8B model at this batch on two cores.
TIGHT_BYTES = 11 * GIB

DISK_BYTES_PER_S = 125e6  # a gp3 volume as it is created; up to 1000e6 when provisioned


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance type; `dollars_per_hour` is the on-demand price in us-east-1."""

    name: str
    cores: int
    host_bytes: int
    dollars_per_hour: float

    @property
    def host_free_bytes(self) -> int:
        """What the system and the API process leave of the host's memory."""
        return self.host_bytes - 2 * GIB


INSTANCES = (
    Instance("inf2.xlarge", 2, 16 * GIB, 0.7582),
    Instance("inf2.8xlarge", 2, 128 * GIB, 1.9679),
    Instance("inf2.24xlarge", 12, 384 * GIB, 6.4906),
    Instance("inf2.48xlarge", 24, 768 * GIB, 12.9813),
)


def smallest_instance(cores: int) -> Instance:
    """The cheapest instance with `cores` NeuronCores; ValueError when there is none."""
    for instance in INSTANCES:
        if instance.cores >= cores:
            return instance
    raise ValueError(f"no Inferentia2 instance has {cores} NeuronCores; the largest has {INSTANCES[-1].cores}")
