"""Every exception of the library and its runtime becomes one BackendError that says what to do."""

from __future__ import annotations

import pytest

from models.backend import BackendError, ConfigurationError, DeviceError, OutOfMemoryError, StepError
from models.neuron.faults import load_error, runtime_error

OUT_OF_MEMORY = 'nrt_tensor_allocate status=4 message="Allocation Failure"'
CORES_BUSY = "NRT:nrt_allocate_neuron_cores NeuronCore(s) not available - Requested:2 Available:0"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (RuntimeError(OUT_OF_MEMORY), OutOfMemoryError, "fewer slots"),
        (RuntimeError("nrt_load_collectives status=4"), OutOfMemoryError, "fewer slots"),
        (MemoryError(), OutOfMemoryError, "fewer slots"),
        (RuntimeError("nrt_init: No neuron device available"), ConfigurationError, "modprobe neuron"),
        (RuntimeError("nrt_load status=1201"), DeviceError, "replace it"),
        (RuntimeError(CORES_BUSY), DeviceError, "Requested:2 Available:0"),
        (RuntimeError("nrt_load status=10"), ConfigurationError, "compile again"),
        (RuntimeError("Compilation failure, neuronx-cc returned 70"), ConfigurationError, "do not compile"),
        (OSError("disk gone"), DeviceError, "OSError: disk gone"),
        (FileNotFoundError("Could not find a matching NEFF for your HLO"), ConfigurationError, "do not fit"),
        (AssertionError("unmatched batch_sizes"), ConfigurationError, "AssertionError: unmatched batch_sizes"),
        (ValueError("Only default and llama3"), ConfigurationError, "ValueError: Only default and llama3"),
    ],
)
def test_a_failed_load_says_whether_a_retry_makes_sense(error: Exception, kind: type[BackendError], text: str) -> None:
    named = load_error(error)
    assert type(named) is kind
    assert text in str(named)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            RuntimeError("nrt_execute status=5"),
            DeviceError,
            "(timeout: if it repeats while loading, set NEURON_RT_EXEC_TIMEOUT",
        ),
        (RuntimeError("nrt_execute status = 1006"), DeviceError, "(out of bounds"),
        (RuntimeError("nrt_execute status: 1201"), DeviceError, "(uncorrectable device memory error"),
        (RuntimeError("no code at all"), DeviceError, "RuntimeError: no code at all"),
        (RuntimeError("status=4242"), DeviceError, "RuntimeError: status=4242"),
        (StopIteration(), DeviceError, "StopIteration"),
        (AssertionError("invalid"), DeviceError, "AssertionError: invalid"),
        (RuntimeError(OUT_OF_MEMORY), OutOfMemoryError, "fewer slots"),
    ],
)
def test_a_failed_step_ends_the_worker_with_the_codes_meaning(
    error: Exception, kind: type[BackendError], text: str
) -> None:
    named = runtime_error(error)
    assert type(named) is kind
    assert text in str(named)


@pytest.mark.parametrize(
    ("text", "at_load", "in_a_step"),
    [
        ("status=5", "restart", "restart"),
        (CORES_BUSY, "restart", "restart"),
        ("no code at all", "restart", "restart"),
        (OUT_OF_MEMORY, "configuration", "restart"),
        ("status=2", "configuration", "restart"),
        ("status=1205", "reboot", "reboot"),
        ("status=1201", "replace", "replace"),
    ],
)
def test_the_remedy_depends_on_whether_the_programs_have_run_before(text: str, at_load: str, in_a_step: str) -> None:
    assert load_error(RuntimeError(text)).remedy == at_load
    assert runtime_error(RuntimeError(text)).remedy == in_a_step


@pytest.mark.parametrize("name", [load_error, runtime_error])
def test_an_error_that_has_its_name_keeps_it(name: object) -> None:
    assert callable(name)
    error = StepError("slot 9 does not exist")
    assert name(error) is error
