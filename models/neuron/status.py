"""What the Neuron runtime's status codes and log lines mean, and what helps. Pure: text in, a diagnosis out.

Sources: the runtime's NRT_STATUS enumeration and troubleshooting guide. The texts of errors that reach Python are not
documented: one that nobody foresaw has no diagnosis, and the caller treats it as a fault that a restart may cure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from models.protocol import Remedy


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`advice` is for the operator: what happened, then what to do."""

    kind: Literal["configuration", "memory", "device"]
    remedy: Remedy
    advice: str


def _restart(what: str, then: str = "if it repeats, stop and start the instance, or replace it") -> Diagnosis:
    return Diagnosis("device", "restart", f"{what}: {then}")


def _reboot(what: str) -> Diagnosis:
    return Diagnosis(
        "device", "reboot", f"{what}: reload the driver (sudo rmmod neuron; sudo modprobe neuron) or reboot"
    )


def _replace(what: str) -> Diagnosis:
    return Diagnosis("device", "replace", f"{what}: stop and start the instance, or replace it")


def _memory(what: str, then: str) -> Diagnosis:
    return Diagnosis("memory", "configuration", f"{what}: {then}")


def _configuration(what: str, then: str) -> Diagnosis:
    return Diagnosis("configuration", "configuration", f"{what}: {then}")


_COMPILE_AGAIN = "compile again with the versions that serve (neuronx-serve doctor compares them)"
_HELD = "another process holds them, and neuronx-serve doctor names it"
_USE_LESS = 'use fewer slots, positions or buckets, or quant = "s8" (neuronx-serve plan counts)'

_CODES = {
    1: _restart("unspecific failure"),
    2: _configuration("invalid NEFF or tensor", _COMPILE_AGAIN),
    3: _restart("invalid handle"),
    4: _memory("an allocation failed", _USE_LESS),
    5: _restart(
        "timeout",
        "if it repeats while loading, set NEURON_RT_EXEC_TIMEOUT to more seconds; else stop and start the instance, or "
        "replace it",
    ),
    6: _replace("hardware error"),
    7: _restart("the queue of executions is full"),
    9: _restart("not enough free NeuronCores", _HELD),
    10: _configuration("this runtime does not know the NEFF's version", _COMPILE_AGAIN),
    11: _memory("the host has too little memory", "use an instance with more"),
    13: _restart("the runtime is not initialised"),
    14: _restart("the runtime is closed"),
    101: _replace("a core's execution unit is stuck for good"),
    1002: _restart("the compiled program refused its input"),
    1003: _restart("the device computed a NaN"),
    1004: _restart("the execution completed with errors"),
    1005: _restart("the NeuronCore is busy", _HELD),
    1006: _restart("out of bounds", "a slot, position or token that the compiled program has no room for"),
    1200: _restart("the cores' collectives hang"),
    1201: _replace("uncorrectable device memory error"),
    1202: _replace("NeuronCore memory parity error"),
    1203: _replace("DMA aborted"),
    1204: _restart("the queue of notifications overflowed"),
    1205: _reboot("repairable device memory error"),
    1206: _restart("the network proxy of the collectives failed"),
}

# The gravest first: one text may hold several lines of the log.
_LINES = (
    (r"(?:stop/start|start/stop) this instance", _CODES[1201]),
    (r"uncorrectable memory error is detected.*failing execution", _CODES[1201]),
    (r"reload (?:the )?driver or reboot", _CODES[1205]),
    (
        r"failed to stop neuron core|failed to initialize devices",
        _reboot("an earlier program left the device running"),
    ),
    (
        r"not compatible with the installed aws-neuron|requires neuron driver version",
        _configuration(
            "the driver is older than the runtime needs",
            "upgrade aws-neuronx-dkms, then reload it (sudo rmmod neuron; sudo modprobe neuron)",
        ),
    ),
    (
        r"no neuron device available|unable to determine neuron driver version|could not open the nd\d",
        _configuration(
            "there is no such Neuron device here",
            "an inf2 instance with the driver loaded (sudo modprobe neuron) has /dev/neuron0, "
            "a container needs --device=/dev/neuron0",
        ),
    ),
    (r"libnccom\.so", _configuration("collectives are missing", "install the package aws-neuronx-collectives")),
    (r"neuroncore\(s\) not available", _CODES[9]),
    (r"neff version mismatch|unsupported hardware operator code", _CODES[10]),
    (r"allocation fail|failed to allocate|out of memory|estimated peak hbm usage", _CODES[4]),
    (
        r"compilation|neuronx-cc",
        _configuration("the model's programs do not compile", "the compiler's own words say which option it refuses"),
    ),
    (r"suspected hang in collectives", _CODES[1200]),
    (r"(?:execution|inference) timeout", _CODES[5]),
)
_PATTERNS = tuple((re.compile(line, re.IGNORECASE | re.DOTALL), diagnosis) for line, diagnosis in _LINES)
_ERROR_LINE = re.compile(r"\bERROR\b|\bFATAL\b")
_STATUS = re.compile(r"(?:status|\berr(?:or)?)(?:[ _]code)?\s*[=:]?\s*(\d+)", re.IGNORECASE)


def diagnose(text: str) -> Diagnosis | None:
    """The meaning of an error's text; None when it says nothing known.

    "(FATAL-RT-UNDEFINED-STATE)" decides nothing by itself: the runtime writes it for a mere timeout too.
    """
    for pattern, diagnosis in _PATTERNS:
        if pattern.search(text):
            return diagnosis
    return next((_CODES[code] for code in map(int, _STATUS.findall(text)) if code in _CODES), None)


def diagnose_log(log: str) -> Diagnosis | None:
    """The gravest meaning of the error lines in a worker's log; its other lines name the same words in peace."""
    return diagnose("\n".join(line for line in log.splitlines() if _ERROR_LINE.search(line)))
