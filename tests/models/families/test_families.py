"""How a checkpoint's family is recognised, and what each family brings."""

from __future__ import annotations

from typing import Any

import pytest

from models.families import FAMILIES, UnknownFamilyError, family_named, family_of


@pytest.mark.parametrize(
    ("config", "name"),
    [
        # Meta-Llama-3-8B-Instruct, Llama-3.2-1B, Mistral-7B-Instruct-v0.2, CodeLlama 7B, 34B and 70B, SmolLM2, Llama 2
        ({"model_type": "llama", "vocab_size": 128_256, "rope_theta": 500_000.0}, "llama3"),
        ({"model_type": "llama", "vocab_size": 128_258, "rope_theta": 500_000}, "llama3"),
        ({"model_type": "mistral", "vocab_size": 32_000, "rope_theta": 1_000_000.0}, "mistral"),
        ({"model_type": "llama", "architectures": ["MistralForCausalLM"]}, "mistral"),
        ({"model_type": "llama", "vocab_size": 32_016, "rope_theta": 1_000_000}, "codellama"),
        ({"model_type": "llama", "vocab_size": 32_000, "rope_theta": 1_000_000}, "codellama"),
        ({"model_type": "llama", "vocab_size": 32_016, "rope_theta": 10_000.0}, "codellama"),
        ({"model_type": "llama", "vocab_size": 49_152, "rope_theta": 100_000}, "llama"),
        ({"model_type": "llama", "vocab_size": 32_000}, "llama"),
    ],
)
def test_recognition(config: dict[str, Any], name: str) -> None:
    assert family_of(config).name == name


@pytest.mark.parametrize("config", [{}, {"model_type": "gpt2"}, {"model_type": None}])
def test_other_architectures_are_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(UnknownFamilyError, match=r"model_type .* is not served; served: llama, mistral"):
        family_of(config)


def test_a_family_can_be_forced_by_name() -> None:
    assert family_named("chatml").stop_tokens == ("<|im_end|>",)
    with pytest.raises(UnknownFamilyError, match="'falcon' is not known; known: auto, llama3, mistral"):
        family_named("falcon")


def test_llama_3_stops_at_both_of_its_end_tokens() -> None:
    assert {"<|end_of_text|>", "<|eot_id|>"} <= set(FAMILIES["llama3"].stop_tokens)


def test_an_unrecognised_llama_lends_nothing() -> None:
    assert FAMILIES["llama"].default_template is None
    assert FAMILIES["llama"].stop_tokens == ()


class TestInfilling:
    """CodeLlama's gaps, as text."""

    @pytest.mark.parametrize(
        ("inputs", "split"),
        [
            ("def f(x):\n    <FILL_ME>\n    return y", ("def f(x):\n    ", "\n    return y")),
            ("<FILL_ME>b", ("", "b")),
            ("a<FILL_ME>", ("a", "")),
            ("no gap", None),
            ("<fill_me>", None),
        ],
    )
    def test_a_mark_splits_the_inputs(self, inputs: str, split: tuple[str, str] | None) -> None:
        infilling = FAMILIES["codellama"].infilling
        assert infilling is not None
        assert infilling.split(inputs) == split

    def test_two_marks_are_refused(self) -> None:
        infilling = FAMILIES["codellama"].infilling
        assert infilling is not None
        with pytest.raises(ValueError, match="<FILL_ME> 2 times"):
            infilling.split("a<FILL_ME>b<FILL_ME>c")

    def test_no_other_family_has_it(self) -> None:
        assert [name for name, family in FAMILIES.items() if family.infilling] == ["codellama"]
