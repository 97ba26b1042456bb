"""Directories of models and their compiled artifacts."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.doctor.capture import Checkpoint, Store
from server.doctor.checkpoint_files import look_at

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip


def safetensors(size: int = 64) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}, "__metadata__": {}})
    return struct.pack("<Q", len(header)) + header.encode() + bytes(size)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A whole checkpoint, as small as it gets."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    return tmp_path


def problems(directory: Path) -> str:
    return "; ".join(look_at(str(directory)).problems)


def test_a_whole_checkpoint_has_no_problem(directory: Path) -> None:
    found = look_at(str(directory))
    assert found.problems == ()
    assert found.size == (directory / "model.safetensors").stat().st_size
    assert found.spec is not None
    assert found.spec.layers == 1


def test_a_directory_that_is_not_there() -> None:
    assert look_at("/nowhere/at/all").problems == ("there is no such directory",)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    assert problems(directory) == f"{name} is missing"


def test_no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    assert problems(directory) == "there are no weights"
    (directory / "pytorch_model.bin").touch()
    assert "safetensors are read" in problems(directory)


def test_a_download_that_broke_off(directory: Path) -> None:
    whole = safetensors()
    (directory / "model.safetensors").write_bytes(whole[:-5])
    assert problems(directory) == (
        f"model.safetensors has {len(whole) - 5} bytes where its header tells {len(whole)}: the download broke off"
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"<html>not found</html>", "is no safetensors file"),
        (struct.pack("<Q", 50) + b"{", "is damaged or cut off"),
        (b"", "is no safetensors file"),
    ],
)
def test_a_file_that_is_something_else(directory: Path, content: bytes, text: str) -> None:
    (directory / "model.safetensors").write_bytes(content)
    assert text in problems(directory)


def test_a_shard_that_the_index_lists_and_nobody_has(directory: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model-00001-of-00002.safetensors").write_bytes(safetensors())
    assert problems(directory) == "1 of 2 shards are missing, model-00002-of-00002.safetensors first"


def test_a_config_that_cannot_be_served(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "llama"}')
    assert look_at(str(directory)).spec is None
    assert problems(directory)


def test_a_default_model_that_is_not_whole_fails(inf2: Any) -> None:
    broken = Checkpoint("/models/llama", 0, ("there are no weights",))
    found = inf2.trouble(checkpoints={inf2.settings.models[0].id: broken})
    assert (found.level, found.check) == ("fail", "model")
    assert "neuronx-serve models pull meta-llama/Meta-Llama-3-8B-Instruct" in found.advice


def test_artifacts_of_another_configuration_name_the_difference(inf2: Any, inf2_with: Callable[..., Any]) -> None:
    other = inf2_with(slots=8)
    found = inf2.trouble(stores=other.capture.stores)
    assert (found.level, found.check) == ("fail", "artifacts")
    assert "options.slots is 8 there and 4 here" in found.text
    assert "neuronx-serve compile" in found.advice


def test_no_artifact_at_all(inf2: Any) -> None:
    stores = {inf2.settings.models[0].id: Store("/artifacts", (), ("x/manifest.json cannot be read",))}
    found = inf2.trouble(stores=stores)
    assert found.level == "fail"
    assert "broken: x/manifest.json cannot be read" in found.text


def test_a_model_that_may_be_compiled_while_it_loads(inf2_with: Callable[..., Any]) -> None:
    machine = inf2_with(compile="if-missing")
    found = machine.trouble(stores={machine.settings.models[0].id: Store("/artifacts")})
    assert (found.level, found.check) == ("warn", "artifacts")
    assert "10 to 60 minutes" in found.advice


def test_the_embedded_model_that_was_not_prepared_yet_is_a_warning(laptop: Any) -> None:
    path = "/home/me/.cache/neuronx-serve/models/SmolLM2-135M-Instruct"
    model = laptop.settings.models[0]
    laptop.settings = msgspec.structs.replace(laptop.settings, models=(msgspec.structs.replace(model, path=path),))
    missing = dataclasses.replace(
        laptop.capture.checkpoints["small"], path=path, problems=("there is no such directory",)
    )
    found = laptop.trouble(checkpoints={"small": missing})
    assert (found.level, found.check) == ("warn", "model")
    assert "python -m models.cpu.embedded" in found.advice


def test_a_slot_longer_than_the_sliding_window_is_a_warning_and_planned_as_it_will_be(inf2: Any) -> None:
    name, checkpoint = next(iter(inf2.capture.checkpoints.items()))
    windowed = dataclasses.replace(checkpoint, spec=dataclasses.replace(checkpoint.spec, sliding_window=2048))
    troubles = [found for found in inf2.findings(checkpoints={name: windowed}) if found.level != "ok"]
    assert [(found.level, found.check) for found in troubles] == [("warn", "window"), ("fail", "artifacts")]
    assert "n_positions 4096 is cut to the model's sliding_window, 2048" in troubles[0].text
    assert "options.n_positions is 4096 there and 2048 here" in troubles[1].text
