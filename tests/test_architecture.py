"""The architecture: imports point one way, pure modules stay pure, the API process loads no device library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for package in ("server", "models") for path in (ROOT / package).rglob("*.py"))
SERVER = [path for path in FILES if path.is_relative_to(ROOT / "server")]
MODELS = [path for path in FILES if path.is_relative_to(ROOT / "models")]

DEVICE_LIBRARIES = ("torch", "torch_neuronx", "transformers", "transformers_neuronx", "numpy", "safetensors", "gguf")
# What the API process may know of a model: its messages, its shapes, its family; never how it runs.
MODELS_THE_SERVER_KNOWS = (
    *("models.protocol", "models.spec", "models.families", "models.planner", "models.grammar"),
    *("models.neuron.artifacts", "models.neuron.building"),  # manifests, hashes, renames: the standard library alone
    "models.host",  # free memory: the standard library alone
    "models.neuron.status",  # what the runtime's log means: the standard library alone
)
PURE = (
    *("server/engine/scheduler.py", "server/deadlines.py", "server/swap/policy.py", "server/swap/turns.py"),
    "models/planner",
)
IMPURE_IMPORTS = ("asyncio", "time", "datetime", "socket", "random", "secrets", "os", "threading", "logging", "pathlib")

# From the bottom up: a module imports its own layer and those below it (docs/architecture.md).
LAYERS = (
    ("server.errors", "server.core", "server.settings", "server.variables"),
    (
        "server.configuration",
        "server.text",
        "server.observe",
        "server.transfer",
        "server.worker_log",
    ),
    ("server.engine", "server.admission", "server.worker_process", "server.deadlines"),
    ("server.supervisor",),
    ("server.swap",),
    ("server.api",),
    ("server.app", "server.lifecycle", "server.listener", "server.reload", "server.doctor"),
    ("server.bench",),
    ("server.commands",),
    ("server.cli",),
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports anywhere, deferred imports included; `from a import b` is a.b."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, parents: tuple[str, ...]) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


def layer(module: str) -> int:
    for number, members in enumerate(LAYERS):
        if within(module, members):
            return number
    raise AssertionError(f"{module} has no layer: put it into LAYERS, where it belongs")


def by_name(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=module_name)


@by_name(MODELS)
def test_models_knows_nothing_of_the_server(path: Path) -> None:
    assert [name for name in imports(path) if within(name, ("server", "starlette", "uvicorn"))] == []


@by_name(SERVER)
def test_the_server_knows_no_device_library_and_no_backend(path: Path) -> None:
    used = [name for name in imports(path) if name != "models"]  # the empty package itself, to find the worker's entry
    assert [name for name in used if within(name, DEVICE_LIBRARIES)] == []
    assert [name for name in used if within(name, ("models",)) and not within(name, MODELS_THE_SERVER_KNOWS)] == []


@by_name([path for path in SERVER if module_name(path) != "server" and path.read_text("utf-8").strip()])
def test_a_module_imports_its_own_layer_and_those_below(path: Path) -> None:
    own = layer(module_name(path))
    assert [name for name in imports(path) if within(name, ("server",)) and layer(name) > own] == []


@by_name([path for path in FILES if str(path.relative_to(ROOT)).startswith(PURE)])
def test_decisions_have_no_clock_no_input_and_no_output(path: Path) -> None:
    assert [name for name in imports(path) if within(name, IMPURE_IMPORTS)] == []


@by_name(FILES)
def test_one_module_imports_transformers_neuronx(path: Path) -> None:
    if module_name(path) != "models.neuron.tnx":
        assert [name for name in imports(path) if within(name, ("transformers_neuronx",))] == []


def test_the_api_process_loads_no_device_library() -> None:
    """Everything that `serve` imports, with what those modules import in turn."""
    code = """
import sys
import server.cli, server.configuration, server.listener, server.app, server.swap.registry, server.observe.metrics
print(" ".join(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [name for name in result.stdout.split() if within(name, DEVICE_LIBRARIES)] == []
