"""Compiled artifacts: what decides the graphs, and whether a directory of them is whole and the right one.

An artifact is a directory of compiled graphs (`*.neff`) and a manifest, named by the hash of its ingredients. Both
processes read artifacts, so this needs msgspec and the standard library alone. How one is made is models/neuron/
building.py; what is in a graph is the library's business.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from models.protocol import NeuronOptions
from models.spec import ModelSpec

FORMAT = 1
MANIFEST = "manifest.json"
_FILE_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)
_PIECE = 1024 * 1024
_KEY_LENGTH = 20

# What the driver (models/neuron/tnx.py) always asks of the library.
GRAPH_OPTIONS: Mapping[str, str | bool] = {"attention_layout": "BSH", "collectives_layout": "BSH", "fuse_qkv": True}
# Weights are inputs of a graph, so that one artifact serves every fine-tune; of config.json only these are built in.
_SHAPES = ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim", "vocab_size")
_CONSTANTS = ("rope_theta", "rope_scaling", "rms_norm_eps")
# Every other option counts: one that is added later decides the key until it is named here.
_NOT_IN_GRAPHS = frozenset({"artifacts", "compile", "cores"})


class ArtifactError(ValueError):
    """An artifact is missing, damaged or another one; the text says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What turns a model into graphs: package versions, where the library is installed, and variables it obeys.

    The path counts because some releases of the library put the paths of its own files into the graphs. The driver and
    the runtime of the machine do not: they execute graphs that the packages have made.
    """

    versions: Mapping[str, str]
    library_path: str
    variables: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ingredients:
    """Everything that decides the graphs, as (name, JSON text) in the order of the names."""

    entries: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """The name of the artifact: 20 hexadecimal digits of SHA-256."""
        return hashlib.sha256(json.dumps([FORMAT, self.entries]).encode()).hexdigest()[:_KEY_LENGTH]

    def differences(self, other: Ingredients) -> tuple[str, ...]:
        """What is another in `other`, in words: "options.slots is 4 there and 8 here"."""
        here, there = dict(self.entries), dict(other.entries)
        return tuple(
            f"{name} is {there.get(name, 'not set')} there and {here.get(name, 'not set')} here"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        )


class ArtifactFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of an artifact; `size` in bytes."""

    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an artifact says of itself. `model` and `created` (UTC) are for people; the rest is verified."""

    format: int
    key: str
    model: str
    created: str
    ingredients: dict[str, str]
    files: tuple[ArtifactFile, ...]

    @property
    def made_of(self) -> Ingredients:
        """The ingredients, as they are compared."""
        return Ingredients(tuple(sorted(self.ingredients.items())))

    @property
    def size(self) -> int:
        """Bytes of all graphs."""
        return sum(file.size for file in self.files)


def ingredients_of(spec: ModelSpec, options: NeuronOptions, toolchain: Toolchain) -> Ingredients:
    """What decides the graphs of this model with these options and packages."""
    named: dict[str, object] = {f"model.{name}": getattr(spec, name) for name in (*_SHAPES, *_CONSTANTS)}
    named["model.rope_scaling"] = asdict(spec.rope_scaling) if spec.rope_scaling else None
    options_that_count = [name for name in options.__struct_fields__ if name not in _NOT_IN_GRAPHS]
    named.update({f"options.{name}": getattr(options, name) for name in options_that_count})
    named.update({f"library.{name}": value for name, value in GRAPH_OPTIONS.items()})
    named.update({f"version.{name}": value for name, value in toolchain.versions.items()})
    named["library.path"] = toolchain.library_path
    named.update({f"environment.{name}": value for name, value in toolchain.variables.items()})
    return Ingredients(tuple(sorted((name, json.dumps(value, sort_keys=True)) for name, value in named.items())))


# --- where they are ---------------------------------------------------------------------------------------------


def default_store() -> Path:
    """Artifacts of this user: NEURONX_SERVE_CACHE, or neuronx-serve in the user's cache directory, then `artifacts`."""
    if configured := os.environ.get("NEURONX_SERVE_CACHE"):
        cache = Path(configured)
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "neuronx-serve"
    return cache.expanduser().absolute() / "artifacts"


