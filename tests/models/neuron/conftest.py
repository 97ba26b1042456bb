"""The Neuron driver on the real library, on a thin fake of it, or on each in turn; and workers on either."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

# As many as the largest inf2 has; read when the emulator is imported.
os.environ.setdefault("NEURON_EMULATOR_CORES", "24")

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1]
FAKE = HERE / "fake"


@dataclass(frozen=True, slots=True)
class WorkerInterpreter:
    """What `worker.python` is set to, and the environment that the worker must inherit."""

    python: Path
    environment: Mapping[str, str]


@pytest.fixture(autouse=True)
def own_runtime_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver sets these for its process; a test must not leave them behind."""
    for name in (
        "NEURON_RT_NUM_CORES",
        "NEURON_RT_VISIBLE_CORES",
        "NEURON_RT_EXEC_TIMEOUT",
        "NEURON_COMPILE_CACHE_URL",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def graph_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests keep compiled graphs: what one has compiled, the others find."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(autouse=True)
def own_model_cache(monkeypatch: pytest.MonkeyPatch, graph_store: Path) -> None:
    monkeypatch.setenv("NEURONX_SERVE_CACHE", str(graph_store))


@pytest.fixture(scope="session")
def fake_neuron_library() -> ModuleType:
    """The fake as a module, under a name of its own."""
    spec = importlib.util.spec_from_file_location("fake_transformers_neuronx", FAKE / "transformers_neuronx.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def real_neuron_library() -> ModuleType:
    """The real library, on the emulator or on a device."""
    return importlib.import_module("transformers_neuronx")


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, fake_neuron_library: ModuleType) -> ModuleType:
    """The fake in the place of transformers_neuronx, compiling without processes of its own."""
    monkeypatch.setitem(sys.modules, "transformers_neuronx", fake_neuron_library)
    monkeypatch.setattr("models.neuron.graphs.ProcessPoolExecutor", ThreadPoolExecutor)
    return fake_neuron_library


@pytest.fixture(scope="session")
def faked_worker() -> WorkerInterpreter:
    """Runs a worker of this environment on the fake library."""
    return WorkerInterpreter(Path(sys.executable), {"PYTHONPATH": str(FAKE)})


@pytest.fixture(scope="session")
def emulated_worker() -> WorkerInterpreter:
    """Runs a worker on the real library and the emulator; skips where they are not at hand."""
    python, source = os.environ.get("NEURON_TEST_PYTHON"), os.environ.get("TRANSFORMERS_NEURONX_SRC")
    if not python or not source:
        pytest.skip("set NEURON_TEST_PYTHON and TRANSFORMERS_NEURONX_SRC: see tests/neuron_emulator/README.md")
    path = os.pathsep.join([str(TESTS), str(TESTS / "neuron_emulator" / "shims"), source])
    return WorkerInterpreter(Path(python), {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
