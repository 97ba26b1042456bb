"""Checkpoint readers: one tensor at a time, under its Hugging Face name, from safetensors or GGUF files.

The headers are checked against the ModelSpec before a single weight is read. Knows no backend and no dtype policy: a
tensor comes as it is stored (GGUF blocks as the float32 numbers they stand for).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

SAFETENSORS_DTYPES = frozenset({"F32", "F16", "BF16"})
_HEADER_LIMIT = 100 * 1024 * 1024
_WARM_PIECE = 8 * 1024 * 1024

# Present in some checkpoints and computed here: the rotary frequencies, and the head where it is tied.
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


class CheckpointError(ValueError):
    """The files do not hold the model that config.json describes; the text names the file and the tensor."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One stored tensor: `shape` as Hugging Face has it (linears are (out, in)), `bytes` in the file."""

    file: Path
    shape: tuple[int, ...]
    bytes: int


class Checkpoint(Protocol):
    """An open checkpoint; use it as a context manager, since tensors may be views of mapped files."""

    entries: Mapping[str, TensorEntry]

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name`, shaped as its entry says; float32, float16 or bfloat16. It may be a view of the file."""

    def __enter__(self) -> Checkpoint: ...
    def __exit__(self, *exception: object) -> None: ...


def open_checkpoint(directory: Path, spec: ModelSpec) -> Checkpoint:
    """The checkpoint in `directory`, its headers verified against `spec`; CheckpointError if they do not fit."""
    files = _safetensors_files(directory)
    checkpoint: Checkpoint = SafetensorsCheckpoint(files) if files else GgufCheckpoint(_gguf_file(directory), spec)
    verify(checkpoint.entries, spec)
    return checkpoint


def verify(entries: Mapping[str, TensorEntry], spec: ModelSpec) -> None:
    """CheckpointError unless `entries` are exactly the tensors of `spec`, in its shapes."""
    shapes = spec.tensor_shapes()
    missing = [name for name in shapes if name not in entries]
    if missing:
        raise CheckpointError(f"the checkpoint lacks {_listed(missing)}, which config.json calls for")
    for name, shape in shapes.items():
        if entries[name].shape != shape:
            found = entries[name]
            raise CheckpointError(f"{found.file}: {name} is {found.shape}, config.json makes it {shape}")
    # An unknown tensor (a bias, a query norm) means an architecture that would be computed wrongly without it.
    surplus = [name for name in entries if name not in shapes and not _COMPUTED.fullmatch(name)]
    surplus = [name for name in surplus if not (spec.tied and name == "lm_head.weight")]
    if surplus:
        raise CheckpointError(f"the checkpoint holds {_listed(surplus)}, which a {spec.architecture} does not have")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more tensors" if len(names) > 3 else "")


# --- safetensors -----------------------------------------------------------------------------------------------------


class SafetensorsCheckpoint:
    """One or more safetensors files, mapped; a tensor's pages are read when it is."""

    def __init__(self, files: Iterable[Path]) -> None:
        entries: dict[str, TensorEntry] = {}
        for file in files:
            for name, entry in _safetensors_entries(file):
                if name in entries:
                    raise CheckpointError(f"{name} is in {entries[name].file} and again in {file}")
                entries[name] = entry
        self.entries: Mapping[str, TensorEntry] = entries
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    def read(self, name: str) -> torch.Tensor:
        from safetensors import SafetensorError

        file = self.entries[name].file
        try:
            if file not in self._open:
                self._open[file] = self._stack.enter_context(_map_safetensors(file))
            tensor: torch.Tensor = self._open[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: {name} cannot be read: {error}") from error
        return tensor

    def __enter__(self) -> SafetensorsCheckpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.clear()
        self._stack.close()


def _map_safetensors(file: Path) -> AbstractContextManager[Any]:
    from safetensors import safe_open

    mapped: AbstractContextManager[Any] = safe_open(file, framework="pt", device="cpu")
    return mapped


def _safetensors_files(directory: Path) -> list[Path]:
    """The files of the index, or the single file; empty when there is neither."""
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        single = directory / "model.safetensors"
        return [single] if single.exists() else []
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [directory / str(name) for name in sorted(set(weight_map.values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index: {error!r}") from error
    absent = [file.name for file in files if not file.exists()]
    if absent:
        raise CheckpointError(f"{directory} lacks {_listed(absent)} of {index.name}: the download is incomplete")
    return files


def _safetensors_entries(file: Path) -> Iterator[tuple[str, TensorEntry]]:
    """Reads the header alone: a little-endian u64 length, then JSON (the safetensors format)."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= _HEADER_LIMIT:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(stream.read(length))
            held = os.fstat(stream.fileno()).st_size - 8 - length
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        if tensor["dtype"] not in SAFETENSORS_DTYPES:
            raise CheckpointError(f"{file}: {name} is {tensor['dtype']}; supported are F32, F16 and BF16")
        start, end = tensor["data_offsets"]
        if end > held:
            raise CheckpointError(f"{file} ends inside {name}: the download is incomplete")
        yield name, TensorEntry(file, tuple(tensor["shape"]), end - start)


# --- GGUF ------------------------------------------------------------------------------------------------------------

_GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class GgufCheckpoint:
    """One GGUF file of the llama architecture; blocks are dequantised to the float32 numbers they stand for."""

    def __init__(self, file: Path, spec: ModelSpec) -> None:
        from gguf import GGUFReader

        try:
            self._tensors = {hugging_face_name(tensor.name): tensor for tensor in GGUFReader(file).tensors}
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} is not a GGUF file: {error}") from error
        # GGUF lists the fastest dimension first.
        self.entries: Mapping[str, TensorEntry] = {
            name: TensorEntry(file, tuple(int(size) for size in reversed(tensor.shape)), int(tensor.n_bytes))
            for name, tensor in self._tensors.items()
        }
        self._heads = {"q_proj": spec.heads, "k_proj": spec.kv_heads}

    def read(self, name: str) -> torch.Tensor:
        import numpy as np
        import torch
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        numbers = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        heads = self._heads.get(name.split(".")[-2])
        if heads is not None:
            # llama.cpp interleaves the two halves of each head that the rotary embedding turns; undo it.
            rows = numbers.shape[0]
            numbers = numbers.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(numbers.shape)
        return torch.from_numpy(np.array(numbers, copy=True))

    def __enter__(self) -> GgufCheckpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self._tensors = {}


def hugging_face_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; an unknown name stays, for `verify` to refuse."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if layer and layer[2] in _GGUF_LAYER_NAMES:
        return f"model.layers.{layer[1]}.{_GGUF_LAYER_NAMES[layer[2]]}.{layer[3]}"
    stem, _, kind = name.rpartition(".")
    return f"{_GGUF_NAMES[stem]}.{kind}" if stem in _GGUF_NAMES else name


def _gguf_file(directory: Path) -> Path:
    files = sorted(directory.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(f"{directory} holds {len(files)} GGUF files; leave the one to load")
    raise CheckpointError(f"{directory} holds no *.safetensors and no GGUF file (pickled .bin files are not read)")


# --- page cache ------------------------------------------------------------------------------------------------------


def warm_page_cache(entries: Mapping[str, TensorEntry], budget: int, progress: Callable[[int, int], None]) -> int:
    """Read the checkpoint's files once, up to `budget` bytes, so that the load finds them in memory.

    Answers the bytes read: 0 when the budget is under a quarter of the checkpoint, where warming would only evict
    what the rest needs. `progress` gets (bytes done, bytes in all).
    """
    files = sorted({entry.file for entry in entries.values()})
    total = sum(file.stat().st_size for file in files)
    wanted = min(total, budget)
    if wanted * 4 < total:
        return 0
    done = 0
    buffer = bytearray(_WARM_PIECE)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while done < wanted and (count := stream.readinto(buffer)):
                done += count
                progress(min(done, wanted), wanted)
    return done