def store_of(options: NeuronOptions) -> Path:
    """The directory of artifacts, or the one artifact, that the option `artifacts` names; "" is the default store."""
    return Path(options.artifacts).expanduser().absolute() if options.artifacts else default_store()


def artifacts_in(store: Path) -> Iterator[Path]:
    """The directories in `store` that have a manifest, or `store` itself if it is an artifact; names in order."""
    if (store / MANIFEST).is_file():
        yield store
    elif store.is_dir():
        yield from sorted(path.parent for path in store.glob(f"[!.]*/{MANIFEST}"))


def resolve(options: NeuronOptions, spec: ModelSpec, toolchain: Toolchain, store: Path, model: str = "MODEL") -> Path:
    """The verified artifact in `store` that is exactly what these would be compiled to.

    ArtifactError otherwise: what the nearest one has otherwise, and the command that makes the right one for `model`
    (an id or a checkpoint directory).
    """
    wanted = ingredients_of(spec, options, toolchain)
    advice = (
        f"Compile it with `neuronx-serve compile {model} --config FILE` (the file that you serve with), or bring it "
        "here with `neuronx-serve artifacts pull SOURCE`"
    )
    there: list[tuple[Path, Manifest]] = []
    for directory in artifacts_in(store):
        try:
            manifest = read_manifest(directory)
            if manifest.made_of == wanted:
                verify(directory)
                return directory
        except ArtifactError as error:
            if directory.name == wanted.key:
                raise ArtifactError(f"{error}. {advice}") from error
            continue  # a broken neighbour is for `artifacts verify` to report
        there.append((directory, manifest))
    raise ArtifactError(f"{_nothing_fits(wanted, store, there)}. {advice}")


def _nothing_fits(wanted: Ingredients, store: Path, there: list[tuple[Path, Manifest]]) -> str:
    missing = f"{store} holds no compiled artifact for this configuration ({wanted.key})"
    if not there:
        return missing
    directory, nearest = min(there, key=lambda each: len(wanted.differences(each[1].made_of)))
    differences = "; ".join(wanted.differences(nearest.made_of))
    return f"{missing}. The nearest, {directory.name} (compiled for {nearest.model}), differs: {differences}"


# --- whether one is whole ---------------------------------------------------------------------------------------


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the artifact, consistent in itself; ArtifactError when it is missing or broken."""
    path = directory / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path} is not a manifest of this version: {error}") from error
    if manifest.format != FORMAT:
        raise ArtifactError(f"{path} has format {manifest.format}, this version reads {FORMAT}: compile again")
    if manifest.made_of.key != manifest.key:
        raise ArtifactError(f"{path} names the key {manifest.key}, but its ingredients give {manifest.made_of.key}")
    for file in manifest.files:
        if not _FILE_NAME.fullmatch(file.name) or file.name == MANIFEST:
            raise ArtifactError(f"{path} lists {file.name!r}, which is not the name of a file in its directory")
    return manifest


def verify(directory: Path) -> Manifest:
    """Read every file of the artifact and compare it with the manifest; ArtifactError names the first that differs."""
    manifest = read_manifest(directory)
    listed = {file.name for file in manifest.files}
    present = {path.name for path in directory.iterdir()} - {MANIFEST}
    if listed != present:
        lacking, strange = sorted(listed - present), sorted(present - listed)
        detail = f"lacks {', '.join(lacking)}" if lacking else f"holds {', '.join(strange)}, which it does not list"
        raise ArtifactError(f"the artifact {directory} {detail}")
    for file in manifest.files:
        found = describe(directory / file.name)
        if found != file:
            raise ArtifactError(
                f"the artifact {directory} is damaged: {file.name} has {found.size} bytes with SHA-256 "
                f"{found.sha256}, its manifest says {file.size} with {file.sha256}"
            )
    return manifest


def describe(path: Path) -> ArtifactFile:
    """Name, size and SHA-256 of a file, read once."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return ArtifactFile(path.name, size, digest.hexdigest())
