"""Each family's text against the code of those who trained it, with its real tokenizer from a package registry."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from server.text.chat import ChatTemplate, Message
from server.text.tokenizer import Tokenizer

pytestmark = pytest.mark.long

Published = Callable[[str, dict[str, Any]], Path]

LLAMA3 = {"model_type": "llama", "vocab_size": 128_256, "rope_theta": 500_000.0, "eos_token_id": 128_001}
MISTRAL = {"model_type": "mistral", "vocab_size": 32_000, "rope_theta": 1_000_000.0, "eos_token_id": 2}
CODELLAMA = {"model_type": "llama", "vocab_size": 32_016, "rope_theta": 1_000_000, "eos_token_id": 2}

CHATS: list[list[tuple[str, str]]] = [
    [("user", "Hello")],
    [("user", "Hi there"), ("assistant", "Hello, you"), ("user", "计算 🙂 x")],
    [("system", "Be brief."), ("user", "def f(x):\n    return x")],
    [("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", "three  spaces")],
]
TEXTS = ["Hello", " Hello", "Hello  👩‍👩‍👧", "计算一下北京到上海的距离\n\n", "naïve\tᚠᛇᚻ 𠜎", "", "<0x0A> is no byte"]


@pytest.fixture(scope="module")
def llama3(published: Published) -> Path:
    return published("llama3", LLAMA3)


@pytest.fixture(scope="module")
def codellama(published: Published) -> Path:
    """Llama 2's tokenizer, which CodeLlama's extends."""
    return published("llama2", CODELLAMA)


def _messages(chat: list[tuple[str, str]]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in chat]


def _chat_ids(directory: Path, family: str, chat: list[tuple[str, str]]) -> list[int]:
    tokenizer = Tokenizer.load(directory, family)
    prompt = ChatTemplate.load(directory, family, tokenizer).render(_messages(chat))
    return list(tokenizer.encode(prompt, add_special_tokens=False))


# --- Llama 3 ----------------------------------------------------------------------------------------------------


def test_llama_3_stops_at_both_of_its_end_tokens(llama3: Path) -> None:
    tokenizer = Tokenizer.load(llama3)
    assert {tokenizer.token_id("<|end_of_text|>"), tokenizer.token_id("<|eot_id|>")} <= set(tokenizer.eos_ids)
    assert {128_001, 128_009} <= set(tokenizer.eos_ids)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("own_template", [True, False])
def test_llama_3_chats_as_transformers_writes_them(
    llama3: Path, tmp_path: Path, chat: list[tuple[str, str]], own_template: bool
) -> None:
    from transformers import PreTrainedTokenizerFast

    directory = shutil.copytree(llama3, tmp_path, dirs_exist_ok=True)
    reference = PreTrainedTokenizerFast.from_pretrained(directory)
    turns = [{"role": role, "content": content} for role, content in chat]
    expected = reference.apply_chat_template(turns, add_generation_prompt=True)
    if not own_template:
        config = json.loads((directory / "tokenizer_config.json").read_text())
        del config["chat_template"]
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert _chat_ids(directory, "llama3", chat) == expected


# --- Mistral ----------------------------------------------------------------------------------------------------

_CONVERT = """
import sys
from transformers import LlamaTokenizerFast
tokenizer = LlamaTokenizerFast(vocab_file=sys.argv[1], legacy=True, add_prefix_space=True, from_slow=True)
tokenizer.save_pretrained(sys.argv[2])
"""
_REFERENCE = """
import json, sys
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
kinds = {"user": UserMessage, "assistant": AssistantMessage, "system": SystemMessage}
asked = json.load(sys.stdin)
tokenizer = MistralTokenizer.v1()
chats = [[kinds[role](content=content) for role, content in chat] for chat in asked["chats"]]
json.dump({
    "chats": [tokenizer.encode_chat_completion(ChatCompletionRequest(messages=chat)).tokens for chat in chats],
    "texts": [tokenizer.instruct_tokenizer.tokenizer.encode(text, bos=True, eos=False) for text in asked["texts"]],
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[list[int]]]]:
    """The tokenizer of Mistral 7B as tokenizer.json, and how Mistral's own package tokenises CHATS and TEXTS."""
    packages, directory = tmp_path_factory.mktemp("mistral-common"), tmp_path_factory.mktemp("mistral")
    wanted = ["mistral-common==1.12.0", "sentencepiece", "protobuf"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), *wanted]
    installed = subprocess.run(pip, capture_output=True, text=True, timeout=600)
    if installed.returncode != 0:
        pytest.skip(f"pip install {' '.join(wanted)} failed: {installed.stderr.strip()[-300:]}")
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    model = packages / "mistral_common" / "data" / "tokenizer.model.v1"
    convert = [sys.executable, "-c", _CONVERT, str(model), str(directory)]
    subprocess.run(convert, env=environment, check=True, capture_output=True, timeout=300)
    (directory / "config.json").write_text(json.dumps(MISTRAL))
    asked = json.dumps({"chats": CHATS, "texts": TEXTS})
    answered = subprocess.run(
        [sys.executable, "-c", _REFERENCE], env=environment, input=asked, check=True, capture_output=True, text=True
    )
    return directory, json.loads(answered.stdout)


def test_mistral_texts_as_its_own_package_tokenises_them(
    mistral: tuple[Path, dict[str, list[list[int]]]],
) -> None:
    directory, reference = mistral
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.eos_ids == (2,)
    for text, expected in zip(TEXTS, reference["texts"], strict=True):
        ids = tokenizer.encode(text, add_special_tokens=True)
        assert list(ids) == expected, text
        assert tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ") == text


def test_mistral_chats_as_its_own_package_writes_them(
    mistral: tuple[Path, dict[str, list[list[int]]]],
) -> None:
    """The system text, which the template refuses, goes into the first user turn, where Mistral puts it too."""
    directory, reference = mistral
    for chat, expected in zip(CHATS, reference["chats"], strict=True):
        assert _chat_ids(directory, "mistral", chat) == expected, chat


# --- CodeLlama --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", CHATS)
def test_codellama_chats_as_llama_2_does(codellama: Path, chat: list[tuple[str, str]]) -> None:
    """The format of the Llama 2 and CodeLlama papers, spelt out: each exchange between <s> and </s>."""
    tokenizer = Tokenizer.load(codellama)
    system = f"<<SYS>>\n{chat[0][1]}\n<</SYS>>\n\n" if chat[0][0] == "system" else ""
    turns = [content.strip() for role, content in chat if role != "system"]
    turns[0] = system + turns[0]
    expected: list[int] = []
    for user, answer in zip_longest(turns[::2], turns[1::2]):
        exchange = f"[INST] {user} [/INST]" if answer is None else f"[INST] {user} [/INST] {answer} "
        expected += tokenizer.encode(exchange, add_special_tokens=True)
        expected += [] if answer is None else [2]
    assert _chat_ids(codellama, "codellama", chat) == expected


def test_byte_fallback_tokens_are_the_bytes_of_their_character(codellama: Path) -> None:
    tokenizer = Tokenizer.load(codellama)
    ids = tokenizer.encode("👩", add_special_tokens=False)
    bytes_ = ids[-4:]
    assert [tokenizer.piece(token) for token in bytes_] == [bytes([byte]) for byte in "👩".encode()]
    assert tokenizer.decode(bytes_, skip_special_tokens=True) == "👩"
    assert tokenizer.token_id("<0x0A>") == 13
    assert tokenizer.piece(13) == b"\n"
