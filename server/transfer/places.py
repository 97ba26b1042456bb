"""Where artifacts travel to and from: a directory, an S3 prefix by the AWS CLI, a repository of the Hugging Face Hub.

A place answers with steps that can be shown before they are run. Whether what came is whole is decided by the store
(models/neuron/building.py) when it takes it in.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copytree, which
from typing import Protocol

from models.neuron.artifacts import MANIFEST, artifacts_in
from models.neuron.building import install
from server.transfer.hub import TransferError, hub_client, hub_errors

_GRAPHS = "*.neff"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, in words or as a command line."""

    text: str
    run: Callable[[], object]


class Place(Protocol):
    """Another home of artifacts."""

    def push(self, artifact: Path) -> Sequence[Step]:
        """Put one verified artifact there; nobody can see it before it is whole."""

    def pull(self, keys: Sequence[str], known: Sequence[str], into: Path) -> Sequence[Step]:
        """Fetch the artifacts `keys` (none named: all but `known`) as directories of `into`; again after a break."""


def place_at(address: str) -> Place:
    """The place that an address names: s3://bucket/prefix, hf://owner/name, or a directory."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return DirectoryPlace(Path(address).expanduser().absolute())
    if scheme == "s3" and rest.strip("/"):
        return BucketPlace(f"s3://{rest.strip('/')}")
    if scheme == "hf" and rest.count("/") == 1 and all(rest.split("/")):
        return HubPlace(rest)
    raise TransferError(
        f"{address!r} is no place for artifacts: allowed are a directory, s3://BUCKET/PREFIX, hf://OWNER/NAME"
    )


@dataclass(frozen=True, slots=True)
class DirectoryPlace:
    """A directory of artifacts, for example on a shared disk."""

    directory: Path

    def push(self, artifact: Path) -> Sequence[Step]:
        return [
            Step(f"copy {artifact} to {self.directory / artifact.name}", partial(install, artifact, self.directory))
        ]

    def pull(self, keys: Sequence[str], known: Sequence[str], into: Path) -> Sequence[Step]:
        there = list(artifacts_in(self.directory))
        wanted = [path for path in there if (path.name in keys if keys else path.name not in known)]
        return [
            Step(f"copy {path} to {into / path.name}", partial(copytree, path, into / path.name, dirs_exist_ok=True))
            for path in wanted
        ]


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """A prefix in S3. The manifest goes last, so that an artifact without one is not there yet."""

    prefix: str

    def push(self, artifact: Path) -> Sequence[Step]:
        target = f"{self.prefix}/{artifact.name}"
        return [
            _aws("sync", str(artifact), target, "--exclude", MANIFEST),
            _aws("cp", str(artifact / MANIFEST), f"{target}/{MANIFEST}"),
        ]

    def pull(self, keys: Sequence[str], known: Sequence[str], into: Path) -> Sequence[Step]:
        if keys:
            return [_aws("sync", f"{self.prefix}/{key}", str(into / key)) for key in keys]
        chosen = ["--exclude", "*", "--include", f"*/{MANIFEST}", "--include", f"*/{_GRAPHS}"]
        for key in known:
            chosen += ["--exclude", f"{key}/*"]
        return [_aws("sync", self.prefix, str(into), *chosen)]


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A repository of the hub; an artifact is a folder of it, made in one commit."""

    repository: str

    def push(self, artifact: Path) -> Sequence[Step]:
        return [Step(f"upload {artifact} to hf://{self.repository}/{artifact.name}", partial(self._upload, artifact))]

    def pull(self, keys: Sequence[str], known: Sequence[str], into: Path) -> Sequence[Step]:
        patterns = [f"{key}/{name}" for key in keys or ["*"] for name in (MANIFEST, _GRAPHS)]
        text = f"download {' '.join(patterns)} of hf://{self.repository} to {into}"
        return [Step(text, partial(self._download, patterns, known, into))]

    def _upload(self, artifact: Path) -> None:
        client = hub_client()
        with hub_errors(client, self.repository):
            # One that is there stays as it is; a new one is private until its owner decides otherwise.
            client.create_repo(self.repository, private=True, exist_ok=True)
            client.upload_folder(
                repo_id=self.repository,
                folder_path=artifact,
                path_in_repo=artifact.name,
                commit_message=f"Add the compiled artifact {artifact.name}",
            )

    def _download(self, patterns: Sequence[str], known: Sequence[str], into: Path) -> None:
        client = hub_client()
        with hub_errors(client, self.repository):
            client.snapshot_download(
                self.repository,
                local_dir=into,
                allow_patterns=list(patterns),
                ignore_patterns=[f"{key}/*" for key in known],
            )


def _aws(*arguments: str) -> Step:
    command = ["aws", "s3", *arguments, "--only-show-errors"]
    return Step(shlex.join(command), partial(_run, command))


def _run(command: Sequence[str]) -> None:
    if which(command[0]) is None:
        raise TransferError("the AWS CLI (`aws`) is not on PATH: install it, and see that `aws s3 ls` works")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise TransferError(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
