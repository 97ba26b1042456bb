"""The image: its definition by a linter, its entry script run for real before the server, as SageMaker calls it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from models.protocol import NeuronOptions
from server.configuration import load_settings, model_cache
from server.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "configs/container"
DOCKERFILE = (FOLDER / "Dockerfile").read_text("utf-8")
BIN = Path(sys.executable).parent
TARGETS = dict(zip(("neuron", "cpu"), re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:], strict=True))


# --- the definition ---------------------------------------------------------------------------------------------


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "hadolint", "--no-color", path], capture_output=True, text=True, check=False)


def test_the_linter_finds_nothing() -> None:
    done = hadolint(FOLDER / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_the_linter_notices_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("debian:bookworm-slim", "debian"))
    assert "DL3006" in hadolint(tmp_path / "Dockerfile").stdout


@pytest.mark.parametrize("target", TARGETS)
def test_it_is_made_of_files_that_are_there(target: str) -> None:
    text = TARGETS[target]
    copied = [name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert {"pyproject.toml", "server", "models", "configs", "scripts"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    (place,) = re.findall(r"^WORKDIR (.*)$", text, re.MULTILINE)
    (config,) = re.findall(rf"NEURONX_SERVE_CONFIG={place}/(\S+)", text)
    load_settings(ROOT / config, {}, {})
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    assert json.loads(entry) == [f"{place}/configs/container/entrypoint.sh"]
    assert os.access(FOLDER / "entrypoint.sh", os.X_OK)


def test_a_laptop_gets_the_cpu_image_by_default_and_it_does_not_run_as_root() -> None:
    assert list(TARGETS)[-1] == "cpu"
    (user,) = re.findall(r"^USER (\d+):", TARGETS["cpu"], re.MULTILINE)
    assert f"useradd --uid {user} " in TARGETS["cpu"]


def test_the_neuron_image_is_made_as_an_instance_is() -> None:
    assert TARGETS["neuron"].startswith("ubuntu:22.04 ")
    assert "RUN scripts/install-inf2 --builder " in TARGETS["neuron"]
    (command,) = re.findall(r"^RUN (.*)$", TARGETS["neuron"], re.MULTILINE)
    assert not re.search(r"\d", command.replace("install-inf2", ""))  # packages and versions are that script's alone


# --- the entry script, before a server that only writes down how it was called ----------------------------------


class Called:
    """What the entry script did with `neuronx-serve`."""

    def __init__(self, done: subprocess.CompletedProcess[str], record: Path) -> None:
        self.code, self.errors = done.returncode, done.stderr
        self.calls = record.read_text().splitlines() if record.exists() else []
        self.environment = dict(
            line.partition("=")[::2] for line in done.stdout.splitlines() if re.match(r"[A-Z_]+=", line)
        )

    @property
    def settings(self) -> Settings:
        """What the server would read, of its last call."""
        arguments = self.calls[-1].split()
        flags = dict(zip((name[2:].upper() for name in arguments[1::2]), arguments[2::2], strict=True))
        return load_settings(Path(flags.pop("CONFIG")), self.environment, flags)


@pytest.fixture
def entry(tmp_path: Path) -> Callable[..., Called]:
    """entry(*arguments, VARIABLE=value) -> Called, in the Neuron image's environment."""
    record = tmp_path / "record"
    stub = tmp_path / "bin/neuronx-serve"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho "$*" >>{record}\n[ "$1" != serve ] || env\n')
    stub.chmod(0o755)

    def run(*arguments: str, **variables: str) -> Called:
        environment = {
            "PATH": f"{stub.parent}:/usr/bin:/bin",
            "NEURONX_SERVE_CONFIG": str(ROOT / "configs/inf2.toml"),
            "NEURONX_SERVE_CACHE": str(tmp_path / "cache"),
            **variables,
        }
        command = [str(FOLDER / "entrypoint.sh"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return Called(done, record)

    return run


def neuron_of(settings: Settings) -> NeuronOptions:
    (model,) = settings.models
    assert isinstance(model.device, NeuronOptions)
    return model.device


def test_a_model_of_the_hub_is_fetched_and_served_alone(entry: Callable[..., Called]) -> None:
    called = entry("serve", HF_MODEL_ID="codellama/CodeLlama-7b-Instruct-hf", HF_MODEL_REVISION="abc")

    assert called.calls[0] == "models pull codellama/CodeLlama-7b-Instruct-hf --revision abc"
    settings = called.settings
    assert [model.id for model in settings.models] == ["codellama/CodeLlama-7b-Instruct-hf"]
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 8080)
    assert neuron_of(settings).slots == 4  # as configs/inf2.toml has it


def test_the_number_of_gpus_is_the_tensor_parallel_degree(entry: Callable[..., Called]) -> None:
    called = entry("serve", HF_MODEL_ID="some/model", SM_NUM_GPUS="1")

    assert neuron_of(called.settings).tp_degree == 1
    # Each has had its effect: the server need not warn that it has none.
    assert not {"SM_NUM_GPUS", "HF_MODEL_ID"} & called.environment.keys()


def test_a_directory_is_served_with_the_artifacts_in_it(entry: Callable[..., Called], tmp_path: Path) -> None:
    model = tmp_path / "opt/ml/model"
    (model / "artifacts").mkdir(parents=True)
    (model / "config.json").write_text("{}")

    called = entry("serve", HF_MODEL_ID=str(model))

    assert called.calls[:-1] == [f"artifacts pull {model}/artifacts"]
    (served,) = called.settings.models
    assert (served.id, served.path) == ("model", str(model))


def test_artifacts_may_be_elsewhere_and_a_model_in_the_image_is_not_fetched(
    entry: Callable[..., Called], tmp_path: Path
) -> None:
    directory = tmp_path / "cache/models/model"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")

    called = entry("serve", HF_MODEL_ID="some/model", NEURONX_SERVE_ARTIFACTS="s3://mine/artifacts")

    assert called.calls[:-1] == ["artifacts pull s3://mine/artifacts"]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [({}, "HF_MODEL_ID must be set"), ({"HF_MODEL_ID": "/tmp"}, "that directory holds no config.json")],
)
def test_what_sagemaker_forgot_is_told(entry: Callable[..., Called], variables: dict[str, str], reason: str) -> None:
    called = entry("serve", **variables)

    assert (called.code, called.calls) == (78, [])
    assert reason in called.errors


