"""`neuronx-serve artifacts`: list, verify, send and fetch the compiled artifacts of Neuron models."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from models.neuron.artifacts import ArtifactError, artifacts_in, default_store, read_manifest, store_of, verify
from models.neuron.building import place, unfinished, work_in
from models.protocol import NeuronOptions
from server.commands import refuse, settings_of
from server.commands.terminal import size
from server.errors import ConfigurationError
from server.transfer.hub import TransferError
from server.transfer.places import Step, place_at

DESCRIPTION = "List, verify, send and fetch the compiled artifacts of Neuron models."
PLACES = "a directory, s3://BUCKET/PREFIX (by the AWS CLI) or hf://OWNER/NAME (by huggingface_hub)"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The actions, each with its own flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in (
        ("list", "what is in the store, and what waits there to be finished"),
        ("verify", "read every file and compare it with the manifests"),
        ("push", "send verified artifacts to another place"),
        ("pull", "fetch artifacts from another place and verify them"),
    ):
        action = actions.add_parser(name, help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False)
        action.add_argument(
            "--config", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="whose store is meant"
        )
        action.add_argument(
            "--store", type=Path, metavar="DIR", help="directory of artifacts (default: the model cache's)"
        )
        if name in ("push", "pull"):
            action.add_argument("place", metavar="DEST" if name == "push" else "SOURCE", help=PLACES)
            action.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
        if name != "list":
            action.add_argument("keys", nargs="*", metavar="KEY", help="artifacts by name (default: all)")


def run(arguments: argparse.Namespace) -> int:
    """0 when all is well; 1 when an artifact is damaged or could not be moved; 130 when interrupted."""
    store = _store(arguments)
    try:
        if arguments.action == "list":
            return list_artifacts(store)
        if arguments.action == "verify":
            return verify_artifacts(_chosen(store, arguments.keys))
        if arguments.action == "push":
            return push(_chosen(store, arguments.keys), arguments.place, arguments.dry_run)
        return pull(store, arguments.place, arguments.keys, arguments.dry_run)
    except (ArtifactError, TransferError) as error:
        return refuse(error, 1)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from there", file=sys.stderr)
        return 128 + signal.SIGINT


def list_artifacts(store: Path) -> int:
    """One line an artifact: key, model, graphs, size, when it was made; then what is unfinished."""
    code = 0
    for directory in artifacts_in(store):
        try:
            manifest = read_manifest(directory)
        except ArtifactError as error:
            code = refuse(error, 1)
            continue
        graphs = f"{len(manifest.files)} graphs"
        print(f"{directory.name}\t{manifest.model}\t{graphs}\t{size(manifest.size)}\t{manifest.created}")
    for name, files in unfinished(store):
        print(f"{name}\tunfinished: {files} files wait for the command to be given again")
    return code


def verify_artifacts(artifacts: Sequence[Path]) -> int:
    """Say of each whether it is whole; 1 when one is not."""
    code = 0
    for directory in artifacts:
        try:
            manifest = verify(directory)
        except ArtifactError as error:
            code = refuse(error, 1)
        else:
            print(f"{directory.name}\twhole, {len(manifest.files)} graphs, {size(manifest.size)}")
    return code


def push(artifacts: Sequence[Path], destination: str, dry_run: bool) -> int:
    """Send each artifact, once it is verified."""
    target = place_at(destination)
    for directory in artifacts:
        verify(directory)
        _follow(target.push(directory), dry_run)
        if not dry_run:
            print(f"{directory.name}\tis at {destination}")
    return 0


def pull(store: Path, source: str, keys: Sequence[str], dry_run: bool) -> int:
    """Fetch what is not here yet, verify it and put it into the store, each artifact by one rename."""
    known = [directory.name for directory in artifacts_in(store)]
    if missing := [key for key in keys if not _is_key(key)]:
        raise TransferError(f"{', '.join(missing)}: the name of an artifact is 20 hexadecimal digits")
    work = f"pull-{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    if dry_run:
        _follow(place_at(source).pull(keys, known, store / ".work" / work), dry_run=True)
        return 0
    store.mkdir(parents=True, exist_ok=True)
    with work_in(store, work) as incoming:
        _follow(place_at(source).pull(keys, known, incoming), dry_run=False)
        arrived = list(artifacts_in(incoming))
        damaged = [directory for directory in arrived if not _take_in(directory, store)]
        shutil.rmtree(incoming)
    if lacking := set(keys) - {directory.name for directory in arrived}:
        raise TransferError(f"{source} does not hold {', '.join(sorted(lacking))}")
    if not arrived:
        if not known:
            raise TransferError(f"{source} holds no artifact")
        print(f"{source} holds none that is not here", file=sys.stderr)
    return 1 if damaged else 0


def _take_in(directory: Path, store: Path) -> bool:
    """Put what has arrived into the store if it is whole; else say what is wrong with it."""
    try:
        manifest = verify(directory)
    except ArtifactError as error:
        refuse(error, 1)
        return False
    place(directory, store / manifest.key)
    print(f"{manifest.key}\t{manifest.model}\t{size(manifest.size)}\twhole")
    return True


def _follow(steps: Sequence[Step], dry_run: bool) -> None:
    for step in steps:
        if dry_run:
            print(step.text)
        else:
            print(step.text, file=sys.stderr)
            step.run()


def _is_key(text: str) -> bool:
    return len(text) == 20 and all(digit in "0123456789abcdef" for digit in text)


def _chosen(store: Path, keys: Sequence[str]) -> list[Path]:
    """The artifacts that the keys, or their beginnings, name; all when there are none."""
    there = list(artifacts_in(store))
    for key in keys:
        if not any(directory.name.startswith(key) for directory in there):
            raise ArtifactError(f"{store} holds no artifact {key}")
    if not there:
        raise ArtifactError(f"{store} holds no artifact")
    return [directory for directory in there if not keys or directory.name.startswith(tuple(keys))]


def _store(arguments: argparse.Namespace) -> Path:
    """--store; or the one directory that the Neuron models of --config use; or the model cache's."""
    if arguments.store:
        return Path(arguments.store).expanduser().absolute()
    if not arguments.config:
        return default_store()
    devices = [model.device for model in settings_of(arguments).models]
    stores = {store_of(device) for device in devices if isinstance(device, NeuronOptions)}
    if len(stores) > 1:
        raise ConfigurationError(f"the models keep artifacts in {len(stores)} places: choose one with --store")
    return stores.pop() if stores else default_store()
