"""Scripts in front of commands that only record how they were called, with real directories behind them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
_RECORD = '#!/bin/sh\necho "${0##*/} $*" >>"$RECORD"\n'
# Fails once at the call that the file `fail` beside the stubs names, as a command does that is interrupted.
_FAIL = (
    'wanted=$(cat "${0%/*}/../fail" 2>/dev/null)\ncase "${0##*/} $*" in $wanted) rm "${0%/*}/../fail"; exit 9;; esac\n'
)


@dataclass(frozen=True, slots=True)
class Machine:
    """A directory in the place of /, whose commands are stubs, and a small checkout to install from."""

    root: Path
    checkout: Path

    @property
    def calls(self) -> list[str]:
        """What has been called since `forget`, in order."""
        record = self.root / "record"
        lines = record.read_text().splitlines() if record.exists() else []
        return [line.replace(str(self.root), "") for line in lines]

    def forget(self) -> None:
        """Start the record of calls anew."""
        (self.root / "record").unlink(missing_ok=True)

    def stub(self, name: str, script: str = "") -> None:
        """A command of the system: records its call, fails if it is told to, then does this."""
        path = self.root / "stubs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{_RECORD}{_FAIL}{script}\n")
        path.chmod(0o755)

    def fail_at(self, call: str) -> None:
        """Make the next call that matches this shell pattern fail, once."""
        (self.root / "fail").write_text(call)

    def files(self) -> dict[str, str]:
        """What is below the root, by path: "->target" of links, "/" of directories, else the content."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if name.split("/")[0] in ("stubs", "record", "fail"):
                continue
            found[name] = f"->{path.readlink()}" if path.is_symlink() else "/" if path.is_dir() else path.read_text()
        return found

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run scripts/install-inf2 on it."""
        return subprocess.run(
            ["bash", str(self.checkout / "scripts/install-inf2"), "--root", str(self.root), *arguments],
            env={"PATH": "/usr/bin:/bin", "RECORD": str(self.root / "record"), "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A plain Ubuntu 22.04: no packages of Neuron, no user, no group."""
    made = Machine(root=tmp_path / "root", checkout=tmp_path / "checkout")
    _make_checkout(made.checkout)
    (made.root / "etc").mkdir(parents=True)
    (made.root / "etc/os-release").write_text('NAME="Ubuntu"\nVERSION_ID="22.04"\n')
    for name in ("env", "apt-get", "apt-mark", "modprobe", "groupadd", "useradd", "usermod", "userdel", "udevadm"):
        made.stub(name)
    made.stub("dpkg")
    made.stub("systemctl")
    made.stub("getent", "exit 2")
    made.stub("dpkg-query", "exit 1")
    made.stub("curl", 'while [ "$1" != --output ]; do shift; done; echo KEY >"$2"')
    made.stub("install", 'for last; do case $last in /*) mkdir -p "$last";; esac; done')
    python = '#!/bin/sh\\necho "python $*" >>"$RECORD"\\n' + _FAIL.replace("${0%/*}/..", str(made.root)).replace(
        "\n", "\\n"
    )
    made.stub("python3.10", f'mkdir -p "$4/bin"; printf %b \'{python}\' >"$4/bin/python"; chmod +x "$4/bin/python"')
    return made


def _make_checkout(checkout: Path) -> None:
    for name in ("scripts/install-inf2", "pyproject.toml", "configs/inf2.toml"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, checkout / name)
    for name in ("server/app.py", "models/worker.py", "configs/systemd/neuronx-serve.service"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(f"# {name}\n")
