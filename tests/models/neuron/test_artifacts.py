"""Which artifact fits a configuration, and whether it is whole: decided without the library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from models.neuron.artifacts import (
    GRAPH_OPTIONS,
    MANIFEST,
    ArtifactError,
    Ingredients,
    Toolchain,
    artifacts_in,
    default_store,
    ingredients_of,
    read_manifest,
    resolve,
    store_of,
    verify,
)
from models.neuron.building import building
from models.neuron.tnx import NeuronBackend
from models.protocol import NeuronOptions
from models.spec import RopeScaling, spec_of

OPTIONS = NeuronOptions(slots=4, n_positions=64, amp="f32", context_buckets=(16, 32), token_buckets=(32, 64))
TOOLCHAIN = Toolchain(
    {"transformers-neuronx": "0.13.380", "neuronx-cc": "2.16"}, "/opt/tnx", {"NEURON_CC_FLAGS": "-O1"}
)
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 277,
    "max_position_embeddings": 256,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
}
SPEC = spec_of(CONFIG)
GRAPHS = {"a.neff": b"first graph", "b.neff": b"second graph"}


def ingredients(**options: Any) -> Ingredients:
    return ingredients_of(SPEC, msgspec.structs.replace(OPTIONS, **options), TOOLCHAIN)


def make(store: Path, wanted: Ingredients | None = None, model: str = "org/tiny") -> Path:
    with building(store, wanted or ingredients()) as build:
        for name, content in GRAPHS.items():
            build.add(name, content)
        return build.publish(set(GRAPHS), model)


def rewrite(directory: Path, **change: Any) -> None:
    manifest = msgspec.json.decode((directory / MANIFEST).read_bytes())
    (directory / MANIFEST).write_bytes(msgspec.json.encode({**manifest, **change}))


class TestKey:
    @pytest.mark.parametrize(
        "change",
        [
            {"slots": 8},
            {"n_positions": 128},
            {"tp_degree": 1},
            {"amp": "bf16"},
            {"quant": "s8"},
            {"context_buckets": (16,)},
            {"token_buckets": (64,)},
            {"sampling": "device"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_an_option_that_shapes_the_graphs_gives_another_key(self, change: dict[str, Any]) -> None:
        assert ingredients(**change).key != ingredients().key

    @pytest.mark.parametrize("change", [{"artifacts": "/elsewhere"}, {"compile": "if-missing"}, {"cores": "1"}])
    def test_where_artifacts_are_kept_and_which_cores_run_them_changes_nothing(self, change: dict[str, Any]) -> None:
        assert ingredients(**change) == ingredients()

    @pytest.mark.parametrize(
        "change",
        [
            *({"hidden_size": 128}, {"layers": 3}, {"vocab_size": 278}),
            *({"rope_theta": 1e4}, {"rms_norm_eps": 1e-6}, {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)}),
        ],
    )
    def test_shapes_and_constants_of_the_model_are_in_the_graphs(self, change: dict[str, Any]) -> None:
        assert ingredients_of(replace(SPEC, **change), OPTIONS, TOOLCHAIN).key != ingredients().key

    def test_every_fine_tune_of_a_shape_shares_an_artifact(self) -> None:
        tuned = replace(SPEC, model_type="mistral", architecture="MistralForCausalLM", max_position_embeddings=512)
        assert ingredients_of(tuned, OPTIONS, TOOLCHAIN) == ingredients()

    @pytest.mark.parametrize(
        "change",
        [{"versions": {"neuronx-cc": "2.17"}}, {"library_path": "/usr/lib/tnx"}, {"variables": {}}],
        ids=lambda change: next(iter(change)),
    )
    def test_packages_their_place_and_the_compilers_flags_count(self, change: dict[str, Any]) -> None:
        assert ingredients_of(SPEC, OPTIONS, replace(TOOLCHAIN, **change)).key != ingredients().key

    def test_what_the_driver_asks_of_the_library_is_what_the_key_says(
        self, faked: ModuleType, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: dict[str, Any] = {}
        original = faked.NeuronConfig.__init__

        def noted(config: Any, **fields: Any) -> None:
            asked.update(fields)
            original(config, **fields)

        monkeypatch.setattr(faked.NeuronConfig, "__init__", noted)
        options = msgspec.structs.replace(OPTIONS, compile="if-missing")
        NeuronBackend(tiny_checkpoint("llama3"), options).stage(lambda *report: None)
        from_options = {"continuous_batching", "quant", "on_device_generation"}
        not_in_graphs = {"compilation_worker_count"}
        assert {name: asked[name] for name in asked.keys() - from_options - not_in_graphs} == dict(GRAPH_OPTIONS)


class TestResolve:
    def test_the_exact_artifact_is_found_and_verified(self, tmp_path: Path) -> None:
        make(tmp_path, ingredients(slots=8))
        wanted = make(tmp_path)
        assert resolve(OPTIONS, SPEC, TOOLCHAIN, tmp_path) == wanted == tmp_path / ingredients().key

    def test_the_option_may_name_the_artifact_itself(self, tmp_path: Path) -> None:
        moved = make(tmp_path / "made").rename(tmp_path / "mine")
        assert resolve(OPTIONS, SPEC, TOOLCHAIN, moved) == moved

    @pytest.mark.parametrize("there", [True, False])
    def test_without_any_it_says_how_to_make_one(self, tmp_path: Path, there: bool) -> None:
        store = tmp_path if there else tmp_path / "nowhere"
        with pytest.raises(ArtifactError) as refused:
            resolve(OPTIONS, SPEC, TOOLCHAIN, store, "org/tiny")
        assert str(refused.value) == (
            f"{store} holds no compiled artifact for this configuration ({ingredients().key}). Compile it with "
            "`neuronx-serve compile org/tiny --config FILE` (the file that you serve with), or bring it here with "
            "`neuronx-serve artifacts pull SOURCE`"
        )

    def test_the_nearest_is_named_with_what_differs(self, tmp_path: Path) -> None:
        near = make(tmp_path, ingredients(slots=8), "org/near")
        make(tmp_path, ingredients(slots=8, tp_degree=1, amp="bf16"))
        with pytest.raises(ArtifactError) as refused:
            resolve(OPTIONS, SPEC, TOOLCHAIN, tmp_path)
        nearest = f"The nearest, {near.name} (compiled for org/near), differs: options.slots is 8 there and 4 here."
        assert nearest in str(refused.value)

    def test_what_one_side_lacks_is_named_too(self) -> None:
        plain = ingredients_of(SPEC, OPTIONS, replace(TOOLCHAIN, variables={}))
        difference = 'environment.NEURON_CC_FLAGS is not set there and "-O1" here'
        assert ingredients().differences(plain) == (difference,)

    def test_a_damaged_one_that_would_fit_is_refused(self, tmp_path: Path) -> None:
        (make(tmp_path) / "b.neff").write_bytes(b"second grapH")
        with pytest.raises(ArtifactError, match=r"is damaged: b.neff .* Compile it with"):
            resolve(OPTIONS, SPEC, TOOLCHAIN, tmp_path)

    def test_one_with_an_unreadable_manifest_that_would_fit_is_refused(self, tmp_path: Path) -> None:
        (make(tmp_path) / MANIFEST).write_text("{")
        with pytest.raises(ArtifactError, match=r"is not a manifest of this version: .* Compile it with"):
            resolve(OPTIONS, SPEC, TOOLCHAIN, tmp_path)

    def test_a_damaged_neighbour_is_nobodys_concern(self, tmp_path: Path) -> None:
        (make(tmp_path, ingredients(slots=8)) / MANIFEST).write_text("{")
        wanted = make(tmp_path)
        assert resolve(OPTIONS, SPEC, TOOLCHAIN, tmp_path) == wanted


class TestVerify:
    def test_a_whole_artifact_tells_what_it_is(self, tmp_path: Path) -> None:
        manifest = verify(make(tmp_path))
        assert manifest.made_of == ingredients()
        assert manifest.model == "org/tiny"
        assert [file.name for file in manifest.files] == ["a.neff", "b.neff"]
        assert manifest.size == len(b"first graph") + len(b"second graph")

    def test_every_byte_counts(self, tmp_path: Path) -> None:
        directory = make(tmp_path)
        (directory / "a.neff").write_bytes(b"first grapH")
        with pytest.raises(ArtifactError, match=r"damaged: a\.neff has 11 bytes with SHA-256"):
            verify(directory)

    def test_a_missing_and_a_strange_file_are_named(self, tmp_path: Path) -> None:
        directory = make(tmp_path)
        (directory / "c.neff").touch()
        with pytest.raises(ArtifactError, match=r"holds c\.neff, which it does not list"):
            verify(directory)
        (directory / "a.neff").unlink()
        with pytest.raises(ArtifactError, match=r"lacks a\.neff"):
            verify(directory)

    @pytest.mark.parametrize("name", ["../a.neff", "/etc/passwd", "x/a.neff", MANIFEST, "", ".", ".."])
    def test_a_manifest_cannot_lead_out_of_its_directory(self, tmp_path: Path, name: str) -> None:
        directory = make(tmp_path)
        rewrite(directory, files=[{"name": name, "size": 1, "sha256": "0"}])
        with pytest.raises(ArtifactError, match="which is not the name of a file in its directory"):
            read_manifest(directory)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"format": 9}, "has format 9, this version reads 1"),
            ({"key": "0" * 20}, "names the key 0{20}, but its ingredients give"),
            ({"ingredients": {"options.slots": "5"}}, "but its ingredients give"),
            ({"files": "none"}, "is not a manifest of this version"),
            ({"more": 1}, "is not a manifest of this version"),
        ],
    )
    def test_a_manifest_that_contradicts_itself_is_refused(self, tmp_path: Path, change: Any, said: str) -> None:
        directory = make(tmp_path)
        rewrite(directory, **change)
        with pytest.raises(ArtifactError, match=said):
            verify(directory)


class TestStore:
    def test_is_in_the_model_cache_unless_the_option_says_otherwise(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("NEURONX_SERVE_CACHE", str(tmp_path))
        assert store_of(OPTIONS) == tmp_path / "artifacts"
        monkeypatch.delenv("NEURONX_SERVE_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_store() == tmp_path / "neuronx-serve" / "artifacts"
        assert store_of(NeuronOptions(artifacts="~/mine")) == Path("~/mine").expanduser()

    def test_holds_directories_with_a_manifest(self, tmp_path: Path) -> None:
        made = make(tmp_path)
        (tmp_path / "other").mkdir()
        assert list(artifacts_in(tmp_path)) == [made]
        assert list(artifacts_in(made)) == [made]
        assert list(artifacts_in(tmp_path / "nowhere")) == []

    def test_is_read_without_numpy_and_torch(self) -> None:
        code = "import sys, models.neuron.artifacts, models.neuron.building; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert {"numpy", "torch", "transformers_neuronx"}.isdisjoint(loaded)
