"""How a library model comes by its graphs: out of a matching artifact, or compiled into one.

Knows the part of transformers-neuronx that compiles: `model.compile` and the kernels behind it. Knows no checkpoint
and no steps.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from models.backend import ConfigurationError, OutOfMemoryError, ProgressCallback
from models.host import available_bytes
from models.neuron.artifacts import MANIFEST, ArtifactError, Ingredients, Toolchain, ingredients_of, resolve, store_of
from models.neuron.building import Build, building
from models.protocol import NeuronOptions
from models.spec import ModelSpec

# Distribution and module of each package that takes part in making a graph.
_PACKAGES = {
    "transformers-neuronx": "transformers_neuronx",
    "torch-neuronx": "torch_neuronx",
    "libneuronxla": "libneuronxla",
    "neuronx-cc": "neuronxcc",
}
_COMPILER_FLAGS = "NEURON_CC_FLAGS"
_VARIABLES = ("NEURON_VOCAB_PAD_DIVISOR", "NEURON_INTERNAL_TRANSFORM_WEIGHT_LAYOUT", "ENABLE_PYHLO_FILE_METADATA")
# What NEURON_CC_FLAGS may hold for the compiler's wrapper: it changes where a graph is kept, not the graph.
_WRAPPER_FLAGS = ("--no_cache", "--cache_dir", "--retry_failed_compilation", "--verbose")
_COMPILE_CACHE = "NEURON_COMPILE_CACHE_URL"
_DUMP = "NEURONX_DUMP_TO"

# A compiler of a 7B model's graph takes this much at least [bytes], and keeps several processors busy.
_COMPILER_MEMORY = 16 * 1024**3
_COMPILER_PROCESSORS = 4


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """Which graphs are wanted, and where artifacts are kept. `model` is what a person would call it."""

    model: str
    spec: ModelSpec
    options: NeuronOptions
    toolchain: Toolchain
    store: Path

    @property
    def ingredients(self) -> Ingredients:
        return ingredients_of(self.spec, self.options, self.toolchain)

    def artifact(self) -> Path:
        """The verified artifact that fits; ArtifactError says why there is none."""
        return resolve(self.options, self.spec, self.toolchain, self.store, self.model)


@dataclass(slots=True)
class Outcome:
    """What became of the graphs: their names, how many were compiled now, and the artifact once it is published."""

    names: tuple[str, ...] = ()
    compiled: int = 0
    directory: Path | None = None

    @property
    def artifact(self) -> Path:
        if self.directory is None:
            raise ValueError("the artifact is not published yet")
        return self.directory


def request_for(
    library: ModuleType, model: str, spec: ModelSpec, options: NeuronOptions, store: Path | None = None
) -> GraphRequest:
    """The graphs that `library`, as it is installed here, would make of these. ConfigurationError if it must not."""
    if os.environ.get(_DUMP):
        raise ConfigurationError(f"{_DUMP} is set: it gives graphs other names and bypasses the cache. Unset it")
    return GraphRequest(model, spec, options, toolchain_of(library), store or store_of(options))


@contextmanager
def graphs_from_store(model: Any, request: GraphRequest, progress: ProgressCallback) -> Iterator[None]:
    """Inside, `model.to_neuron()` takes its graphs from the artifact that fits.

    Where none does: ConfigurationError, unless the option `compile` is "if-missing"; then it compiles them, and they
    are an artifact when `to_neuron()` has gone well.
    """
    try:
        artifact = request.artifact()
    except ArtifactError as error:
        if request.options.compile == "never":
            raise ConfigurationError(str(error)) from error
    else:
        model.load(str(artifact))
        yield
        return
    with graphs_into_store(model, request, progress):
        yield


@contextmanager
def graphs_into_store(model: Any, request: GraphRequest, progress: ProgressCallback) -> Iterator[Outcome]:
    """Inside, the model compiles into the store, keeping each graph at once; at the end they are published.

    The library's own persistent cache moves into the store too: it serves a graph that several artifacts share.
    """
    outcome = Outcome()
    _open_store(request.store)
    os.environ.setdefault(_COMPILE_CACHE, str(request.store / ".cache"))
    try:
        with building(request.store, request.ingredients) as build:
            model.compile = lambda parallel_degree=None: _compile(model._get_all_kernels(), build, outcome, progress)
            try:
                yield outcome
            finally:
                del model.compile
            outcome.directory = build.publish(set(outcome.names), request.model)
    except ArtifactError as error:
        raise ConfigurationError(str(error)) from error


def _open_store(store: Path) -> None:
    if (store / MANIFEST).exists():
        raise ConfigurationError(
            f"{store} is one artifact and does not fit: name a directory of artifacts to compile into"
        )
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"artifacts cannot be written to {store}: {error.strerror}") from error


def _compile(kernels: Sequence[Any], build: Build, outcome: Outcome, progress: ProgressCallback) -> None:
    """Give every kernel its compiled graph; in place of the library's own `compile`, which keeps none until all are
    done. A graph's name is that under which the library's `load` looks for it."""
    waiting: dict[str, list[Any]] = {}
    names = set()
    for kernel in kernels:
        name = hashlib.sha256(kernel.hlo_module.SerializeToString()).hexdigest()[:20] + ".neff"
        names.add(name)
        kernel.neff_bytes = build.graph(name)
        if kernel.neff_bytes is None:
            waiting.setdefault(name, []).append(kernel)
    done, total = len(names) - len(waiting), len(names)
    progress("compile", done, total)
    for name, content in _compiled(waiting):
        build.add(name, content)
        for kernel in waiting[name]:
            kernel.neff_bytes = content
        outcome.compiled += 1
        progress("compile", done + outcome.compiled, total)
    outcome.names = tuple(sorted(names))


def _compiled(waiting: dict[str, list[Any]]) -> Iterator[tuple[str, bytes]]:
    """(name, graph) as they get ready; in processes of their own, as the library does it."""
    if not waiting:
        return
    pool = ProcessPoolExecutor(compiler_workers(len(waiting)))
    try:
        futures: dict[Future[bytes], str] = {
            pool.submit(kernels[0].compile, kernels[0].num_exec_repetition): name for name, kernels in waiting.items()
        }
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            "a compiler was killed, most likely by the kernel for want of memory (`dmesg` tells): compile on a machine "
            "with more, or with smaller buckets. The graphs that are compiled are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def compiler_workers(graphs: int, memory: Callable[[], int] | None = None) -> int:
    """How many graphs to compile at once: as many as fit memory and processors, one where memory is small."""
    by_memory = (memory or available_bytes)() // _COMPILER_MEMORY
    by_processors = (os.cpu_count() or 1) // _COMPILER_PROCESSORS
    return max(1, min(graphs, by_memory, by_processors))


def toolchain_of(library: ModuleType) -> Toolchain:
    """The packages, path and variables of this interpreter, once `library` (transformers_neuronx) is imported."""
    variables = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    if flags := _compiler_flags(os.environ.get(_COMPILER_FLAGS, "")):
        variables[_COMPILER_FLAGS] = flags
    return Toolchain(
        versions={name: _version(name, module) for name, module in _PACKAGES.items()},
        library_path=str(Path(library.__file__ or "").parent),
        variables=variables,
    )


def _compiler_flags(text: str) -> str:
    """NEURON_CC_FLAGS without what only the wrapper obeys."""
    kept, words = [], iter(shlex.split(text))
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in _WRAPPER_FLAGS:
            kept.append(word)
        elif name == "--cache_dir" and not equals:
            next(words, None)
    return shlex.join(kept)


def _version(distribution: str, module: str) -> str:
    """A package that runs from its source is not installed: then what the module says of itself."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(module), "__version__", "unknown"))
