"""Status codes and log lines of the Neuron runtime, as its guides print them, and what each asks of the operator."""

from __future__ import annotations

import pytest

from models.neuron.status import diagnose, diagnose_log

TIMEOUT = """\
2023-Jan-09 20:27:41.0593 15042:15042 ERROR  TDRV:exec_consume_tpb_status_notifications   Missing infer_status \
notification: (end:3)
2023-Jan-09 20:27:41.0593 15042:15042 ERROR  TDRV:exec_consume_infer_status_notifications (FATAL-RT-UNDEFINED-STATE) \
inference timeout (600000 ms) on Neuron Device 0 NC 0, waiting for execution completion notification
2023-Jan-09 20:27:41.0600 15042:15042 ERROR  NMGR:dlr_infer                               Inference completed with \
err: 5
"""
BAD_MEMORY = """\
(FATAL-RT-UNDEFINED-STATE) encountered uncorrectable memory error on Neuron Device 0, execution results may be \
invalid.  Please terminate or start/stop this instance to recover from bad hardware.
"""
LEFT_RUNNING = """\
nd0 nc0 Timestamp program stop timeout (1000 ms)
nd0 nc0 Failed to stop neuron core
TDRV not initialized
Failed to initialize devices, error:5
"""
NO_DRIVER = (
    "2021-Aug-11 18:38:27.0917 13713:13713 ERROR   NRT:nrt_init      Unable to determine Neuron Driver version. "
    "Please check aws-neuron-dkms package is installed."
)
OLD_DRIVER = (
    "2021-Aug-11 19:18:21.0661 24616:24616 ERROR   NRT:nrt_init      This runtime requires Neuron Driver version 2.0 "
    "or greater. Please upgrade aws-neuron-dkms package."
)
BUSY = "ERROR   NRT:nrt_allocate_neuron_cores               NeuronCore(s) not available - Requested:nc1-nc1 Available:0"
NO_COLLECTIVES = "NCCL init error: Error opening libnccom.so, cannot use collective operations!"
TOO_LARGE = "Compilation failure: Estimated peak HBM usage (18.2 GB) exceeds 16GB"


@pytest.mark.parametrize(
    ("text", "kind", "remedy", "advice"),
    [
        (TIMEOUT, "device", "restart", "timeout"),
        (BAD_MEMORY, "device", "replace", "uncorrectable device memory error"),
        (TIMEOUT + BAD_MEMORY, "device", "replace", "uncorrectable device memory error"),
        ("Uncorrectable memory error is detected on Neuron device: 5:1 metadata: 0x2. Failing execution.", "device",
         "replace", "stop and start the instance"),
        (LEFT_RUNNING, "device", "reboot", "reload the driver"),
        ("HBM error: reload driver or reboot", "device", "reboot", "reload the driver"),
        (NO_DRIVER, "configuration", "configuration", "/dev/neuron0"),
        (OLD_DRIVER, "configuration", "configuration", "upgrade aws-neuronx-dkms"),
        ("No neuron device available", "configuration", "configuration", "modprobe neuron"),
        (BUSY, "device", "restart", "another process holds them"),
        (NO_COLLECTIVES, "configuration", "configuration", "aws-neuronx-collectives"),
        ("NEFF version mismatch supported: 1.1 received: 2.0", "configuration", "configuration", "compile again"),
        ('nrt_tensor_allocate status=4 message="Allocation Failure"', "memory", "configuration", "fewer slots"),
        (TOO_LARGE, "memory", "configuration", "fewer slots"),
        ("Compilation failure, neuronx-cc returned 70", "configuration", "configuration", "do not compile"),
        ("suspected hang in collectives operation 0 out of 32", "device", "restart", "collectives hang"),
    ],
)  # fmt: skip
def test_a_line_of_the_log_has_its_remedy(text: str, kind: str, remedy: str, advice: str) -> None:
    diagnosis = diagnose(text)
    assert diagnosis is not None
    assert (diagnosis.kind, diagnosis.remedy) == (kind, remedy)
    assert advice in diagnosis.advice


@pytest.mark.parametrize("spelling", ["nrt_execute status={}", "status = {}", "NRT status {}", "failed, err: {}"])
@pytest.mark.parametrize(
    ("code", "remedy"),
    [(1, "restart"), (4, "configuration"), (5, "restart"), (6, "replace"), (10, "configuration"), (101, "replace"),
     (1004, "restart"), (1006, "restart"), (1200, "restart"), (1201, "replace"), (1202, "replace"), (1203, "replace"),
     (1205, "reboot")],
)  # fmt: skip
def test_a_status_code_has_its_remedy(spelling: str, code: int, remedy: str) -> None:
    diagnosis = diagnose(spelling.format(code))
    assert diagnosis is not None
    assert diagnosis.remedy == remedy


@pytest.mark.parametrize("text", ["", "status=4242", "no code at all", "loaded 12 tensors"])
def test_what_nobody_foresaw_has_no_diagnosis(text: str) -> None:
    assert diagnose(text) is None


def test_a_single_bit_flip_that_the_runtime_survives_is_no_fault() -> None:
    survived = (
        "Uncorrectable memory error is detected on Neuron device: 5:1 metadata: 0x2. The error might cause incorrect "
        "computational results and might affect training convergence. Please terminate and restart from the last "
        "checkpoint if the convergence is impacted."
    )
    assert diagnose(survived) is None


def test_of_a_log_only_the_error_lines_count() -> None:
    peaceful = "2023-Jan-09 INFO  compilation finished with status=4\nneuronx-cc: Compiler status PASS\n"
    assert diagnose_log(peaceful) is None
    diagnosis = diagnose_log(peaceful + TIMEOUT)
    assert diagnosis is not None
    assert (diagnosis.kind, diagnosis.remedy) == ("device", "restart")
    diagnosis = diagnose_log(TIMEOUT + peaceful + BAD_MEMORY)
    assert diagnosis is not None
    assert diagnosis.remedy == "replace"
