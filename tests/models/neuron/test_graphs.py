"""How a model comes by its graphs: out of an artifact, or compiled into one; on the fake library."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from models.backend import ConfigurationError
from models.neuron.artifacts import artifacts_in, verify
from models.neuron.building import unfinished
from models.neuron.graphs import (
    GraphRequest,
    compiler_workers,
    graphs_from_store,
    graphs_into_store,
    request_for,
    toolchain_of,
)
from models.neuron.tnx import NeuronBackend
from models.protocol import NeuronOptions
from models.spec import read_spec

OPTIONS = NeuronOptions(slots=4, n_positions=64, amp="f32", context_buckets=(16, 32), token_buckets=(32, 64))
GIB = 1024**3


def silent(*report: object) -> None:
    pass


class Library:
    """Models of the fake library, and the graphs that they compiled."""

    def __init__(self, fake: ModuleType, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled: list[bytes] = []
        self.fails_at: int | None = None
        self._fake, self._directory = fake, directory
        original = fake._Kernel.compile

        def compile_one(kernel: Any, num_exec_repetition: int) -> bytes:
            if len(self.compiled) == self.fails_at:
                raise RuntimeError("neuronx-cc failed")
            self.compiled.append(original(kernel, num_exec_repetition))
            return self.compiled[-1]

        monkeypatch.setattr(fake._Kernel, "compile", compile_one)

    def model(self, **change: Any) -> Any:
        """A model that is staged, as the driver constructs it."""
        options = msgspec.structs.replace(OPTIONS, **{"compile": "if-missing", **change})
        backend = NeuronBackend(self._directory, options)
        backend.stage(silent)
        return backend._model

    def request(self, store: Path, **change: Any) -> GraphRequest:
        options = msgspec.structs.replace(OPTIONS, **change)
        return request_for(self._fake, "org/tiny", read_spec(self._directory), options, store)


@pytest.fixture
def library(faked: ModuleType, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(faked, tiny_checkpoint("llama3"), monkeypatch)


def compile_into(store: Path, library: Library, report: Callable[..., None] = silent, **change: Any) -> Path:
    model = library.model(**change)
    with graphs_into_store(model, library.request(store, **change), report) as outcome:
        model.to_neuron()
    return outcome.artifact


class TestIntoTheStore:
    def test_every_graph_is_compiled_once_and_published(self, library: Library, tmp_path: Path) -> None:
        directory = compile_into(tmp_path, library)
        assert directory == tmp_path / library.request(tmp_path).ingredients.key
        assert len(library.compiled) == len(verify(directory).files) == 4
        assert sorted(library.compiled) == sorted(path.read_bytes() for path in directory.glob("*.neff"))

    def test_what_failed_is_no_artifact_and_what_was_done_is_kept(self, library: Library, tmp_path: Path) -> None:
        library.fails_at = 3
        with pytest.raises(RuntimeError, match="neuronx-cc failed"):
            compile_into(tmp_path, library)
        assert list(artifacts_in(tmp_path)) == []
        assert [files for _, files in unfinished(tmp_path)] == [3]
        library.fails_at = None
        reports: list[tuple[str, int, int]] = []
        compile_into(tmp_path, library, lambda *report: reports.append(report))
        assert len(library.compiled) == 4
        assert reports == [("compile", 3, 4), ("compile", 4, 4)]

    def test_a_device_that_does_not_take_the_graphs_gets_no_artifact(self, library: Library, tmp_path: Path) -> None:
        model = library.model()

        def refuse() -> None:
            raise RuntimeError("nrt_load status=4 Allocation Failure")

        model.nbs_objs[0].setup = refuse
        with pytest.raises(RuntimeError), graphs_into_store(model, library.request(tmp_path), silent):
            model.to_neuron()
        assert list(artifacts_in(tmp_path)) == []
        compile_into(tmp_path, library)
        assert len(library.compiled) == 4

    def test_the_librarys_own_cache_moves_into_the_store(
        self, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compile_into(tmp_path, library)
        assert os.environ["NEURON_COMPILE_CACHE_URL"] == str(tmp_path / ".cache")
        monkeypatch.setenv("NEURON_COMPILE_CACHE_URL", "s3://bucket/cache")
        compile_into(tmp_path, library, slots=2)
        assert os.environ["NEURON_COMPILE_CACHE_URL"] == "s3://bucket/cache"

    def test_it_needs_a_place_to_write(self, library: Library, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigurationError, match=r"artifacts cannot be written to .*/file: File exists"):
            compile_into(tmp_path / "file", library)
        one = compile_into(tmp_path, library)
        with pytest.raises(ConfigurationError, match="is one artifact and does not fit"):
            compile_into(one, library, slots=2)


class TestFromTheStore:
    def test_an_artifact_that_fits_is_loaded(self, library: Library, tmp_path: Path) -> None:
        compile_into(tmp_path, library)
        library.compiled.clear()
        model = library.model()
        with graphs_from_store(model, library.request(tmp_path), silent):
            model.to_neuron()
        assert library.compiled == []

    def test_nothing_is_compiled_unless_told(self, library: Library, tmp_path: Path) -> None:
        compile_into(tmp_path, library, slots=8)
        library.compiled.clear()
        model = library.model()
        with (
            pytest.raises(ConfigurationError, match=r"options\.slots is 8 there and 4 here\. Compile it with"),
            graphs_from_store(model, library.request(tmp_path), silent),
        ):
            model.to_neuron()
        assert library.compiled == []

    def test_what_is_missing_is_compiled_when_told(self, library: Library, tmp_path: Path) -> None:
        for compiled in (4, 4):
            model = library.model()
            with graphs_from_store(model, library.request(tmp_path, compile="if-missing"), silent):
                model.to_neuron()
            assert len(library.compiled) == compiled
        assert len(list(artifacts_in(tmp_path))) == 1

    def test_a_damaged_artifact_is_compiled_again_when_told(self, library: Library, tmp_path: Path) -> None:
        directory = compile_into(tmp_path, library)
        next(directory.glob("*.neff")).write_bytes(b"damaged")
        model = library.model()
        with graphs_from_store(model, library.request(tmp_path, compile="if-missing"), silent):
            model.to_neuron()
        assert verify(directory)


class TestToolchain:
    def test_names_the_packages_and_where_the_library_is(self, library: Library, faked: ModuleType) -> None:
        toolchain = toolchain_of(faked)
        assert list(toolchain.versions) == ["transformers-neuronx", "torch-neuronx", "libneuronxla", "neuronx-cc"]
        assert toolchain.library_path == str(Path(faked.__file__ or "").parent)

    @pytest.mark.parametrize(
        ("given", "counted"),
        [
            ("-O1 --enable-saturate-infinity", "-O1 --enable-saturate-infinity"),
            ("--cache_dir=/tmp/c -O1 --no_cache", "-O1"),
            ("--cache_dir /tmp/c -O1 --verbose=INFO", "-O1"),
            ("--retry_failed_compilation", None),
            ("", None),
        ],
    )
    def test_only_flags_of_the_compiler_itself_count(
        self, faked: ModuleType, monkeypatch: pytest.MonkeyPatch, given: str, counted: str | None
    ) -> None:
        monkeypatch.setenv("NEURON_CC_FLAGS", given)
        assert toolchain_of(faked).variables.get("NEURON_CC_FLAGS") == counted

    def test_variables_that_change_graphs_count(self, faked: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NEURON_CC_FLAGS", raising=False)
        assert toolchain_of(faked).variables == {}
        monkeypatch.setenv("NEURON_VOCAB_PAD_DIVISOR", "8")
        assert toolchain_of(faked).variables == {"NEURON_VOCAB_PAD_DIVISOR": "8"}

    def test_the_debugging_dump_is_refused(
        self, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NEURONX_DUMP_TO", "/tmp/dump")
        with pytest.raises(ConfigurationError, match="NEURONX_DUMP_TO is set"):
            library.request(tmp_path)


@pytest.mark.parametrize(
    ("graphs", "memory", "processors", "workers"),
    [(5, 12 * GIB, 4, 1), (5, 40 * GIB, 32, 2), (5, 500 * GIB, 192, 5), (5, 500 * GIB, 8, 2), (5, 500 * GIB, 2, 1)],
)
def test_one_compiler_where_memory_or_processors_are_few(
    monkeypatch: pytest.MonkeyPatch, graphs: int, memory: int, processors: int, workers: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert compiler_workers(graphs, lambda: memory) == workers
