"""Inputs as a prompt: plain ones, and those with a gap to fill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from server.text.inputs import encode_inputs
from server.text.tokenizer import Tokenizer

CODELLAMA = {"model_type": "llama", "vocab_size": 32_016, "rope_theta": 1_000_000, "eos_token_id": 2}
SPECIALS = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")

GAPS = [
    "def f(x):\n    <FILL_ME>\n    return y",
    'def remove_non_ascii(s: str) -> str:\n    """ <FILL_ME>\n    return result\n',
    "  two spaces <FILL_ME>  and two more",
    "a<FILL_ME>b",
    "計算<FILL_ME>🙂 naïve",
    "x<FILL_ME>\n",
    "<s>written out<FILL_ME> by the client",
]

Directory = Callable[..., Path]


@pytest.fixture
def codellama(tokenizer_directory: Directory, byte_fallback_raw: tokenizers.Tokenizer) -> Tokenizer:
    raw = tokenizers.Tokenizer.from_str(byte_fallback_raw.to_str())
    raw.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return Tokenizer.load(tokenizer_directory(raw, config=CODELLAMA))


def _ids(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_id(name)
    assert found is not None
    return found


def _text(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_inputs_without_a_gap_are_tokenised_as_they_are(codellama: Tokenizer) -> None:
    assert encode_inputs(codellama, "def main()", add_special_tokens=True) == (1, *_text(codellama, "def main()"))


def test_inputs_that_bring_their_bos_get_no_second_one(codellama: Tokenizer) -> None:
    once = (1, *_text(codellama, "def main()"))
    assert encode_inputs(codellama, "<s>def main()", add_special_tokens=True) == once


def test_a_gap_becomes_prefix_suffix_middle(codellama: Tokenizer) -> None:
    prefix, suffix, middle = (_ids(codellama, name) for name in SPECIALS[:3])
    ids = encode_inputs(codellama, "def main():<FILL_ME>print", add_special_tokens=True)
    behind = _text(codellama, "☺print")[len(_text(codellama, "☺")) :]
    assert ids == (1, prefix, *_text(codellama, "def main():"), suffix, *behind, middle)
    assert codellama.decode(behind, skip_special_tokens=False) == "print"


def test_the_text_behind_a_gap_keeps_its_own_spaces_and_gets_none(codellama: Tokenizer) -> None:
    suffix, middle = _ids(codellama, "▁<SUF>"), _ids(codellama, "▁<MID>")
    for behind in ("print", " print", "\n  print"):
        ids = encode_inputs(codellama, f"def<FILL_ME>{behind}", add_special_tokens=True)
        between = ids[ids.index(suffix) + 1 : ids.index(middle)]
        assert codellama.decode(between, skip_special_tokens=False) == behind


def test_nothing_in_front_of_a_gap_is_nothing(codellama: Tokenizer) -> None:
    prefix, suffix = _ids(codellama, "▁<PRE>"), _ids(codellama, "▁<SUF>")
    assert encode_inputs(codellama, "<FILL_ME>print", add_special_tokens=True)[:3] == (1, prefix, suffix)


def test_with_nothing_behind_the_gap_the_text_is_continued(codellama: Tokenizer) -> None:
    ids = encode_inputs(codellama, "def main():<FILL_ME>", add_special_tokens=True)
    assert ids == (1, *_text(codellama, "def main():"))


def test_truncation_keeps_the_end(codellama: Tokenizer) -> None:
    whole = encode_inputs(codellama, "def main():<FILL_ME>print", add_special_tokens=True)
    assert encode_inputs(codellama, "def main():<FILL_ME>print", add_special_tokens=True, truncate=4) == whole[-4:]
    assert encode_inputs(codellama, "def main():<FILL_ME>print", add_special_tokens=True, truncate=400) == whole


def test_a_second_gap_is_refused(codellama: Tokenizer) -> None:
    with pytest.raises(ValueError, match="holds <FILL_ME> 2 times: one gap"):
        encode_inputs(codellama, "a<FILL_ME>b<FILL_ME>c", add_special_tokens=True)


def test_a_codellama_without_the_tokens_says_so(
    tokenizer_directory: Directory, byte_fallback_raw: tokenizers.Tokenizer
) -> None:
    """CodeLlama 34B, say."""
    tokenizer = Tokenizer.load(tokenizer_directory(byte_fallback_raw, config=CODELLAMA))
    with pytest.raises(ValueError, match="this model fills no gaps: it has no token ▁<PRE>"):
        encode_inputs(tokenizer, "a<FILL_ME>b", add_special_tokens=True)


def test_the_mark_is_plain_text_in_a_chat_and_to_other_families(
    codellama: Tokenizer, byte_fallback: Tokenizer, byte_level: Tokenizer
) -> None:
    text = "a<FILL_ME>b"
    assert encode_inputs(codellama, text, add_special_tokens=False) == _text(codellama, text)
    for tokenizer in (byte_fallback, byte_level):
        expected = tokenizer.encode(text, add_special_tokens=True)
        assert encode_inputs(tokenizer, text, add_special_tokens=True) == expected


def test_an_answer_ends_at_the_end_token_of_infilling(codellama: Tokenizer) -> None:
    assert _ids(codellama, "▁<EOT>") in codellama.eos_ids


@pytest.mark.long
def test_gaps_as_transformers_tokenises_them(published: Callable[[str, dict[str, Any]], Path], tmp_path: Path) -> None:
    """CodeLlama's tokenizer is Llama 2's with the tokens of infilling behind it, four of them special."""
    from transformers import CodeLlamaTokenizerFast

    directory = published("llama2", CODELLAMA)
    state = json.loads((directory / "tokenizer.json").read_text())
    names = [*(f"<unused {number}>" for number in range(7)), *SPECIALS]
    state["model"]["vocab"].update({name: 32_000 + index for index, name in enumerate(names)})
    shape = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    state["added_tokens"] += [{"id": state["model"]["vocab"][name], "content": name, **shape} for name in SPECIALS]
    (directory / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = Tokenizer.load(directory)
    reference = CodeLlamaTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))

    assert [tokenizer.token_id(name) for name in SPECIALS] == [32_007, 32_008, 32_009, 32_010]
    assert 32_010 in tokenizer.eos_ids
    for inputs in GAPS:
        expected = reference.encode(inputs.removeprefix("<s>"))
        assert list(encode_inputs(tokenizer, inputs, add_special_tokens=True)) == expected, inputs
