"""Which versions belong together: the releases of the Neuron SDK that contain transformers-neuronx 0.13. Pure.

From the SDK's release manifest. The library's end of support came with 2.26, so no row will be added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PLACEHOLDERS = {
    "transformers-neuronx": ("0.1",),
    "torch-neuronx": ("1.0",),
    "neuronx-cc": ("1.0", "1.0.post1"),
    "libneuronxla": ("1.0",),
}
DRIVER, RUNTIME, COLLECTIVES = "aws-neuronx-dkms", "aws-neuronx-runtime-lib", "aws-neuronx-collectives"


@dataclass(frozen=True, slots=True)
class Release:
    """One release: the beginnings of its packages' versions, by package. torch-neuronx has one version for each torch,
    so only what follows torch's own version decides."""

    name: str
    versions: dict[str, tuple[str, ...]]


def _release(
    name: str, tnx: str, compiler: tuple[str, ...], torch: str, xla: str, runtime: str, collectives: str, driver: str
) -> Release:
    return Release(
        name,
        {
            "transformers-neuronx": (tnx,),
            "neuronx-cc": compiler,
            "torch-neuronx": (torch,),
            "libneuronxla": (xla,),
            RUNTIME: (runtime,),
            COLLECTIVES: (collectives,),
            DRIVER: (driver,),
        },
    )


# Oldest first.
RELEASES = (
    _release("2.21.0", "0.13.322", ("2.16.345.0",), "2.4.0", "2.1.681.0", "2.23.110", "2.23.133", "2.19.64"),
    _release("2.21.1", "0.13.380", ("2.16.372.0",), "2.4.0", "2.1.714.0", "2.23.112", "2.23.135", "2.19.64"),
    _release("2.22.0", "0.13.470", ("2.17.194.0",), "2.6.0", "2.2.1630.0", "2.24.53", "2.24.59", "2.20.28"),
    _release("2.23.0", "0.13.798", ("2.18.121.0",), "2.7.5413", "2.2.3493.0", "2.25.57", "2.25.65", "2.21.37"),
    _release("2.24", "0.13.985", ("2.19.8089.0",), "2.8.6734", "2.2.4410.0", "2.26.42", "2.26.43", "2.22.2"),
    _release("2.25.0", "0.13.1216", ("2.20.9961.0",), "2.9.9357", "2.2.8201.0", "2.27.23", "2.27.34", "2.23.9"),
    _release(
        "2.26", "0.13.1315", ("2.21.18209", "2.21.33363"), "2.10", "2.2.12677.0", "2.28.23", "2.28.27", "2.24.7"
    ),
)  # fmt: skip
RECOMMENDED = RELEASES[1]


def releases_of(package: str, version: str) -> tuple[Release, ...]:
    """The releases that contain this version of the package; none when it is of another age."""
    if package == "torch-neuronx":  # 2.5.1.2.4.0 is 2.4.0 for torch 2.5.1
        version = ".".join(version.split("+")[0].split(".")[3:])
    return tuple(
        release for release in RELEASES if any(_begins(version, wanted) for wanted in release.versions[package])
    )


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparison: "2.19.64.0-9b5" is (2, 19, 64, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _begins(version: str, wanted: str) -> bool:
    first = numbers(wanted)
    return numbers(version)[: len(first)] == first
