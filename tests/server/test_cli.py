"""The command line as its user meets it: exit codes, texts, and the life of a serving process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.cli import main
from server.variables import MODEL_ID, VARIABLES, flag

ROOT = Path(__file__).resolve().parents[2]

ONE_MODEL = """
[[models]]
id = "org/tiny"
path = "{directory}"
[models.device]
kind = "simulated"
step_s = 0.2
vocab_size = 300
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(ONE_MODEL.format(directory="tiny"))
    return path


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (MODEL_ID, *VARIABLES):
        for name in variable.names:
            monkeypatch.delenv(name, raising=False)


class TestModels:
    def test_lists_each_model_with_what_its_directory_lacks(self, config: Path, capsys) -> None:
        assert main(["models", "--config", str(config)]) == 1
        assert capsys.readouterr().out == f"org/tiny\tsimulated\t{config.parent}/tiny\tlacks the directory\n"
        directory = config.parent / "tiny"
        directory.mkdir()
        (directory / "config.json").touch()
        assert main(["models", "--config", str(config)]) == 1
        assert "lacks tokenizer.json, weights (*.safetensors or *.gguf)" in capsys.readouterr().out

    def test_a_complete_directory_is_complete(self, config: Path, capsys) -> None:
        (config.parent / "tiny").mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (config.parent / "tiny" / name).touch()
        assert main(["models", "--config", str(config)]) == 0
        assert capsys.readouterr().out.endswith("\tcomplete\n")


class TestRefusals:
    def test_a_configuration_that_cannot_work_exits_with_78(self, config: Path, capsys) -> None:
        assert main(["serve", "--config", str(config), "--max-best-of", "0"]) == 78
        assert capsys.readouterr().err == "neuronx-serve: flag --max-best-of = '0': allowed is a whole number from 1\n"

    def test_the_environment_is_read(self, config: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PORT", "eighty")
        assert main(["serve", "--config", str(config)]) == 78
        assert "environment variable PORT = 'eighty': allowed is a whole number" in capsys.readouterr().err

    def test_a_port_that_is_taken_exits_with_1(self, config: Path, capsys) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert main(["serve", "--config", str(config), "--port", str(port)]) == 1
        said = capsys.readouterr().err
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use. Choose with --hostname" in said

    def test_an_unknown_flag_is_wrong_usage(self, config: Path) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["serve", "--config", str(config), "--max-batch", "1"])

    def test_help_names_every_flag(self, capsys) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["serve", "--help"])
        said = capsys.readouterr().out
        assert [variable.name for variable in VARIABLES if flag(variable.name) not in said] == []


class TestServe:
    def test_answers_before_its_model_is_there(self, serve: Callable[..., Any], tmp_path: Path) -> None:
        server = serve(ONE_MODEL.format(directory=tmp_path / "missing"))
        health = self.first_answer(server)
        assert health.status_code == 503
        assert health.headers["x-unhealthy-reason"]

    def test_sigint_ends_it_like_sigterm_and_the_log_says_so(self, serve: Callable[..., Any], tmp_path: Path) -> None:
        server = serve(ONE_MODEL.format(directory=tmp_path / "missing"), "--json-output", "--quantize", "awq")
        self.first_answer(server)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
        said = server.log.read_text()
        assert f'"message":"listening on {server.url}"' in said
        assert '"message":"flag --quantize has no effect in this configuration"' in said
        assert '"message":"SIGINT: running work is finished first; a second signal ends at once"' in said

    def test_a_second_signal_ends_it_at_once(self, serve: Callable[..., Any], tiny_text_directory: Path) -> None:
        server = serve(ONE_MODEL.format(directory=tiny_text_directory))
        server.wait_available()
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 200}}
        with httpx.stream("POST", server.url + "/generate_stream", json=body, timeout=60) as response:
            next(response.iter_lines())
            server.process.send_signal(signal.SIGTERM)
            while "SIGTERM: running work" not in server.log.read_text():
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(10) == -signal.SIGTERM

    def first_answer(self, server: Any) -> httpx.Response:
        while True:
            assert server.process.poll() is None, server.log.read_text()
            try:
                return server.get("/health")
            except httpx.TransportError:
                time.sleep(0.05)


def test_a_configuration_that_cannot_fit_is_refused_with_the_numbers_and_the_nearest_that_does(tmp_path: Path) -> None:
    shapes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    llama3 = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 8, **shapes}
    llama3 |= {"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 5e5, "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(llama3))
    (tmp_path / "server.toml").write_text(
        f'[[models]]\nid = "llama"\npath = "{tmp_path}"\n[models.device]\nkind = "neuron"\nslots = 64\n'
        "n_positions = 8192\ntoken_buckets = [8192]\n"
    )
    command = [sys.executable, "-m", "server.cli", "serve", "--config", str(tmp_path / "server.toml"), "--port", "0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert refused.returncode == 78
    assert "llama cannot be served" in refused.stderr
    assert "64 slots x 8192 positions" in refused.stderr
    assert "slots" in refused.stderr.partition("the runtime.")[2]
