"""`neuronx-serve models pull` against a hub on the loopback, with the real huggingface_hub in between."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from server.cli import main

ROOT = Path(__file__).resolve().parents[3]
MODEL = "org/Tiny-Llama"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b"{}",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 4096,
    "model-00002-of-00002.safetensors": b"second shard" * 100_000,
    "model.safetensors.index.json": b'{"weight_map": {}}',
}
NOT_WANTED = {
    "README.md": b"# Tiny",
    "pytorch_model.bin": b"pickled",
    "consolidated.safetensors": b"the same again",
    "original/config.json": b"{}",
    "original/model.safetensors": b"the same again",
    "onnx/model.onnx": b"",
}


@pytest.fixture
def model(hub: Any) -> Any:
    """The repository on the hub."""
    return hub.add(MODEL, {**FILES, **NOT_WANTED})


def pulled(tmp_path: Path, name: str = "Tiny-Llama") -> Path:
    return tmp_path / "cache" / "models" / name


class TestPull:
    def test_brings_what_a_server_needs_and_nothing_else(self, model: Any, tmp_path: Path, capsys: Any) -> None:
        assert main(["models", "pull", MODEL]) == 0
        directory = pulled(tmp_path)
        there = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "source.json"}
        assert there == FILES
        assert json.loads((directory / "source.json").read_text())["id"] == MODEL
        said = capsys.readouterr()
        assert said.out == (
            f"{directory}: fetched, 7 files, 2.2 MB, every hash verified\n"
            'In the configuration it is path = "cache:Tiny-Llama"\n'
        )
        assert "downloading 2.2 MB of 2.2 MB\n" in said.err
        assert "verifying 2.2 MB of 2.2 MB\n" in said.err

    def test_a_second_pull_verifies_what_is_there(self, hub: Any, model: Any, tmp_path: Path, capsys: Any) -> None:
        assert main(["models", "pull", MODEL]) == 0
        hub.requests.clear()
        assert main(["models", "pull", MODEL]) == 0
        assert hub.fetched() == []
        assert ": was there, 7 files" in capsys.readouterr().out
        (pulled(tmp_path) / "model-00002-of-00002.safetensors").write_bytes(b"damaged")
        assert main(["models", "pull", MODEL]) == 1
        assert "is damaged (model-00002-of-00002.safetensors): remove it and pull again" in capsys.readouterr().err

    def test_another_name_in_the_cache(self, model: Any, tmp_path: Path) -> None:
        assert main(["models", "pull", MODEL, "--name", "mine"]) == 0
        assert (pulled(tmp_path, "mine") / "config.json").is_file()

    def test_a_directory_that_is_something_else_stays(self, model: Any, hub: Any, tmp_path: Path, capsys: Any) -> None:
        pulled(tmp_path).mkdir(parents=True)
        assert main(["models", "pull", MODEL]) == 1
        assert "is there and was not pulled: choose another directory with --name" in capsys.readouterr().err
        pulled(tmp_path).rmdir()
        hub.repositories["other/Tiny-Llama"] = model
        assert main(["models", "pull", "other/Tiny-Llama"]) == 0
        assert main(["models", "pull", MODEL]) == 1
        assert "holds other/Tiny-Llama at revision c0ffee" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [["Tiny-Llama"], ["a/b/c"], [MODEL, "--name", "../x"], ["org/.hidden"]])
    def test_a_name_that_is_none_is_wrong_usage(self, hub: Any, arguments: list[str]) -> None:
        assert main(["models", "pull", *arguments]) == 2
        assert hub.requests == []


class TestInterrupted:
    def test_a_killed_pull_goes_on_where_it_was(self, hub: Any, model: Any, tmp_path: Path) -> None:
        """Killed with a part of one shard there: the next fetches the rest of it, and of the others nothing twice."""
        large = "model-00002-of-00002.safetensors"
        model.files[large] = bytes(range(250)) * 100_000  # more than the 10 MB that the package writes at once
        hub.stall[large] = 15_000_000
        command = [sys.executable, "-m", "server.cli", "models", "pull", MODEL]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            while all(size < 1_000_000 for size in _incomplete(tmp_path)):  # the other files are smaller
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        assert not pulled(tmp_path).exists()
        hub.stall.clear()
        already = set(hub.fetched()) - {large}
        hub.requests.clear()
        assert main(["models", "pull", MODEL]) == 0
        assert (pulled(tmp_path) / large).read_bytes() == model.files[large]
        (span,) = hub.ranges()
        assert 0 < int(span.removeprefix("bytes=").rstrip("-")) <= 15_000_000
        assert already.isdisjoint(hub.fetched())

    def test_ctrl_c_ends_it_with_a_word(self, hub: Any, model: Any, tmp_path: Path) -> None:
        hub.stall["model-00001-of-00002.safetensors"] = 100_000
        command = [sys.executable, "-m", "server.cli", "models", "pull", MODEL]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            while not _incomplete(tmp_path):
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert err.endswith("interrupted: the same command goes on from there\n")


class TestRefused:
    def test_a_wrong_hash(self, model: Any, tmp_path: Path, capsys: Any) -> None:
        """The hub's record and its content differ: as after a change on the way, or of the stored file."""
        name = "model-00001-of-00002.safetensors"
        model.claimed_content[name] = bytes(len(FILES[name]))
        assert main(["models", "pull", MODEL]) == 1
        assert (
            f"{name} of {MODEL} came with another hash than the hub names, and was removed" in capsys.readouterr().err
        )
        assert not pulled(tmp_path).exists()
        del model.claimed_content[name]
        assert main(["models", "pull", MODEL]) == 0

    def test_a_wrong_hash_of_a_small_file(self, model: Any, tmp_path: Path, capsys: Any) -> None:
        model.claimed_content["config.json"] = b'{"model_type": "lLama"}'
        assert main(["models", "pull", MODEL]) == 1
        assert "config.json of org/Tiny-Llama came with another hash" in capsys.readouterr().err

    def test_a_disk_that_is_too_small(self, hub: Any, model: Any, tmp_path: Path, capsys: Any) -> None:
        model.claimed_sizes["model-00001-of-00002.safetensors"] = 10**18
        assert main(["models", "pull", MODEL]) == 1
        said = capsys.readouterr().err
        assert f"{MODEL} needs 1000000001.0 GB more on the disk of {pulled(tmp_path).parent}" in said
        assert "GB free: make room, or set NEURONX_SERVE_CACHE to another disk" in said
        assert hub.fetched() == []

    def test_a_gated_model_without_a_token(self, hub: Any, model: Any, capsys: Any) -> None:
        llama = "meta-llama/Meta-Llama-3-8B-Instruct"
        hub.repositories[llama] = model
        model.gated = True
        assert main(["models", "pull", llama]) == 1
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"neuronx-serve: {llama} is gated (no token is set): accept its licence on {hub.url}/{llama} with your "
            "account, and set HF_TOKEN to a token of that account; or take the ungated copy: "
            "neuronx-serve models pull NousResearch/Meta-Llama-3-8B-Instruct"
        )

    def test_a_token_opens_it(self, hub: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        model.gated = model.private = True
        monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
        assert main(["models", "pull", MODEL]) == 0

    def test_a_model_that_is_not_there(self, hub: Any, capsys: Any) -> None:
        assert main(["models", "pull", "org/nothing"]) == 1
        assert "knows no repository org/nothing, or this account may not see it" in capsys.readouterr().err

    def test_a_revision_that_is_not_there(self, model: Any, capsys: Any) -> None:
        assert main(["models", "pull", MODEL, "--revision", "v9"]) == 1
        assert f"{MODEL} has no such revision" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("removed", "lacking"),
        [("tokenizer.json", "tokenizer.json"), ("model-", r"weights as model*.safetensors")],
    )
    def test_a_model_that_cannot_be_served(self, model: Any, capsys: Any, removed: str, lacking: str) -> None:
        model.files = {name: content for name, content in model.files.items() if not name.startswith(removed)}
        assert main(["models", "pull", MODEL]) == 1
        assert f"{MODEL} cannot be served: it lacks {lacking}" in capsys.readouterr().err

    def test_a_hub_that_is_not_there(self, hub: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert main(["models", "pull", MODEL]) == 1
        assert f"{MODEL} cannot be reached at http://127.0.0.1:9" in capsys.readouterr().err

    def test_a_missing_package(self, hub: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        assert main(["models", "pull", MODEL]) == 1
        assert "pip install 'neuronx-serve[hub]'" in capsys.readouterr().err


def _incomplete(tmp_path: Path) -> list[int]:
    """Bytes of each file that is being fetched."""
    sizes = []
    for path in pulled(tmp_path).parent.glob(".incoming/**/*.incomplete"):
        with contextlib.suppress(FileNotFoundError):  # complete meanwhile
            sizes.append(path.stat().st_size)
    return sizes
