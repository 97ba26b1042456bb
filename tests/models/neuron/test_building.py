"""Artifacts appear whole or not at all: a process is killed at every operation on a file that it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.neuron.artifacts import MANIFEST, ArtifactError, Ingredients, artifacts_in, verify
from models.neuron.building import WORK, building, install, is_whole, unfinished, work_in

WANTED = Ingredients((("options.slots", "4"),))
GRAPHS = {"a.neff": b"first graph", "b.neff": b"second graph"}

# Makes an artifact (or copies one), and dies at its n-th operation on a file of the store.
KILLED = """
import os, signal, sys
from pathlib import Path
from models.neuron.artifacts import Ingredients
from models.neuron.building import building, install

store, source, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
operations = 0

def hook(event, arguments):
    global operations
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime"):
        if str(arguments[0]).startswith(str(store)):
            operations += 1
            if operations == at:
                os.kill(os.getpid(), signal.SIGKILL)

graphs = {"a.neff": b"first graph", "b.neff": b"second graph"}
sys.addaudithook(hook)
if source:
    install(Path(source), store)
else:
    with building(store, Ingredients((("options.slots", "4"),))) as build:
        for name, content in graphs.items():
            if build.graph(name) is None:
                build.add(name, content)
        build.publish(set(graphs), "org/tiny")
"""


def make(store: Path, graphs: dict[str, bytes] = GRAPHS) -> Path:
    with building(store, WANTED) as build:
        for name, content in graphs.items():
            build.add(name, content)
        return build.publish(set(graphs), "org/tiny")


def run_killed(store: Path, at: int, source: str = "") -> int:
    return subprocess.run([sys.executable, "-c", KILLED, str(store), source, str(at)], check=False).returncode


@pytest.mark.long
@pytest.mark.parametrize("damaged", [False, True], ids=["nothing there", "a damaged one there"])
@pytest.mark.parametrize("copied", [False, True], ids=["made", "copied"])
def test_a_kill_at_any_moment_leaves_a_whole_artifact_or_none(tmp_path: Path, copied: bool, damaged: bool) -> None:
    source = str(make(tmp_path / "source")) if copied else ""
    for at in range(1, 200):
        store = tmp_path / f"store-{at}"
        if damaged:
            (make(store) / "a.neff").write_bytes(b"not a graph")
        code = run_killed(store, at, source)
        assert code in (0, -signal.SIGKILL)
        assert damaged or all(is_whole(directory) for directory in artifacts_in(store))
        assert run_killed(store, 0, source) == 0
        assert [directory.name for directory in artifacts_in(store)] == [WANTED.key]
        assert verify(store / WANTED.key).size == 23
        assert list(unfinished(store)) == []
        if code == 0:
            break
    assert at > 10


def test_graphs_of_a_killed_attempt_are_kept(tmp_path: Path) -> None:
    with building(tmp_path, WANTED) as build:
        build.add("a.neff", b"first graph")
    assert list(unfinished(tmp_path)) == [(WANTED.key, 1)]
    assert list(artifacts_in(tmp_path)) == []
    with building(tmp_path, WANTED) as build:
        assert build.graph("a.neff") == b"first graph"
        assert build.graph("b.neff") is None


def test_a_file_half_written_is_removed(tmp_path: Path) -> None:
    with building(tmp_path, WANTED) as build:
        build.add("a.neff", b"first graph")
        (tmp_path / WORK / WANTED.key / "b.neff.partial").write_bytes(b"sec")
    with building(tmp_path, WANTED) as build:
        assert build.graph("b.neff") is None
        assert not list((tmp_path / WORK / WANTED.key).glob("*.partial"))


def test_graphs_that_the_artifact_does_not_need_are_left_out(tmp_path: Path) -> None:
    with building(tmp_path, WANTED) as build:
        for name in ("a.neff", "of-another-version.neff"):
            build.add(name, b"graph")
        directory = build.publish({"a.neff"}, "org/tiny")
    assert {path.name for path in directory.iterdir()} == {"a.neff", MANIFEST}


def test_a_damaged_artifact_is_replaced_and_a_whole_one_stays(tmp_path: Path) -> None:
    (make(tmp_path) / "a.neff").write_bytes(b"not a graph")
    assert is_whole(make(tmp_path))
    make(tmp_path, {"a.neff": b"compiled again, with other bytes"})
    assert verify(tmp_path / WANTED.key).size == 23


def test_two_processes_do_not_make_the_same_artifact(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from models.neuron.building import work_in\n"
        f"with work_in(Path({str(tmp_path)!r}), {WANTED.key!r}): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ArtifactError, match="another process is at work"):
            make(tmp_path)
        other.kill()
    assert is_whole(make(tmp_path))


def test_work_that_nobody_takes_up_is_removed_after_two_weeks(tmp_path: Path) -> None:
    for name in ("old", "recent"):
        with work_in(tmp_path, name) as directory:
            (directory / "a.neff").touch()
    ago = time.time() - 15 * 24 * 3600
    os.utime(tmp_path / WORK / "old", (ago, ago))
    make(tmp_path)
    assert list(unfinished(tmp_path)) == [("recent", 1)]


class TestInstall:
    def test_copies_a_whole_artifact(self, tmp_path: Path) -> None:
        copy = install(make(tmp_path / "here"), tmp_path / "there")
        assert copy == tmp_path / "there" / WANTED.key
        assert is_whole(copy)
        assert install(tmp_path / "here" / WANTED.key, tmp_path / "there") == copy

    def test_refuses_a_damaged_one(self, tmp_path: Path) -> None:
        (make(tmp_path / "here") / "a.neff").write_bytes(b"not a graph")
        with pytest.raises(ArtifactError, match="damaged"):
            install(tmp_path / "here" / WANTED.key, tmp_path / "there")
        assert list(artifacts_in(tmp_path / "there")) == []
