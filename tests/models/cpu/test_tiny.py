"""The tiny models: made alike everywhere, of the family they claim, with tokenizers that work, speaking in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from models.checkpoint import SafetensorsCheckpoint, verify
from models.cpu import tiny
from models.families import family_of
from models.spec import read_spec

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cache")
    tiny.set_up(directory)
    return directory


each_model = pytest.mark.parametrize("model", tiny.MODELS, ids=lambda model: model.name)


def test_the_three_families(cache: Path) -> None:
    configs = [json.loads((cache / model.name / "config.json").read_text("utf-8")) for model in tiny.MODELS]
    assert [family_of(config).name for config in configs] == ["llama3", "mistral", "codellama"]


def test_they_are_the_same_bytes_on_every_machine(cache: Path, tmp_path: Path) -> None:
    for made, again in zip(tiny.set_up(cache), tiny.set_up(tmp_path), strict=True):
        files = sorted(path.name for path in made.iterdir())
        assert files == sorted(path.name for path in again.iterdir())
        assert [name for name in files if (made / name).read_bytes() != (again / name).read_bytes()] == []


def test_a_second_set_up_changes_nothing_and_one_of_another_format_is_replaced(tmp_path: Path) -> None:
    first, *others = tiny.set_up(tmp_path)
    untouched = [(path / "config.json").stat().st_ino for path in others]
    (first / tiny.MANIFEST).write_text('{"format": 0}')
    (first / "config.json").unlink()
    tiny.set_up(tmp_path)
    assert (first / "config.json").exists()
    assert [(path / "config.json").stat().st_ino for path in others] == untouched
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(model.name for model in tiny.MODELS)


@each_model
def test_the_weights_are_those_that_config_json_promises(cache: Path, model: tiny.Tiny) -> None:
    directory = cache / model.name
    verify(SafetensorsCheckpoint([directory / "model.safetensors"]).entries, read_spec(directory))


@each_model
@pytest.mark.parametrize("text", ["the wind and the alpaca", "été, 北京 🦙\n\ttab", "def total(x): return x"])
def test_text_survives_its_tokens(cache: Path, model: tiny.Tiny, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(cache / model.name / "tokenizer.json"))
    tokens = tokenizer.encode(text)
    assert tokens.ids[0] == tokenizer.token_to_id(model.bos)
    assert tokenizer.decode(tokens.ids) == text


@each_model
def test_a_word_of_its_vocabulary_is_one_token(cache: Path, model: tiny.Tiny) -> None:
    tokenizer = Tokenizer.from_file(str(cache / model.name / "tokenizer.json"))
    text = " " + " ".join(model.words) if model.space == "Ġ" else " ".join(model.words)
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) == len(model.words)


def test_the_configuration_names_all_of_them() -> None:
    text = (ROOT / "configs" / "cpu-three-models.toml").read_text("utf-8")
    assert [f'path = "cache:{model.name}"' in text for model in tiny.MODELS] == [True] * 3


THREE = """
[[models]]
id = "{name}"
path = "{directory}"
[models.device]
kind = "cpu"
slots = 2
n_positions = 256
threads = 1
"""


@pytest.mark.long
def test_each_answers_in_its_own_words(serve: Callable[..., Any], cache: Path) -> None:
    server = serve("".join(THREE.format(name=model.name, directory=cache / model.name) for model in tiny.MODELS))
    server.wait_available()
    chat = {"messages": [{"role": "user", "content": "What do you see?"}], "temperature": 0, "max_tokens": 40}
    for model in tiny.MODELS:
        answer = server.post(f"/models/{model.name}/v1/chat/completions", chat).json()
        said = answer["choices"][0]["message"]["content"].split()
        assert len(said) == 40
        assert set(said) <= set(model.words)
