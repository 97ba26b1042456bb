"""Reading weights: by name, in shape, and with a clear refusal of files that are not what config.json says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import CheckpointError, GgufCheckpoint, open_checkpoint, verify, warm_page_cache
from models.spec import ModelSpec, read_spec

TinyCheckpoint = Callable[..., Path]


@pytest.fixture
def copied(tiny_checkpoint: TinyCheckpoint, tmp_path: Path) -> Callable[..., Path]:
    """A private copy of a tiny checkpoint, to be damaged."""

    def copy(family: str = "llama3", **overrides: Any) -> Path:
        shutil.copytree(tiny_checkpoint(family, **overrides), tmp_path / "checkpoint")
        return tmp_path / "checkpoint"

    return copy


def _rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def _refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(directory, read_spec(directory))
    return str(refusal.value)


# --- safetensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_reads_every_tensor_of_one_file_or_of_an_index(tiny_checkpoint: TinyCheckpoint, shards: int) -> None:
    directory = tiny_checkpoint("mistral", shards=shards)
    expected = {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}
    spec = read_spec(directory)
    with open_checkpoint(directory, spec) as checkpoint:
        for name, shape in spec.tensor_shapes().items():
            assert checkpoint.entries[name].bytes == 4 * np.prod(shape)
            assert torch.equal(checkpoint.read(name), expected[name])
    assert len(expected) == len(spec.tensor_shapes())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_tensor_comes_in_the_dtype_it_is_stored_in(copied: Callable[..., Path], dtype: torch.dtype) -> None:
    directory = copied()
    _rewrite(directory, lambda weights: weights.update({n: t.to(dtype) for n, t in weights.items()}))
    with open_checkpoint(directory, read_spec(directory)) as checkpoint:
        assert checkpoint.read("model.norm.weight").dtype == dtype


def test_a_missing_tensor_is_named(copied: Callable[..., Path]) -> None:
    directory = copied()
    _rewrite(directory, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    assert "lacks model.layers.1.mlp.up_proj.weight, which config.json calls for" in _refusal(directory)


def test_many_missing_tensors_are_counted(copied: Callable[..., Path]) -> None:
    directory = copied()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "and 6 more tensors" in _refusal(directory)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(copied: Callable[..., Path]) -> None:
    directory = copied()
    _rewrite(directory, lambda weights: weights.update({"model.norm.weight": torch.ones(63)}))
    said = _refusal(directory)
    assert "model.norm.weight is (63,), config.json makes it (64,)" in said
    assert "model.safetensors" in said


def test_a_tensor_that_the_architecture_lacks_is_refused_since_results_would_be_wrong(
    copied: Callable[..., Path],
) -> None:
    directory = copied()
    _rewrite(directory, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
    assert "holds model.layers.0.self_attn.q_proj.bias, which a LlamaForCausalLM does not have" in _refusal(directory)


def test_tensors_that_are_computed_anyway_are_ignored(copied: Callable[..., Path]) -> None:
    directory = copied(tie_word_embeddings=True)
    surplus = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "lm_head.weight": torch.ones(277, 64)}
    _rewrite(directory, lambda weights: weights.update(surplus))
    with open_checkpoint(directory, read_spec(directory)) as checkpoint:
        assert surplus.keys() <= checkpoint.entries.keys()


def test_other_number_formats_are_refused(copied: Callable[..., Path]) -> None:
    directory = copied()
    _rewrite(directory, lambda weights: weights.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    assert "model.norm.weight is I8; supported are F32, F16 and BF16" in _refusal(directory)


def test_a_truncated_file_is_refused_before_anything_is_read(copied: Callable[..., Path]) -> None:
    directory = copied()
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "the download is incomplete" in _refusal(directory)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", bytes(16)])
def test_a_file_that_is_none_is_refused(copied: Callable[..., Path], content: bytes) -> None:
    directory = copied()
    (directory / "model.safetensors").write_bytes(content)
    assert "is not a safetensors file" in _refusal(directory)


def test_a_missing_shard_is_named(copied: Callable[..., Path]) -> None:
    directory = copied(shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    assert "lacks model-00002-of-00003.safetensors of model.safetensors.index.json" in _refusal(directory)


def test_a_broken_index_is_refused(copied: Callable[..., Path]) -> None:
    directory = copied(shards=3)
    (directory / "model.safetensors.index.json").write_text("{}")
    assert "is not a safetensors index" in _refusal(directory)


def test_pickled_weights_are_not_read(copied: Callable[..., Path]) -> None:
    directory = copied()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert "pickled .bin files are not read" in _refusal(directory)


# --- GGUF ------------------------------------------------------------------------------------------------------------


def _write_gguf(path: Path, spec: ModelSpec, weights: dict[str, torch.Tensor]) -> None:
    """As llama.cpp's converter writes a Llama: its names, and q and k with the halves of each head interleaved."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, spec.layers)
    writer = gguf.GGUFWriter(path, "llama")
    for name, tensor in weights.items():
        numbers = tensor.numpy()
        heads = {"q_proj": spec.heads, "k_proj": spec.kv_heads}.get(name.split(".")[-2])
        if heads:
            halves = numbers.reshape(heads, 2, numbers.shape[0] // heads // 2, *numbers.shape[1:])
            numbers = halves.swapaxes(1, 2).reshape(numbers.shape)
        stored = names.get_name(name, try_suffixes=(".weight",))
        assert stored is not None
        writer.add_tensor(stored, np.ascontiguousarray(numbers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_the_tensors_that_it_was_made_of(copied: Callable[..., Path]) -> None:
    directory = copied()
    spec, weights = read_spec(directory), load_file(directory / "model.safetensors")
    _write_gguf(directory / "model.gguf", spec, weights)
    (directory / "model.safetensors").unlink()
    with open_checkpoint(directory, spec) as checkpoint:
        assert isinstance(checkpoint, GgufCheckpoint)
        for name in spec.tensor_shapes():
            assert torch.equal(checkpoint.read(name), weights[name]), name


def _q8_0(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """32 numbers: a float16 scale, then signed bytes."""
    scale = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    return blocks[:, 2:].view(np.int8) * scale


def _q4_1(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """32 numbers: float16 scale and minimum, then 16 bytes, the low halves before the high ones."""
    scale, minimum = (np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32) for at in (0, 2))
    return np.concatenate((blocks[:, 4:] & 15, blocks[:, 4:] >> 4), axis=1) * scale + minimum


@pytest.mark.parametrize(("kind", "numbers"), [("Q8_0", _q8_0), ("Q4_1", _q4_1)])
def test_quantised_blocks_are_the_numbers_that_they_stand_for(
    copied: Callable[..., Path], kind: str, numbers: Callable[..., npt.NDArray[np.float32]]
) -> None:
    """The two block formats of the embedded model, decoded here a second time."""
    import gguf

    directory = copied()
    spec, weights = read_spec(directory), load_file(directory / "model.safetensors")
    stored = gguf.GGMLQuantizationType[kind]
    rows = gguf.quants.quantize(weights["lm_head.weight"].numpy(), stored)
    writer = gguf.GGUFWriter(directory / "model.gguf", "llama")
    writer.add_tensor("output.weight", rows, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufCheckpoint(directory / "model.gguf", spec) as checkpoint:
        assert checkpoint.entries["lm_head.weight"].shape == (277, 64)
        read = checkpoint.read("lm_head.weight")
    assert np.array_equal(read.numpy(), numbers(rows.reshape(277 * 2, -1)).reshape(277, 64))
    assert torch.allclose(read, weights["lm_head.weight"], atol=0.06)


def test_a_file_that_is_no_gguf_is_refused(copied: Callable[..., Path]) -> None:
    directory = copied()
    (directory / "model.safetensors").rename(directory / "model.gguf")
    assert "is not a GGUF file" in _refusal(directory)


def test_two_gguf_files_are_ambiguous(copied: Callable[..., Path]) -> None:
    directory = copied()
    (directory / "model.safetensors").unlink()
    for name in ("a.gguf", "b.gguf"):
        (directory / name).touch()
    assert "holds 2 GGUF files" in _refusal(directory)


# --- page cache ------------------------------------------------------------------------------------------------------


def test_warming_reads_all_files_and_reports_bytes(tiny_checkpoint: TinyCheckpoint) -> None:
    directory = tiny_checkpoint("llama3", shards=3)
    with open_checkpoint(directory, read_spec(directory)) as checkpoint:
        verify(checkpoint.entries, read_spec(directory))
        total = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        reports: list[tuple[int, int]] = []
        assert warm_page_cache(checkpoint.entries, 10 * total, lambda *report: reports.append(report)) == total
    assert reports[-1] == (total, total)
    assert reports == sorted(reports)


def test_warming_stops_at_the_budget_and_skips_what_would_not_help(tiny_checkpoint: TinyCheckpoint) -> None:
    directory = tiny_checkpoint("llama3", shards=3)
    with open_checkpoint(directory, read_spec(directory)) as checkpoint:
        sizes = sorted(file.stat().st_size for file in directory.glob("*.safetensors"))
        reports: list[tuple[int, int]] = []
        budget = sum(sizes) // 2
        assert warm_page_cache(checkpoint.entries, budget, lambda *report: reports.append(report)) < sum(sizes)
        assert reports[-1] == (budget, budget)
        assert warm_page_cache(checkpoint.entries, sum(sizes) // 5, lambda *report: reports.clear()) == 0
        assert reports
