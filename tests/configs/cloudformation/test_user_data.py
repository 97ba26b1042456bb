"""The user data of both instances, run for real: the source fetched, the signal sent, AWS and systemd in stubs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

LLAMA, MISTRAL = "meta-llama/Meta-Llama-3-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.2"


@pytest.fixture
def stack(existing_vpc: Any, instance: Any, repository: Path) -> Any:
    """The template for this instance: two models, artifacts that are there, the repository as the source."""
    return existing_vpc.with_parameters(
        AllowedCidr="203.0.113.7/32",
        Models=f"{MISTRAL}, {LLAMA}",
        ArtifactsS3Prefix="s3://mine/artifacts",
        SourceUrl=str(repository),
        ModelAvailableHandle=f"{instance.url}/server?signed",
        ArtifactsCompiledHandle=f"{instance.url}/builder?signed",
        ArtifactsBucket="made",
        ServerAddress="198.51.100.1",
    )


@pytest.fixture
def compiling(stack: Any) -> Any:
    """The same with an empty ArtifactsS3Prefix."""
    return stack.with_parameters(ArtifactsS3Prefix="")


# --- the server -------------------------------------------------------------------------------------------------


def test_a_server_signals_when_a_model_is_available_and_chat_ui_answers(instance: Any, stack: Any) -> None:
    done = instance.run(stack.user_data("Server"))

    assert (done.code, done.signal["Status"]) == (0, "SUCCESS"), done.log
    (signal,) = done.signals
    assert signal.path == "/server?signed"
    assert signal.headers.get("Content-Type", "") == ""  # the URL is signed without one
    assert set(signal.body) == {"Status", "Reason", "UniqueId", "Data"}
    steps = [
        "python -m pip install",
        f"neuronx-serve models pull {MISTRAL}",
        f"neuronx-serve models pull {LLAMA}",
        "docker pull --quiet",
        "neuronx-serve artifacts pull s3://mine/artifacts",
        "systemctl start --no-block neuronx-serve",
        "systemctl enable --now chat-ui-db chat-ui",
        "curl --fail --silent --output /dev/null http://127.0.0.1:3000/",
        "curl --fail --silent --show-error --retry 8",
    ]
    places = [next(i for i, call in enumerate(done.calls) if call.startswith(step)) for step in steps]
    assert places == sorted(places)
    assert "loading a-model: weights 43%" in done.log  # how far it is
    assert "shutdown" not in " ".join(done.calls)


def test_it_serves_the_chosen_models_in_their_order(instance: Any, stack: Any) -> None:
    instance.run(stack.user_data("Server"))

    text = (instance.root / "etc/neuronx-serve/inf2.toml").read_text()
    assert [line for line in text.splitlines() if line.startswith("id =")] == [f'id = "{MISTRAL}"', f'id = "{LLAMA}"']


def test_chat_ui_is_pointed_at_the_server_and_its_memory_is_capped(instance: Any, stack: Any) -> None:
    instance.run(stack.user_data("Server"))

    environment = (instance.root / "etc/chat-ui/environment").read_text().splitlines()
    assert {
        "OPENAI_BASE_URL=http://server:8080/v1",
        "MONGODB_URL=mongodb://chat-ui-db:27017",
        "PUBLIC_ORIGIN=http://198.51.100.1:3000",
        "COOKIE_SECURE=false",
    } <= set(environment)
    for name in ("chat-ui", "chat-ui-db"):
        unit = (instance.root / f"etc/systemd/system/{name}.service").read_text()
        assert "--memory " in unit


def test_a_server_waits_for_the_builders_artifacts(instance: Any, compiling: Any) -> None:
    place = instance.state / "s3/made/artifacts"
    (instance.state / "later").write_text(f"mkdir -p {place}; echo > {place}/complete")

    done = instance.run(compiling.user_data("Server"))

    assert done.signal["Status"] == "SUCCESS", done.log
    calls = [call for call in done.calls if call.startswith(("sleep 30", "neuronx-serve artifacts"))]
    assert calls == ["sleep 30", "sleep 30", "neuronx-serve artifacts pull s3://made/artifacts"]


def test_artifacts_that_do_not_come_are_a_failure_in_time(instance: Any, compiling: Any) -> None:
    done = instance.run(compiling.user_data("Server"), TIME_LIMIT="0")

    assert (done.code, done.signal["Status"]) == (1, "FAILURE")
    assert "the builder's artifacts did not come" in done.signal["Reason"]


def test_without_a_model_the_reason_is_told(instance: Any, stack: Any) -> None:
    (instance.state / "states").write_text("activating\nfailed\n")

    done = instance.run(stack.user_data("Server"))

    assert (done.code, done.signal["Status"]) == (1, "FAILURE")
    assert "no model became available: the last words of the log" in done.signal["Reason"]
    assert not any("chat-ui-db chat-ui" in call for call in done.calls)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (f"neuronx-serve models pull {MISTRAL}", f"{MISTRAL} cannot be fetched; a gated model needs"),
        ("neuronx-serve artifacts pull*", "no artifacts could be had from s3://mine/artifacts"),
        ("docker pull*mongo*", "mongo:"),
        ("curl *8080/health", "its /health is not 200"),
        ("apt-get *docker.io", "docker.io cannot be installed"),
        ("modprobe neuron", "scripts/install-inf2 ended with 9"),
    ],
)
def test_whatever_fails_is_told_to_the_stack(instance: Any, stack: Any, call: str, reason: str) -> None:
    instance.fail_at(call)

    done = instance.run(stack.user_data("Server"))

    assert (done.code, done.signal["Status"]) == (1, "FAILURE"), done.log
    assert reason in done.signal["Reason"]


@pytest.mark.parametrize("secret", ["hf_secret\n", '{"HF_TOKEN": "hf_secret"}\n'])
def test_the_token_goes_to_the_hub_and_nowhere_else(instance: Any, stack: Any, secret: str) -> None:
    arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:hub-AbCdEf"
    (instance.state / "secret").write_text(secret)

    done = instance.run(stack.with_parameters(HuggingFaceTokenSecret=arn).user_data("Server"))

    assert done.signal["Status"] == "SUCCESS", done.log
    with_token = [call for call in done.calls if "HF_TOKEN" in call and call.startswith("neuronx-serve")]
    assert with_token == [f"neuronx-serve models pull {model} [HF_TOKEN=hf_secret]" for model in (MISTRAL, LLAMA)]
    assert all("models pull" in call for call in done.calls if "HF_TOKEN" in call)
    assert "hf_secret" not in done.log
    left = [path for path in instance.root.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert left == []


def test_a_secret_that_cannot_be_read_is_told(instance: Any, stack: Any) -> None:
    arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:hub-AbCdEf"
    instance.fail_at("aws secretsmanager*")

    done = instance.run(stack.with_parameters(HuggingFaceTokenSecret=arn).user_data("Server"))

    assert f"the secret {arn} cannot be read" in done.signal["Reason"]


# --- the builder ------------------------------------------------------------------------------------------------


def test_a_builder_compiles_each_model_and_ends(instance: Any, compiling: Any) -> None:
    done = instance.run(compiling.user_data("Builder"))

    assert (done.code, done.signal["Status"]) == (0, "SUCCESS"), done.log
    assert done.signals[0].path == "/builder?signed"
    ours = [call for call in done.calls if call.startswith(("neuronx-serve", "shutdown"))]
    compiled = [
        call
        for model in (MISTRAL, LLAMA)
        for call in (
            f"neuronx-serve compile {model} --config /etc/neuronx-serve/inf2.toml --cpu",
            "neuronx-serve artifacts push s3://made/artifacts",
        )
    ]
    pulled = [f"neuronx-serve models pull {model}" for model in (MISTRAL, LLAMA)]
    assert ours == ["shutdown -h +178", *pulled, *compiled, "shutdown -h now"]
    assert (instance.state / "s3/made/artifacts/complete").read_text() == f"{MISTRAL}, {LLAMA}\n"
    assert "compiling" in (instance.state / "s3/made/artifacts/logs/builder.log").read_text()
    assert not any(call.startswith(("modprobe", "docker", "systemctl")) for call in done.calls)


@pytest.mark.parametrize(
    ("call", "environment", "reason"),
    [
        (f"neuronx-serve compile {LLAMA}*", {}, f"compiling {LLAMA} ended with 9"),
        ("nothing", {"TIME_LIMIT": "-1"}, f"the time was over before {MISTRAL} was compiled"),
        ("neuronx-serve artifacts push*", {}, "the artifacts cannot be put into s3://made/artifacts"),
        ("aws s3 cp - *", {}, "s3://made/artifacts/complete cannot be written"),
    ],
)
def test_a_builder_that_fails_says_why_and_ends_too(
    instance: Any, compiling: Any, call: str, environment: dict[str, str], reason: str
) -> None:
    instance.fail_at(call)

    done = instance.run(compiling.user_data("Builder"), **environment)

    assert (done.code, done.signal["Status"]) == (1, "FAILURE")
    assert reason in done.signal["Reason"]
    assert done.calls[-1] == "shutdown -h now"
    assert not (instance.state / "s3/made/artifacts/complete").exists()


def test_a_compilation_without_an_end_is_cut_short(instance: Any, compiling: Any) -> None:
    (instance.tools / "timeout").unlink()
    (instance.tools / "timeout").write_text('#!/bin/sh\necho "timeout $*" >>"$STATE/calls"; exit 124\n')
    (instance.tools / "timeout").chmod(0o755)

    done = instance.run(compiling.user_data("Builder"), TIME_LIMIT="1000")

    (cut,) = [call.split() for call in done.calls if call.startswith("timeout")]
    assert cut[1:3] == ["--signal=INT", "--kill-after=60"]
    assert 0 < int(cut[3]) <= 1000
    assert f"{MISTRAL} was not compiled in time" in done.signal["Reason"]
    assert done.calls[-1] == "shutdown -h now"


# --- the source -------------------------------------------------------------------------------------------------


def commit_of(repository: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("revision", ["", "v1", "COMMIT"])
def test_the_source_may_be_a_repository(instance: Any, stack: Any, repository: Path, revision: str) -> None:
    revision = commit_of(repository) if revision == "COMMIT" else revision

    done = instance.run(stack.with_parameters(SourceRevision=revision).user_data("Server"))

    assert done.signal["Status"] == "SUCCESS", done.log
    assert commit_of(instance.root / "usr/local/src/neuronx-serve") == commit_of(repository)


@pytest.mark.parametrize("prefix", [[], ["--prefix=neuronx-serve-1/"]])
@pytest.mark.parametrize("place", ["s3", "https"])
def test_the_source_may_be_an_archive(
    instance: Any, stack: Any, repository: Path, tmp_path: Path, place: str, prefix: list[str]
) -> None:
    archive = tmp_path / "web/source.tar.gz"
    command = ["git", "-C", str(repository), "archive", "--format=tar.gz", f"--output={archive}", *prefix, "HEAD"]
    subprocess.run(command, check=True)
    (instance.state / "s3/mine").mkdir()
    shutil.copy2(archive, instance.state / "s3/mine")
    url = "s3://mine/source.tar.gz" if place == "s3" else f"{instance.url}/source.tar.gz"
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()

    done = instance.run(stack.with_parameters(SourceUrl=url, SourceRevision=sha256).user_data("Server"))

    assert done.signal["Status"] == "SUCCESS", done.log
    assert (instance.root / "usr/local/src/neuronx-serve/scripts/install-inf2").is_file()


def test_another_archive_than_the_one_meant_is_refused(instance: Any, stack: Any, tmp_path: Path) -> None:
    (tmp_path / "web/source.tar.gz").write_bytes(b"something else")
    url, sha256 = f"{instance.url}/source.tar.gz", "0" * 64

    done = instance.run(stack.with_parameters(SourceUrl=url, SourceRevision=sha256).user_data("Server"))

    assert (done.code, done.signal["Status"]) == (1, "FAILURE")
    assert f"its SHA-256 is {hashlib.sha256(b'something else').hexdigest()}" in done.signal["Reason"]


@pytest.mark.parametrize("role", ["Server", "Builder"])
@pytest.mark.parametrize(
    ("url", "revision"),
    [("/nowhere/repository.git", ""), ("{url}/nothing.tar.gz", ""), ("s3://mine/nothing.tar.gz", ""), ("", "v404")],
)
def test_a_source_that_cannot_be_had_is_told(
    instance: Any, compiling: Any, repository: Path, role: str, url: str, revision: str
) -> None:
    url = url.format(url=instance.url) or str(repository)

    done = instance.run(compiling.with_parameters(SourceUrl=url, SourceRevision=revision).user_data(role))

    assert (done.code, done.signal["Status"]) == (1, "FAILURE")
    assert done.signal["Reason"].startswith(f"the source could not be had from {url}")
    assert (done.calls[-1] == "shutdown -h now") is (role == "Builder")


def test_something_else_than_this_project_is_refused(instance: Any, stack: Any, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/README").write_text("another project")
    subprocess.run(["tar", "-czf", tmp_path / "web/other.tgz", "-C", tmp_path, "other"], check=True)

    done = instance.run(stack.with_parameters(SourceUrl=f"{instance.url}/other.tgz").user_data("Server"))

    assert "it holds no configs/cloudformation/server.sh" in done.signal["Reason"]
