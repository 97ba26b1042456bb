"""`neuronx-serve artifacts`: artifacts travel to a directory, a bucket or the hub and back, and arrive whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.neuron.artifacts import MANIFEST, Ingredients, artifacts_in, verify
from models.neuron.building import building, unfinished
from server.cli import main

ROOT = Path(__file__).resolve().parents[3]
GRAPHS = {"a.neff": b"first graph", "b.neff": b"second graph"}


def make(store: Path, slots: int = 4) -> Path:
    with building(store, Ingredients((("options.slots", str(slots)),))) as build:
        for name, content in GRAPHS.items():
            build.add(name, content)
        return build.publish(set(GRAPHS), "org/tiny")


def run(action: str, store: Path, *arguments: str) -> int:
    return main(["artifacts", action, "--store", str(store), *arguments])


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The store that artifacts are sent from, with two of them."""
    store = tmp_path / "here"
    make(store, 4)
    make(store, 8)
    return store


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The store that they are fetched to."""
    return tmp_path / "there"


class TestList:
    def test_shows_what_is_whole_and_what_is_unfinished(self, here: Path, capsys: Any) -> None:
        with building(here, Ingredients((("options.slots", "2"),))) as build:
            build.add("a.neff", b"first graph")
        assert run("list", here) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("\t")[:4] for line in lines[:2]] == [
            [directory.name, "org/tiny", "2 graphs", "0.0 MB"] for directory in artifacts_in(here)
        ]
        assert lines[2].endswith("\tunfinished: 1 files wait for the command to be given again")

    def test_a_broken_manifest_is_named(self, here: Path, capsys: Any) -> None:
        (make(here) / MANIFEST).write_text("{")
        assert run("list", here) == 1
        assert "is not a manifest of this version" in capsys.readouterr().err

    def test_the_store_of_a_configuration(self, here: Path, tmp_path: Path, capsys: Any) -> None:
        config = tmp_path / "server.toml"
        model = '[[models]]\nid = "{0}"\npath = "x"\n[models.device]\nkind = "neuron"\nartifacts = "{1}"\n'
        config.write_text(model.format("a", here))
        assert main(["artifacts", "list", "--config", str(config)]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2
        config.write_text(model.format("a", here) + model.format("b", tmp_path))
        assert main(["artifacts", "list", "--config", str(config)]) == 78
        assert "the models keep artifacts in 2 places: choose one with --store" in capsys.readouterr().err


class TestVerify:
    def test_each_artifact_is_read(self, here: Path, capsys: Any) -> None:
        assert run("verify", here) == 0
        assert capsys.readouterr().out.count("\twhole, 2 graphs, 0.0 MB\n") == 2
        (make(here) / "a.neff").write_bytes(b"first grapH")
        assert run("verify", here) == 1
        said = capsys.readouterr()
        assert said.out.count("whole") == 1
        assert "is damaged: a.neff" in said.err

    def test_some_by_the_beginning_of_their_names(self, here: Path, capsys: Any) -> None:
        first, _ = artifacts_in(here)
        assert run("verify", here, first.name[:6]) == 0
        assert capsys.readouterr().out.startswith(first.name)
        assert run("verify", here, "nothing") == 1
        assert f"{here} holds no artifact nothing" in capsys.readouterr().err


class Trip:
    """What every place must do."""

    def run(self, action: str, store: Path, *arguments: str) -> int:
        return run(action, store, *arguments)

    def check(self, here: Path, there: Path, place: str, capfd: Any) -> None:
        assert self.run("push", here, place) == 0
        assert capfd.readouterr().out.count(f"is at {place}") == 2
        assert self.run("pull", there, place) == 0
        assert capfd.readouterr().out.count("whole") == 2
        assert [verify(path).key for path in artifacts_in(there)] == [path.name for path in artifacts_in(here)]
        assert list(unfinished(there)) == []

    def check_one(self, here: Path, there: Path, place: str) -> None:
        first, second = artifacts_in(here)
        assert self.run("push", here, place) == 0
        assert self.run("pull", there, place, second.name) == 0
        assert [path.name for path in artifacts_in(there)] == [second.name]
        assert self.run("pull", there, place, first.name) == 0
        assert len(list(artifacts_in(there))) == 2


class TestDirectory(Trip):
    def test_there_and_back(self, here: Path, there: Path, tmp_path: Path, capfd: Any) -> None:
        self.check(here, there, str(tmp_path / "shared"), capfd)

    def test_one_by_name(self, here: Path, there: Path, tmp_path: Path) -> None:
        self.check_one(here, there, str(tmp_path / "shared"))

    def test_a_damaged_one_is_not_sent(self, here: Path, tmp_path: Path, capsys: Any) -> None:
        (make(here) / "a.neff").write_bytes(b"first grapH")
        assert run("push", here, str(tmp_path / "shared"), key_of(4)) == 1
        assert "is damaged" in capsys.readouterr().err
        assert not (tmp_path / "shared").exists()

    def test_a_damaged_one_is_not_taken_in_and_the_others_are(
        self, here: Path, there: Path, tmp_path: Path, capsys: Any
    ) -> None:
        shared = tmp_path / "shared"
        assert run("push", here, str(shared)) == 0
        (shared / key_of(4) / "a.neff").write_bytes(b"first grapH")
        assert run("pull", there, str(shared)) == 1
        assert "is damaged: a.neff" in capsys.readouterr().err
        assert [path.name for path in artifacts_in(there)] == [key_of(8)]
        make(shared, 4)
        assert run("pull", there, str(shared)) == 0
        assert len(list(artifacts_in(there))) == 2

    def test_an_empty_one_is_named(self, there: Path, tmp_path: Path, capsys: Any) -> None:
        assert run("pull", there, str(tmp_path / "nowhere")) == 1
        assert f"{tmp_path / 'nowhere'} holds no artifact" in capsys.readouterr().err
        assert run("pull", there, str(tmp_path / "nowhere"), key_of(4)) == 1
        assert f"does not hold {key_of(4)}" in capsys.readouterr().err


class TestBucket(Trip):
    PLACE = "s3://bucket/neuron/artifacts"

    def test_there_and_back(self, here: Path, there: Path, buckets: Any, capfd: Any) -> None:
        self.check(here, there, self.PLACE, capfd)

    def test_one_by_name(self, here: Path, there: Path, buckets: Any) -> None:
        self.check_one(here, there, self.PLACE)

    def test_the_manifest_goes_last(self, here: Path, buckets: Any) -> None:
        assert run("push", here, self.PLACE, key_of(4)) == 0
        artifact = f"{self.PLACE}/{key_of(4)}"
        assert buckets.commands() == [
            f"sync {here / key_of(4)} {artifact} --exclude {MANIFEST}",
            f"cp {here / key_of(4) / MANIFEST} {artifact}/{MANIFEST}",
        ]

    def test_only_artifacts_are_fetched_and_not_those_that_are_here(
        self, here: Path, there: Path, buckets: Any
    ) -> None:
        assert run("push", here, self.PLACE) == 0
        other = buckets.directory / "bucket" / "neuron" / "artifacts" / "film.mkv"
        other.write_bytes(b"large")
        make(there, 4)
        assert run("pull", there, self.PLACE) == 0
        chosen = f"--exclude * --include */{MANIFEST} --include */*.neff --exclude {key_of(4)}/*"
        assert buckets.commands()[-1].startswith(f"sync {self.PLACE} {there}/.work/pull-")
        assert buckets.commands()[-1].endswith(chosen)
        assert len(list(artifacts_in(there))) == 2

    @pytest.mark.parametrize("action", ["push", "pull"])
    def test_a_dry_run_prints_the_commands_and_runs_none(
        self, here: Path, buckets: Any, capsys: Any, action: str
    ) -> None:
        assert run(action, here, self.PLACE, "--dry-run") == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == (4 if action == "push" else 1)
        assert all(line.startswith("aws s3 ") and line.endswith(" --only-show-errors") for line in lines)
        assert buckets.commands() == []

    def test_a_refusal_of_the_service_is_passed_on(
        self, here: Path, there: Path, buckets: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_STUB_FAILS", "1")
        assert run("pull", there, self.PLACE) == 1
        said = capsys.readouterr().err
        assert "ended with 1: fatal error: An error occurred (AccessDenied)" in said

    def test_without_the_aws_cli_it_says_so(
        self, here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert run("push", here, self.PLACE) == 1
        assert "the AWS CLI (`aws`) is not on PATH" in capsys.readouterr().err


class TestHub(Trip):
    PLACE = "hf://org/artifacts"

    def run(self, action: str, store: Path, *arguments: str) -> int:
        """In a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""
        command = [sys.executable, "-m", "server.cli", "artifacts", action, "--store", str(store), *arguments]
        return subprocess.run(command, cwd=ROOT, check=False).returncode

    @pytest.fixture(autouse=True)
    def token(self, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)

    def test_there_and_back(self, hub: Any, here: Path, there: Path, capfd: Any) -> None:
        self.check(here, there, self.PLACE, capfd)
        assert hub.repositories["org/artifacts"].private
        assert set(hub.repositories["org/artifacts"].files) == {
            f"{key_of(slots)}/{name}" for slots in (4, 8) for name in (*GRAPHS, MANIFEST)
        }

    def test_one_by_name(self, here: Path, there: Path) -> None:
        self.check_one(here, there, self.PLACE)

    def test_an_artifact_is_one_commit(self, hub: Any, here: Path) -> None:
        assert self.run("push", here, self.PLACE) == 0
        assert len([path for method, path, _ in hub.requests if "/commit/" in path]) == 2

    def test_those_that_are_here_are_not_fetched(self, hub: Any, here: Path, there: Path, capfd: Any) -> None:
        assert self.run("push", here, self.PLACE) == 0
        make(there, 4)
        hub.requests.clear()
        assert self.run("pull", there, self.PLACE) == 0
        assert sorted(hub.fetched()) == ["a.neff", "b.neff", MANIFEST]
        assert self.run("pull", there, self.PLACE) == 0
        assert f"{self.PLACE} holds none that is not here" in capfd.readouterr().err

    def test_a_repository_that_is_not_there(self, there: Path, capfd: Any) -> None:
        assert self.run("pull", there, "hf://org/nothing") == 1
        assert "knows no repository org/nothing" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["ftp://host/x", "s3://", "s3:///", "hf://name", "hf://a/b/c", "hf:///x"])
def test_what_is_no_place_is_refused(here: Path, capsys: Any, place: str) -> None:
    assert run("push", here, place) == 1
    assert f"{place!r} is no place for artifacts: allowed are a directory" in capsys.readouterr().err


def test_the_name_of_an_artifact_cannot_lead_elsewhere(there: Path, capsys: Any) -> None:
    assert run("pull", there, "s3://bucket/x", "../../etc") == 1
    assert "the name of an artifact is 20 hexadecimal digits" in capsys.readouterr().err


def test_listing_needs_neither_numpy_nor_the_hub(here: Path) -> None:
    code = (
        f"import sys, server.cli; server.cli.main(['artifacts', 'list', '--store', {str(here)!r}]); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "torch", "huggingface_hub"}.isdisjoint(loaded)


def key_of(slots: int) -> str:
    return Ingredients((("options.slots", str(slots)),)).key
