"""The Neuron backend on the real transformers-neuronx, which the emulator runs on this machine's processor."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

TESTS = ["tests/models/test_backend_contract.py", "tests/models/neuron"]
ITSELF = "tests/models/neuron/test_emulator.py"
SERVERS = "tests/models/neuron/test_http.py"


@pytest.mark.long
def test_the_real_library_passes_what_the_fake_passes(emulated_worker: Any, request: pytest.FixtureRequest) -> None:
    """In the emulator's interpreter: the contract of backends, that of the library, and the numbers.

    That interpreter has no packages of the server, so what starts one is not for it.
    """
    environment = {**os.environ, **emulated_worker.environment}
    del environment["NEURON_TEST_PYTHON"]
    run = subprocess.run(
        [str(emulated_worker.python), "-m", "pytest", "-q", "--deselect", ITSELF, "--ignore", SERVERS, *TESTS],
        cwd=request.config.rootpath,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
