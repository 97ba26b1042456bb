"""Puts artifacts into a store: whole ones appear by one rename, whatever is killed and whenever.

Work in progress lives in `.work/NAME` of the store, under a lock that ends with its process. Whole files in there are
kept for the next attempt; files half written, and work that nobody took up again, are removed. Knows no library.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from models.neuron.artifacts import FORMAT, MANIFEST, ArtifactError, Ingredients, Manifest, describe, verify

WORK = ".work"
_PARTIAL = ".partial"
_ABANDONED_S = 14 * 24 * 3600.0


class Build:
    """The graphs of one artifact that is being made; those of an attempt that was killed are already in it."""

    def __init__(self, store: Path, directory: Path, wanted: Ingredients) -> None:
        self._store = store
        self._directory = directory
        self._wanted = wanted

    def graph(self, name: str) -> bytes | None:
        """A graph that is already compiled; None when it is not."""
        path = self._directory / name
        return path.read_bytes() if path.is_file() else None

    def add(self, name: str, content: bytes) -> None:
        """Keep one compiled graph, whatever happens from now on."""
        _write(self._directory / name, content)

    def publish(self, names: set[str], model: str) -> Path:
        """Make the graphs `names` the artifact and answer its directory; what else lay in the work is removed."""
        for path in self._directory.iterdir():
            if path.name not in names:
                path.unlink()
        manifest = Manifest(
            format=FORMAT,
            key=self._wanted.key,
            model=model,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            ingredients=dict(self._wanted.entries),
            files=tuple(describe(self._directory / name) for name in sorted(names)),
        )
        _write(self._directory / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        return place(self._directory, self._store / manifest.key)


@contextmanager
def building(store: Path, wanted: Ingredients) -> Iterator[Build]:
    """The work on the artifact of `wanted`; ArtifactError while another process is at it."""
    with work_in(store, wanted.key) as directory:
        yield Build(store, directory, wanted)


@contextmanager
def work_in(store: Path, name: str) -> Iterator[Path]:
    """A directory of the store for unfinished work, kept when it fails; ArtifactError while another process has it."""
    directory = store / WORK / name
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(store)
    with _lock(directory) as locked:
        if not locked:
            raise ArtifactError(f"another process is at work in {directory}: wait for it, or stop it")
        directory.mkdir(exist_ok=True)
        for partial in directory.glob(f"*{_PARTIAL}"):
            partial.unlink()
        os.utime(directory)
        yield directory
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def unfinished(store: Path) -> Iterator[tuple[str, int]]:
    """(name, whole files) of each piece of work that waits to be taken up again."""
    for directory in _works(store):
        yield directory.name, sum(1 for path in directory.rglob("*") if path.is_file() and path.suffix != _PARTIAL)


def install(source: Path, store: Path) -> Path:
    """Copy a verified artifact into `store`; its directory there, as it is if it was there whole."""
    manifest = verify(source)
    target = store / manifest.key
    if is_whole(target):
        return target
    with work_in(store, f"copy-{manifest.key}") as directory:
        for file in (*(each.name for each in manifest.files), MANIFEST):
            if not (directory / file).is_file():
                _write(directory / file, (source / file).read_bytes())
        if not is_whole(directory):  # of an attempt before, when another artifact was in `source`
            shutil.rmtree(directory)
            raise ArtifactError(f"the copy of {source} is not whole: copy again")
        return place(directory, target)


def place(finished: Path, target: Path) -> Path:
    """Rename a verified artifact to `target`; a damaged one that is there goes, a whole one stays.

    A kill in between leaves `finished` where it was, to be placed by the next attempt.
    """
    if is_whole(target):
        shutil.rmtree(finished)
        return target
    if target.exists():
        shutil.rmtree(target)
    finished.rename(target)
    _sync(target.parent)
    return target


def is_whole(directory: Path) -> bool:
    """Whether there is an artifact with every file in order."""
    try:
        verify(directory)
    except ArtifactError:
        return False
    return True


def _write(path: Path, content: bytes) -> None:
    """The file is there whole or not at all, also after a loss of power."""
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(path)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _lock(directory: Path) -> Iterator[bool]:
    """Whether this process is the only one at work in `directory`.

    A record lock: compilers are forked from this process, and must not keep the lock when it is killed.
    """
    with directory.with_name(f".{directory.name}.lock").open("w") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _works(store: Path) -> list[Path]:
    return sorted(path for path in (store / WORK).glob("[!.]*") if path.is_dir())


def _remove_abandoned(store: Path) -> None:
    """Remove work that nobody has taken up for two weeks."""
    oldest = time.time() - _ABANDONED_S
    for directory in _works(store):
        if directory.stat().st_mtime > oldest:
            continue
        with _lock(directory) as locked:
            if locked:
                shutil.rmtree(directory)
