"""Entry of a worker's interpreter: `<python> <this file> <socket fd> <parent pid>`.

Started by path, by an interpreter that may belong to another environment: only the package `models` is made
importable, so nothing else of the server's environment can shadow what that interpreter has installed.
"""

import contextlib
import importlib.util
import os
import sys
from pathlib import Path


def _import_models() -> None:
    here = Path(__file__).resolve().parent
    # Python put this directory first on the path; its file names must not answer to top-level imports.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    spec = importlib.util.spec_from_file_location(
        "models", here / "__init__.py", submodule_search_locations=[str(here)]
    )
    if spec is None or spec.loader is None:
        raise SystemExit(f"the package `models` cannot be loaded from {here}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["models"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    _import_models()
    from models.worker import main

    code = main(int(sys.argv[1]), int(sys.argv[2]))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or nobody reads it
            stream.flush()
    # The device is empty until this process has gone. The kernel takes everything back at once; the interpreter would
    # first tidy up what torch and the runtime hold, for a second.
    os._exit(code)
