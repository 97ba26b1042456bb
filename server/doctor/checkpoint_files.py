"""Whether a checkpoint's directory is whole, without reading its weights: a safetensors file says how long it must be.

A download that broke off, a shard that is missing and a Git LFS pointer are found; a flipped bit is not.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.spec import ModelSpec, SpecError, read_spec
from server.doctor.capture import Checkpoint

_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100_000_000
_POINTER = b"version https://git-lfs"


def look_at(path: str) -> Checkpoint:
    """The state of one model's directory."""
    directory = Path(path)
    if not directory.is_dir():
        return Checkpoint(path, problems=("there is no such directory",))
    problems = [*_missing(directory), *_of_shards(directory)]
    spec: ModelSpec | None = None
    if (directory / "config.json").is_file():
        try:
            spec = read_spec(directory)
        except SpecError as error:
            problems.append(str(error))
    weights = (*directory.glob("*.safetensors"), *directory.glob("*.gguf"))
    return Checkpoint(path, sum(file.stat().st_size for file in weights), tuple(problems), spec)


def _missing(directory: Path) -> Iterator[str]:
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            yield f"{name} is missing"
    if not any((*directory.glob("*.safetensors"), *directory.glob("*.gguf"))):
        pickled = any((*directory.glob("*.bin"), *directory.glob("*.pth")))
        yield "there are weights as .bin or .pth only: safetensors are read" if pickled else "there are no weights"


def _of_shards(directory: Path) -> Iterator[str]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            yield f"{index.name} cannot be read"
        else:
            missing = sorted(name for name in listed if not (directory / name).is_file())
            if missing:
                yield f"{len(missing)} of {len(listed)} shards are missing, {missing[0]} first"
    for file in sorted(directory.glob("*.safetensors")):
        if problem := _of_shard(file):
            yield f"{file.name} {problem}"


def _of_shard(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        begin = stream.read(_LENGTH.size)
        if _POINTER.startswith(begin) and begin:
            return "is a Git LFS pointer, not the file: git lfs pull"
        length = _LENGTH.unpack(begin)[0] if len(begin) == _LENGTH.size else _LONGEST_HEADER + 1
        if length > _LONGEST_HEADER:
            return "is no safetensors file"
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            return f"is damaged or cut off ({size} bytes)"
    wanted = _LENGTH.size + length + _end(header)
    return "" if size == wanted else f"has {size} bytes where its header tells {wanted}: the download broke off"


def _end(header: dict[str, Any]) -> int:
    return max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
