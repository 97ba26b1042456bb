"""Brings a checkpoint from the Hugging Face Hub: safetensors and what a server reads beside them, every byte verified.

The directory of the model appears in one rename once everything in it has the hash that the hub names; an interrupted
download goes on where it was.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from server.transfer.hub import TransferError, hub_errors

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SOURCE = "source.json"
INCOMING = ".incoming"
# Of the repository's top level only: the originals of some models lie in a folder, or beside as consolidated.*.
WANTED = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|added_tokens\.json|chat_template\.(jinja|json)|model[^/]*\.safetensors|model\.safetensors\.index\.json"
)
REQUIRED = ("config.json", "tokenizer.json")
_SPARE = 1_000_000_000  # bytes left free for whatever else this disk is for
_PIECE = 1024 * 1024
_POLL_S = 0.5

# (phase, bytes done, bytes in all)
ProgressCallback = Callable[[str, int, int], None]


class HubFile(msgspec.Struct, frozen=True):
    """A file of the hub. Large ones have a SHA-256; small ones git's SHA-1, which covers their length too."""

    name: str
    size: int
    sha256: str
    git_sha1: str


class Snapshot(msgspec.Struct, frozen=True):
    """What is pulled of one commit of a repository."""

    id: str
    revision: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Pulled:
    """The model's directory, and whether it had to be fetched."""

    directory: Path
    fetched: bool


def read_snapshot(client: HfApi, model: str, revision: str | None) -> Snapshot:
    """The files of `model` that a server needs; TransferError when it cannot be seen or lacks one."""
    with hub_errors(client, model):
        found = client.model_info(model, revision=revision, files_metadata=True)
    files = tuple(
        HubFile(
            name=sibling.rfilename,
            size=sibling.size or 0,
            sha256=sibling.lfs.sha256 if sibling.lfs else "",
            git_sha1=sibling.blob_id or "",
        )
        for sibling in found.siblings or ()
        if WANTED.fullmatch(sibling.rfilename)
    )
    lacking = [name for name in REQUIRED if name not in {file.name for file in files}]
    if not any(file.name.endswith(".safetensors") for file in files):
        lacking.append("weights as model*.safetensors")
    if lacking:
        raise TransferError(f"{model} cannot be served: it lacks {', '.join(lacking)}")
    return Snapshot(model, found.sha or "", files)


def pull(client: HfApi, snapshot: Snapshot, target: Path, progress: ProgressCallback) -> Pulled:
    """Make `target` the snapshot's directory. TransferError when it is something else, or the files are not right."""
    if target.exists():
        _check_same(snapshot, target)
        if wrong := _wrong_files(snapshot, target, progress):
            raise TransferError(f"{target} is damaged ({', '.join(wrong)}): remove it and pull again")
        return Pulled(target, fetched=False)
    incoming = target.parent / INCOMING / target.name
    incoming.mkdir(parents=True, exist_ok=True)
    _check_space(snapshot, incoming)
    with _watched(incoming, snapshot.size, progress):
        for file in sorted(snapshot.files, key=lambda file: file.size):
            with hub_errors(client, snapshot.id):
                client.hf_hub_download(snapshot.id, file.name, revision=snapshot.revision, local_dir=incoming)
    if wrong := _wrong_files(snapshot, incoming, progress):
        for name in wrong:
            (incoming / name).unlink(missing_ok=True)
        raise TransferError(
            f"{', '.join(wrong)} of {snapshot.id} came with another hash than the hub names, and was removed: pull "
            "again, the other files are kept"
        )
    shutil.rmtree(incoming / ".cache", ignore_errors=True)  # the package's own notes on unfinished files
    (incoming / SOURCE).write_bytes(msgspec.json.format(msgspec.json.encode(snapshot), indent=2) + b"\n")
    incoming.rename(target)
    return Pulled(target, fetched=True)


def _check_same(snapshot: Snapshot, target: Path) -> None:
    try:
        there = msgspec.json.decode((target / SOURCE).read_bytes(), type=Snapshot)
    except (OSError, msgspec.DecodeError) as error:
        raise TransferError(f"{target} is there and was not pulled: choose another directory with --name") from error
    if (there.id, there.revision) != (snapshot.id, snapshot.revision):
        raise TransferError(
            f"{target} holds {there.id} at revision {there.revision}, not {snapshot.id} at {snapshot.revision}: remove "
            "it, or choose another directory with --name"
        )


def _check_space(snapshot: Snapshot, incoming: Path) -> None:
    """Before anything is fetched; what an interrupted pull has left counts as there."""
    needed = max(0, snapshot.size - _bytes_in(incoming)) + _SPARE
    free = shutil.disk_usage(incoming).free
    if needed > free:
        raise TransferError(
            f"{snapshot.id} needs {needed / 1e9:.1f} GB more on the disk of {incoming.parent.parent} (1 GB of it to "
            f"spare), which has {free / 1e9:.1f} GB free: make room, or set NEURONX_SERVE_CACHE to another disk"
        )


def _wrong_files(snapshot: Snapshot, directory: Path, progress: ProgressCallback) -> list[str]:
    """The names of the files that are missing or do not have the hub's hash."""
    done, wrong = 0, []
    progress("verifying", 0, snapshot.size)
    for file in snapshot.files:
        if not _is_right(directory / file.name, file):
            wrong.append(file.name)
        done += file.size
        progress("verifying", done, snapshot.size)
    return wrong


def _is_right(path: Path, file: HubFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    # Git's name of a file: SHA-1 over a header with the length, then the content.
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest() == (file.sha256 or file.git_sha1)


@contextmanager
def _watched(directory: Path, total: int, progress: ProgressCallback) -> Iterator[None]:
    """Report the bytes in `directory` while files are fetched into it: the package itself reports only one by one."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            progress("downloading", min(_bytes_in(directory), total), total)

    progress("downloading", min(_bytes_in(directory), total), total)
    watcher = threading.Thread(target=watch, name="download-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    progress("downloading", total, total)


def _bytes_in(directory: Path) -> int:
    """What is there of the files, finished or not (".incomplete"); they may be renamed meanwhile."""
    size = 0
    for path in directory.rglob("*"):
        if WANTED.fullmatch(path.name) or path.suffix == ".incomplete":
            with suppress(FileNotFoundError):
                size += path.stat().st_size
    return size
