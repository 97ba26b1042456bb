"""scripts/choose-models: a configuration with some of its models, that is read as the whole one was."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from server.configuration import load_settings
from server.settings import ModelSettings, Settings

ROOT = Path(__file__).parents[2]
INF2 = ROOT / "configs/inf2.toml"
LLAMA, MISTRAL, CODELLAMA = (model.id for model in load_settings(INF2, {}, {}).models)


def choose(*models: str, file: Path = INF2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts/choose-models"), str(file), *models], capture_output=True, text=True, check=False
    )


def chosen(directory: Path, *models: str, file: Path = INF2) -> Settings:
    """What the server reads of the script's output."""
    done = choose(*models, file=file)
    assert done.returncode == 0, done.stderr
    path = directory / "chosen.toml"
    path.write_text(done.stdout)
    return load_settings(path, {"NEURONX_SERVE_CACHE": "/cache"}, {})


def of_the_file(name: str, file: Path = INF2) -> ModelSettings:
    settings = load_settings(file, {"NEURONX_SERVE_CACHE": "/cache"}, {})
    return next(model for model in settings.models if model.id == name)


@pytest.mark.parametrize("ids", [(LLAMA,), (CODELLAMA, LLAMA), (MISTRAL, CODELLAMA, LLAMA)])
def test_the_models_stand_in_the_order_given_with_their_own_settings(tmp_path: Path, ids: tuple[str, ...]) -> None:
    settings = chosen(tmp_path, *ids)

    assert settings.models == tuple(of_the_file(name) for name in ids)
    assert settings.server == load_settings(INF2, {}, {}).server


def test_a_model_that_the_file_does_not_name_gets_the_settings_of_the_first(tmp_path: Path) -> None:
    (model,) = chosen(tmp_path, "NousResearch/Meta-Llama-3-8B-Instruct").models

    assert model.id == "NousResearch/Meta-Llama-3-8B-Instruct"
    assert model.path == "/cache/models/Meta-Llama-3-8B-Instruct"
    assert model.device == of_the_file(LLAMA).device


def test_a_path_may_be_given(tmp_path: Path) -> None:
    settings = chosen(tmp_path, f"{CODELLAMA}=/opt/ml/model", "mine=cache:mine")

    assert [(model.path, model.device) for model in settings.models] == [
        ("/opt/ml/model", of_the_file(CODELLAMA).device),
        ("/cache/models/mine", of_the_file(LLAMA).device),
    ]


def test_tables_behind_the_models_stay(tmp_path: Path) -> None:
    file = tmp_path / "whole.toml"
    file.write_text(f"{INF2.read_text()}\n[swap]\ndrain = 7\n")

    assert chosen(tmp_path, LLAMA, file=file).swap.drain == 7
    assert chosen(tmp_path, CODELLAMA, file=file).swap.drain == 7


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        (("two words",), "'two words' is no model"),
        (("a/b|c",), "'a/b|c' is no model"),
        (("", LLAMA), "'' is no model"),
        ((LLAMA, LLAMA), f"{LLAMA} is named twice"),
        (('a=/x"y',), "is no path for a model"),
        ((), "usage"),
    ],
)
def test_what_cannot_be_a_model_is_refused(models: tuple[str, ...], reason: str) -> None:
    done = choose(*models)

    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr
