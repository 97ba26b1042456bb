"""The templates with their functions evaluated, and an instance: a directory in the place of /, stubs of commands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode.cfn_yaml import loads

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "configs/cloudformation"
PSEUDO = {"AWS::Region": "us-west-2", "AWS::Partition": "aws", "AWS::StackName": "stack"}
NOTHING = object()  # AWS::NoValue


@dataclass(frozen=True)
class Template:
    """A template as CloudFormation would evaluate it for `given` parameters; a resource is "<its logical name>"."""

    name: str
    document: dict[str, Any]
    given: Mapping[str, str] = field(default_factory=dict)

    def with_parameters(self, **given: str) -> Template:
        return Template(self.name, self.document, {**self.given, **given})

    @property
    def resources(self) -> dict[str, Any]:
        """Those whose condition holds, evaluated."""
        there = {
            name: resource
            for name, resource in self.document["Resources"].items()
            if "Condition" not in resource or self.holds(resource["Condition"])
        }
        return {name: self.evaluate(resource) for name, resource in there.items()}

    def user_data(self, role: str) -> str:
        """What cloud-init runs on the instance."""
        return str(self.resources[f"{role}Template"]["Properties"]["LaunchTemplateData"]["UserData"])

    def holds(self, condition: str) -> bool:
        return bool(self.evaluate(self.document["Conditions"][condition]))

    def value(self, name: str) -> Any:
        """What Ref gives."""
        if name == "AWS::NoValue":
            return NOTHING
        if name in self.given:
            return self.given[name]
        default = self.document["Parameters"].get(name, {}).get("Default")
        return PSEUDO.get(name, f"<{name}>") if default is None else default

    def evaluate(self, node: Any) -> Any:
        if isinstance(node, list):
            return [value for each in node if (value := self.evaluate(each)) is not NOTHING]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((function, argument),) = node.items()
            if function == "Ref":
                return self.value(argument)
            if function.startswith("Fn::"):
                return self.call(function[4:], argument)
        values = {key: self.evaluate(each) for key, each in node.items()}
        return {key: value for key, value in values.items() if value is not NOTHING}

    def call(self, function: str, argument: Any) -> Any:
        if function == "If":
            return self.evaluate(argument[1 if self.holds(argument[0]) else 2])
        if function == "Sub":
            text, names = (argument, {}) if isinstance(argument, str) else argument
            names = {name: self.evaluate(each) for name, each in names.items()}
            return re.sub(r"\$\{([\w:.]+)\}", lambda found: str(self.named(found[1], names)), text)
        argument = self.evaluate(argument)
        if function == "Equals":
            return argument[0] == argument[1]
        if function == "Not":
            return not argument[0]
        if function == "Select":
            return argument[1][int(argument[0])]
        if function == "Join":
            return argument[0].join(argument[1])
        if function == "Split":
            return argument[1].split(argument[0])
        if function == "FindInMap":
            return self.document["Mappings"][argument[0]][argument[1]][argument[2]]
        if function == "GetAtt":
            return self.named(".".join(argument) if isinstance(argument, list) else argument, {})
        assert function == "Base64", function
        return argument

    def named(self, name: str, names: Mapping[str, Any]) -> Any:
        """What ${name} of Fn::Sub gives."""
        if name in names:
            return names[name]
        if name in self.given:  # also `Resource.Attribute`
            return self.given[name]
        return f"<{name}>" if "." in name else self.value(name)


def load(name: str) -> Template:
    document = loads((FOLDER / f"{name}.yaml").read_text("utf-8"), f"{name}.yaml")
    return Template(name, json.loads(json.dumps(document)))  # plain dictionaries


@pytest.fixture(scope="session", params=["existing-vpc", "new-vpc"])
def template(request: pytest.FixtureRequest) -> Template:
    return load(request.param)


@pytest.fixture(scope="session")
def existing_vpc() -> Template:
    return load("existing-vpc")


# --- an instance ------------------------------------------------------------------------------------------------

TOOLS = (
    *("awk", "bash", "cat", "chmod", "cp", "cut", "date", "dirname", "find", "git", "grep", "gzip", "head", "install"),
    *("ln", "mkdir", "mktemp", "mv", "rm", "sed", "sh", "sha256sum", "sort", "tail", "tar", "tee", "timeout", "tr"),
    *("uname", "xargs"),
)
# Records its call, and fails if that matches the pattern in the file `fail`.
STUB = """#!/bin/sh
echo "${0##*/} $*${HF_TOKEN:+ [HF_TOKEN=$HF_TOKEN]}" >>"$STATE/calls"
wanted=$(cat "$STATE/fail" 2>/dev/null)
case "${0##*/} $*" in $wanted) echo "${0##*/}: it was told to fail" >&2; exit 9 ;; esac
"""
# s3://BUCKET/KEY is a file below $STATE/s3.
AWS = """
place() { case $1 in s3://*) echo "$STATE/s3/${1#s3://}" ;; -) echo /dev/fd/$2 ;; *) echo "$1" ;; esac; }
case $1 in
    s3) to=$(place "$4" 1); [ "$4" = - ] || mkdir -p "${to%/*}"; cat "$(place "$3" 0)" >"$to" ;;
    secretsmanager) cat "$STATE/secret" ;;
esac
"""
# Each question for the state takes a line of $STATE/states, the last one is answered for ever.
SYSTEMCTL = """
case "$*" in
    *ActiveState*) head -n 1 "$STATE/states"
        if [ "$(cat "$STATE/states" | grep -c .)" -gt 1 ]; then sed -i 1d "$STATE/states"; fi ;;
    *StatusText*) echo "loading a-model: weights 43%" ;;
esac
"""
CURL = f"""
case "$*" in
    *//127.0.0.1:8080/health | *//127.0.0.1:3000/) ;;
    *) exec {shutil.which("curl")} "$@" ;;
esac
"""
# What is to happen later happens at the second sleep.
SLEEP = """
echo x >>"$STATE/sleeps"
if [ "$(grep -c . "$STATE/sleeps")" = 2 ] && [ -e "$STATE/later" ]; then sh "$STATE/later"; fi
"""
PYTHON310 = """
mkdir -p "$4/bin"
for name in python neuronx-serve; do cp "$STATE/stub" "$4/bin/$name"; chmod +x "$4/bin/$name"; done
"""


@dataclass
class Signal:
    """What a wait condition was told."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, str]


@dataclass
class Ended:
    """How the user data ended."""

    code: int
    log: str
    signals: list[Signal]
    calls: list[str]

    @property
    def signal(self) -> dict[str, str]:
        (only,) = self.signals
        return only.body


@dataclass
class Instance:
    """A machine that user data runs on: / is `root`, what it must not or cannot do is a stub."""

    root: Path
    state: Path
    tools: Path
    url: str
    signals: list[Signal]

    def fail_at(self, call: str) -> None:
        """Make every call that matches this shell pattern fail."""
        (self.state / "fail").write_text(call)

    def run(self, user_data: str, **environment: str) -> Ended:
        done = subprocess.run(
            ["bash", "-s"],
            input=user_data,
            env={
                "PATH": str(self.tools),
                "NEURONX_SERVE_ROOT": str(self.root),
                "STATE": str(self.state),
                "HOME": str(self.state),
                "GIT_CONFIG_NOSYSTEM": "1",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        calls = (self.state / "calls").read_text().splitlines() if (self.state / "calls").exists() else []
        calls = [line.replace(str(self.root), "").rstrip() for line in calls]
        return Ended(done.returncode, done.stdout + done.stderr, list(self.signals), calls)


class _Handler(BaseHTTPRequestHandler):
    """PUT is a signal, GET a file of the directory."""

    signals: list[Signal]
    directory: Path

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.signals.append(Signal(self.path, dict(self.headers), json.loads(body or b"{}")))
        self._answer(200, b"")

    def do_GET(self) -> None:
        file = self.directory / self.path[1:]
        self._answer(200, file.read_bytes()) if file.is_file() else self._answer(404, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    """An Ubuntu 22.04 just started, with a server on the loopback that takes signals and has `tmp_path/web`."""
    root, state, tools = (tmp_path / name for name in ("root", "state", "tools"))
    for directory in (root / "etc", root / "stubs", state / "s3", tools, tmp_path / "web"):
        directory.mkdir(parents=True)
    (root / "etc/os-release").write_text('VERSION_ID="22.04"\n')
    (state / "states").write_text("activating\nactivating\nactive\n")
    (state / "stub").write_text(STUB)
    for name in TOOLS:
        (tools / name).symlink_to(shutil.which(name) or name)
    (tools / "python3").symlink_to(Path(sys.executable).resolve())
    stub = _stubs_in(tools)
    for name, script in {"aws": AWS, "systemctl": SYSTEMCTL, "curl": CURL, "sleep": SLEEP}.items():
        stub(name, script)
    stub("runuser", 'shift 3; exec "$@"')
    stub("journalctl", "echo the last words of the log")
    for name in ("apt-get", "docker", "shutdown"):
        stub(name, "")
    stub = _stubs_in(root / "stubs")
    for name in (
        "env",
        "apt-get",
        "apt-mark",
        "dpkg",
        "groupadd",
        "modprobe",
        "systemctl",
        "udevadm",
        "useradd",
        "usermod",
    ):
        stub(name, "")
    stub("getent", "exit 2")
    stub("dpkg-query", "exit 1")
    stub("curl", 'while [ "$1" != --output ]; do shift; done; echo KEY >"$2"')
    stub("install", 'for last; do case $last in /*) mkdir -p "$last";; esac; done')
    stub("python3.10", PYTHON310)

    signals: list[Signal] = []
    handler = type("Handler", (_Handler,), {"signals": signals, "directory": tmp_path / "web"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield Instance(root, state, tools, f"http://127.0.0.1:{server.server_port}", signals)
    server.shutdown()
    thread.join()
    server.server_close()


def _stubs_in(directory: Path) -> Callable[[str, str], None]:
    def stub(name: str, script: str) -> None:
        path = directory / name
        path.write_text(f"{STUB}{script}\n")
        path.chmod(0o755)

    return stub


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with what an instance needs of this one, and the tag v1."""
    checkout = tmp_path_factory.mktemp("repository") / "neuronx-serve"
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "server/app.py", "models/worker.py"):
        (checkout / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    environment = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"], [*who, "tag", "v1"]):
        subprocess.run(["git", "-C", str(checkout), *command], check=True, env=environment)
    return checkout
