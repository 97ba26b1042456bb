"""Names what the Neuron library and runtime raise: every exception becomes one BackendError with what to do.

The runtime's status codes are those of AWS's runtime developer guide. Only the kind and the advice come from a
message's text: that a call failed at all is decided by the exception alone, since its wording is not documented.
"""

from __future__ import annotations

import re

from models.backend import BackendError, ConfigurationError, DeviceError, OutOfMemoryError

NRT_RESOURCE = 4

_STATUS = re.compile(r"status\s*[=:]?\s*(\d+)")
_ALLOCATION = re.compile(r"allocation fail|failed to allocate|out of memory", re.IGNORECASE)
_COMPILATION = re.compile(r"compilation|neuronx-cc", re.IGNORECASE)
_NO_MATCHING_ARTIFACT = "Could not find a matching NEFF"

_REPLACE = "stop and start the instance, or replace it"
_ADVICE = {
    2: "invalid NEFF or tensor: compile again with the versions that serve",
    5: "timeout: if it repeats, " + _REPLACE,
    6: "hardware error: " + _REPLACE,
    9: "not enough free NeuronCores: another process holds them",
    10: "this runtime does not know the NEFF's version: compile again with the versions that serve",
    1003: "the device computed a NaN",
    1005: "the NeuronCore is busy: another process holds it",
    1006: "out of bounds: a slot, position or token that the compiled program has no room for",
    1200: "the cores' collectives hang: if it repeats, " + _REPLACE,
    1201: "uncorrectable device memory error: " + _REPLACE,
    1202: "NeuronCore memory parity error: " + _REPLACE,
    1203: "DMA aborted: " + _REPLACE,
    1205: "repairable device memory error: reload the driver or reboot",
}


def load_error(error: Exception) -> BackendError:
    """What went wrong between `from_pretrained` and the end of `to_neuron`.

    Errors of Python's own (AssertionError, ValueError, TypeError ...) come from building the programs: the same
    options fail again. RuntimeError and OSError come from the runtime or the machine.
    """
    if isinstance(error, BackendError):
        return error
    if isinstance(error, FileNotFoundError) and _NO_MATCHING_ARTIFACT in str(error):
        return ConfigurationError(
            "the compiled artifacts do not fit this model: its shapes, slots, buckets, tp_degree, dtype and the "
            "library's version must be those they were compiled with"
        )
    if isinstance(error, RuntimeError | OSError | MemoryError):
        if _COMPILATION.search(str(error)):
            return ConfigurationError(f"the model's programs do not compile: {_text(error)}")
        return runtime_error(error)
    return ConfigurationError(f"transformers-neuronx cannot build this model: {_text(error)}")


def runtime_error(error: Exception) -> BackendError:
    """What went wrong in a step: nothing that the device holds can be trusted any more."""
    if isinstance(error, BackendError):
        return error
    status = _STATUS.search(str(error))
    code = int(status[1]) if status else None
    if isinstance(error, MemoryError) or code == NRT_RESOURCE or _ALLOCATION.search(str(error)):
        return OutOfMemoryError(f"an allocation failed, use fewer slots, positions or buckets: {_text(error)}")
    advice = f" ({_ADVICE[code]})" if code in _ADVICE else ""
    return DeviceError(f"{_text(error)}{advice}")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