def test_any_other_call_is_neuronx_serves(entry: Callable[..., Called]) -> None:
    entry("plan", "--instance", "inf2.xlarge")
    called = entry("serve", "--port", "81")

    assert called.calls == ["plan --instance inf2.xlarge", f"serve --config {ROOT}/configs/inf2.toml --port 81"]


# --- the entry script, before the real server -------------------------------------------------------------------


@pytest.fixture(scope="module")
def sagemaker(embedded_set_up: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the container that SageMaker has started on the real small model, once /ping is 200."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory = tmp_path_factory.mktemp("sagemaker")
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "NEURONX_SERVE_CONFIG": str(ROOT / "configs/cpu.toml"),
        "NEURONX_SERVE_CACHE": str(directory),
        "HF_MODEL_ID": str(model_cache(os.environ) / "SmolLM2-135M-Instruct"),
        "HOSTNAME": "127.0.0.1",
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "MAX_BATCH_SIZE": "2",
    }
    log = directory / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([FOLDER / "entrypoint.sh", "serve"], env=environment, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while not answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0, log.read_text()  # docker stop reaches the server


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ping", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def test_sagemaker_gets_an_answer(sagemaker: str) -> None:
    body = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 5}}

    answer = httpx.post(f"{sagemaker}/invocations", json=body, timeout=300)

    assert answer.status_code == 200
    assert "Paris" in answer.json()[0]["generated_text"]
    models = httpx.get(f"{sagemaker}/v1/models", timeout=60).json()["data"]
    assert [model["id"] for model in models] == ["SmolLM2-135M-Instruct"]


def test_sagemaker_gets_a_chat(sagemaker: str) -> None:
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 12,
    }

    answer = httpx.post(f"{sagemaker}/invocations", json=body, timeout=300)

    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
