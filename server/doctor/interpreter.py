"""Asks an interpreter what it has. The code below runs in that interpreter, which may lack all of ours."""

from __future__ import annotations

import json
import subprocess
import sys

from server.doctor.capture import Interpreter

PACKAGES = (
    "msgspec", "numpy", "llguidance", "torch", "safetensors", "transformers", "accelerate",
    "transformers-neuronx", "torch-neuronx", "neuronx-cc", "libneuronxla",
)  # fmt: skip
_LIST_TIMEOUT_S = 30.0
# The import brings in torch and its device library: seconds on a fast disk, a minute on a cold one.
_IMPORT_TIMEOUT_S = 180.0

# The answer is the last line: libraries print while they are imported.
_QUESTION = """
import importlib.metadata, json, platform, sys
packages = {}
for name in sys.argv[2].split(","):
    try:
        packages[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
answer = {"version": platform.python_version(), "packages": packages, "import_error": "", "library": ""}
if sys.argv[1] == "import":
    try:
        import transformers_neuronx
        answer["library"] = (transformers_neuronx.__path__ or [""])[0]
    except BaseException as error:
        answer["import_error"] = "%s: %s" % (type(error).__name__, error)
print()
print(json.dumps(answer))
"""


def ask(python: str, *, for_neuron: bool) -> Interpreter:
    """Versions of an interpreter ("" is this one); `for_neuron` also tries to import transformers_neuronx."""
    python = python or sys.executable
    what, timeout = ("import", _IMPORT_TIMEOUT_S) if for_neuron else ("list", _LIST_TIMEOUT_S)
    try:
        run = subprocess.run(
            [python, "-c", _QUESTION, what, ",".join(PACKAGES)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except OSError as error:
        return Interpreter(python, error=str(error))
    except subprocess.TimeoutExpired:
        return Interpreter(python, error=f"no answer within {timeout:g} s")
    return read_answer(python, run.stdout, run.stderr)


def read_answer(python: str, stdout: str, stderr: str) -> Interpreter:
    """The interpreter's answer; its `error` when there is none."""
    lines = stdout.splitlines()
    try:
        answer = json.loads(lines[-1])
        return Interpreter(python, answer["version"], answer["packages"], answer["import_error"], answer["library"])
    except (IndexError, ValueError, KeyError, TypeError):
        last = stderr.strip().splitlines()[-1:] or ["it answered nothing"]
        return Interpreter(python, error=last[0])
