"""What the transfers talk to: a small Hugging Face Hub on the loopback, and an AWS CLI with directories for buckets."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "c0ffee" + "0" * 34
LARGE = (".safetensors", ".neff")


@dataclass
class Repository:
    """Its files, who may read them, and what the hub says wrongly of them."""

    files: dict[str, bytes] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    claimed_content: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Hub:
    """The hub's repositories, and what was asked of it. `stall` stops a file's body after so many bytes."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    stall: dict[str, int] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def add(self, name: str, files: dict[str, bytes]) -> Repository:
        self.repositories[name] = Repository(dict(files))
        return self.repositories[name]

    def fetched(self) -> list[str]:
        """Names of the files that were fetched, in order."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]

    def ranges(self) -> list[str]:
        """The Range headers that came."""
        return [span for _, _, span in self.requests if span]


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Answering(BaseHTTPRequestHandler):
    """The routes of the hub that huggingface_hub uses for reading and committing."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name = "/".join(path.split("/")[3:5])
        if not path.startswith("/api/models/"):
            self._file()
        elif "/revision/" in path and path.rpartition("/")[2] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {path.rpartition('/')[2]}")
        elif repository := self._readable(name):
            siblings = [self._sibling(repository, file) for file in repository.files]
            self._json({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(("POST", path, ""))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.repositories:
                self._json({"error": "You already created this", "url": f"{self.hub.url}/{name}"}, status=409)
                return
            self.hub.repositories[name] = Repository(private=bool(asked.get("private")))
            self._json({"url": f"{self.hub.url}/{name}"})
            return
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._json({"files": files})
            return
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.hub.repositories[name].files[entry["value"]["path"]] = content
        commit = {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}"}
        self._json(commit)

    def _sibling(self, repository: Repository, name: str) -> dict[str, Any]:
        content = repository.claimed_content.get(name, repository.files[name])
        size = repository.claimed_sizes.get(name, len(content))
        sibling: dict[str, Any] = {"rfilename": name, "size": size, "blobId": git_sha1(content)}
        if name.endswith(LARGE):
            sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
        return sibling

    def _readable(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and "Authorization" not in self.headers):
            self._refuse(401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def _file(self) -> None:
        path = unquote(urlsplit(self.path).path)
        span = self.headers.get("Range", "")
        self.hub.requests.append((self.command, path, span))
        owner, name, _, _, file = path.lstrip("/").split("/", 4)
        repository = self._readable(f"{owner}/{name}")
        if repository is None:
            return
        if repository.gated and "Authorization" not in self.headers:
            self._refuse(401, "GatedRepo", f"Access to model {owner}/{name} is restricted")
            return
        content = repository.files[file]
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{git_sha1(content)}"')
        if file.endswith(LARGE):
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self._send(content[start:], self.hub.stall.get(file))

    def _send(self, content: bytes, stall: int | None) -> None:
        self.wfile.write(content[:stall])
        if stall is not None:
            self.wfile.flush()
            self.hub.ended.wait(60)

    def _json(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str, text: str) -> None:
        body = json.dumps({"error": text}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub; this process and those it starts take it for the real one, with no token."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    running = Hub(f"http://127.0.0.1:{server.server_port}")
    Answering.hub = running
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_ENABLE_HF_TRANSFER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("NEURONX_SERVE_CACHE", str(tmp_path / "cache"))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield running
    running.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


# `aws s3 sync` and `aws s3 cp`, as far as they are used here: s3://bucket/key is a file under $AWS_STUB.
AWS = """#!{python}
import fnmatch, os, shutil, sys
from pathlib import Path

def local(text):
    return Path(os.environ["AWS_STUB"]) / text[len("s3://"):] if text.startswith("s3://") else Path(text)

service, action, source, target, *rest = sys.argv[1:]
assert service == "s3" and rest.pop() == "--only-show-errors"
with open(Path(os.environ["AWS_STUB"]) / "log", "a") as log:
    print(action, source, target, *rest, file=log)
if os.environ.get("AWS_STUB_FAILS"):
    sys.exit("fatal error: An error occurred (AccessDenied)")
rules = list(zip(rest[::2], rest[1::2]))
source, target = local(source), local(target)
files = [source] if action == "cp" else [path for path in sorted(source.rglob("*")) if path.is_file()]
for path in files:
    chosen = True
    for rule, pattern in rules:
        if fnmatch.fnmatchcase(str(path.relative_to(source)), pattern):
            chosen = rule == "--include"
    if chosen:
        to = target if action == "cp" else target / path.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
"""


@dataclass
class Buckets:
    """The stub's buckets, as directories, and the commands it was given."""

    directory: Path

    def commands(self) -> list[str]:
        log = self.directory / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def buckets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Buckets:
    """An `aws` on PATH."""
    programs, directory = tmp_path / "bin", tmp_path / "buckets"
    programs.mkdir()
    directory.mkdir()
    (programs / "aws").write_text(AWS.format(python=sys.executable))
    (programs / "aws").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("AWS_STUB", str(directory))
    return Buckets(directory)
