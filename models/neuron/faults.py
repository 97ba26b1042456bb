"""Names what went wrong in transformers-neuronx or the Neuron runtime, and says what to do about it.

The runtime reports as RuntimeError with a status code in its text; the texts differ between releases, so the code only
adds advice and the type of the exception decides where there is none. Knows no device.
"""

from __future__ import annotations

from models.backend import BackendError, ConfigurationError, DeviceError, OutOfMemoryError
from models.neuron.status import diagnose

_NO_MATCHING_ARTIFACT = "Could not find a matching NEFF"


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
    if not isinstance(error, RuntimeError | OSError | MemoryError):
        return ConfigurationError(f"transformers-neuronx cannot build this model: {_text(error)}")
    diagnosis = diagnose(str(error))
    if diagnosis is not None and diagnosis.kind == "configuration":
        return ConfigurationError(f"{_text(error)} ({diagnosis.advice})")
    if diagnosis is not None and diagnosis.kind == "memory":
        return OutOfMemoryError(f"{_text(error)} ({diagnosis.advice})", diagnosis.remedy)
    return runtime_error(error)


def runtime_error(error: Exception) -> BackendError:
    """What went wrong in a step: nothing that the device holds can be trusted any more.

    The programs and their memory passed the warm-up, so it is no matter of the configuration: what is not the
    machine's fault is worth another worker.
    """
    if isinstance(error, BackendError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemoryError(
            f"{_text(error)} (the host has too little memory: use fewer slots or a larger instance)"
        )
    diagnosis = diagnose(str(error))
    if diagnosis is None:
        return DeviceError(_text(error))
    text = f"{_text(error)} ({diagnosis.advice})"
    if diagnosis.kind == "memory":
        return OutOfMemoryError(text)
    return DeviceError(text, diagnosis.remedy if diagnosis.remedy in ("reboot", "replace") else "restart")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
