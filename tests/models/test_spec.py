"""What a config.json says of a model, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.spec import ModelSpec, RopeScaling, SpecError, read_spec, spec_of

LLAMA_3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
MISTRAL_7B: dict[str, Any] = {
    **LLAMA_3_8B,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "sliding_window": None,
}
CODELLAMA_7B: dict[str, Any] = {
    **LLAMA_3_8B,
    "intermediate_size": 11008,
    "num_key_value_heads": 32,
    "vocab_size": 32016,
    "max_position_embeddings": 16384,
    "rope_theta": 1000000,
}
LLAMA_3_1_SCALING: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(LLAMA_3_8B, 8_030_261_248), (MISTRAL_7B, 7_241_732_096), (CODELLAMA_7B, 6_738_546_688)],
    ids=["Llama 3 8B", "Mistral 7B v0.2", "CodeLlama 7B"],
)
def test_the_published_models_have_their_published_sizes(config: dict[str, Any], parameters: int) -> None:
    spec = spec_of(config)
    assert spec.parameters() == parameters
    assert spec.weight_bytes(2) == 2 * parameters
    assert spec.head_dim == 128


def test_the_cache_takes_keys_and_values_of_every_layer() -> None:
    assert spec_of(LLAMA_3_8B).kv_bytes_per_token(2) == 2 * 32 * 8 * 128 * 2
    assert spec_of(CODELLAMA_7B).kv_bytes_per_token(2) == 4 * spec_of(LLAMA_3_8B).kv_bytes_per_token(2)


def test_tying_the_head_saves_its_weights() -> None:
    tied = spec_of({**LLAMA_3_8B, "tie_word_embeddings": True})
    assert spec_of(LLAMA_3_8B).parameters() - tied.parameters() == 128256 * 4096


def test_reads_the_rotary_parameters_of_transformers_4_and_5_alike() -> None:
    four = {**LLAMA_3_8B, "rope_scaling": LLAMA_3_1_SCALING}
    five = _without(LLAMA_3_8B, "rope_theta", "rope_scaling")
    five["rope_parameters"] = {**LLAMA_3_1_SCALING, "rope_theta": 500000.0}
    assert spec_of(four) == spec_of(five)
    assert spec_of(four).rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


def test_reads_plain_rotary_parameters_of_transformers_5() -> None:
    five = _without(MISTRAL_7B, "rope_theta", "rope_scaling")
    assert spec_of({**five, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}) == spec_of(MISTRAL_7B)


def test_reads_the_old_name_of_the_scaling_type() -> None:
    old = {**_without(LLAMA_3_1_SCALING, "rope_type"), "type": "llama3"}
    assert spec_of({**LLAMA_3_8B, "rope_scaling": old}).rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


def test_absent_keys_mean_what_they_mean_to_transformers() -> None:
    """Checked against the library itself, since a Mistral without `sliding_window` has one."""
    from transformers import LlamaConfig, MistralConfig

    optional = ("num_key_value_heads", "rope_theta", "rope_scaling", "rms_norm_eps", "tie_word_embeddings")
    for bare, library in (
        (_without(LLAMA_3_8B, *optional, "attention_bias", "hidden_act"), LlamaConfig),
        (_without(MISTRAL_7B, *optional, "sliding_window", "hidden_act"), MistralConfig),
    ):
        ours, theirs = spec_of(bare), library(**bare)
        assert ours.kv_heads == theirs.num_key_value_heads
        assert ours.rope_theta == theirs.rope_theta
        assert ours.rms_norm_eps == theirs.rms_norm_eps
        assert ours.tied == theirs.tie_word_embeddings
        assert ours.sliding_window == getattr(theirs, "sliding_window", None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2' is not supported; supported are llama, mistral"),
        ({"model_type": None}, "model_type None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised (gptq)"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear'"),
        ({"rope_scaling": {**LLAMA_3_1_SCALING, "factor": None}}, "factor must be a number over 0, not None"),
        ({"rope_scaling": {**LLAMA_3_1_SCALING, "high_freq_factor": 1.0}}, "high_freq_factor 1.0 must be over"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"num_attention_heads": 24}, "hidden_size 4096 is no multiple of num_attention_heads 24"),
        ({"num_key_value_heads": 5}, "num_attention_heads 32 is no multiple of num_key_value_heads 5"),
        ({"head_dim": 63}, "head_dim 63 is odd"),
        ({"vocab_size": 0}, "vocab_size must be a whole number of at least 1, not 0"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers must be a whole number of at least 1, not '32'"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, not 'no'"),
    ],
)
def test_refuses_what_no_backend_runs(change: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError) as refusal:
        spec_of({**LLAMA_3_8B, **change})
    assert says in str(refusal.value)


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"])
def test_a_key_that_has_no_default_must_be_there(key: str) -> None:
    with pytest.raises(SpecError, match=key):
        spec_of(_without(LLAMA_3_8B, key))


@pytest.mark.parametrize(
    ("text", "says"), [(None, "does not exist"), ("{", "cannot be read"), ("[]", "holds a list"), ("{}", "model_type")]
)
def test_a_broken_config_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(SpecError, match=says) as refusal:
        read_spec(tmp_path)
    assert str(tmp_path / "config.json") in str(refusal.value)


@pytest.mark.parametrize("family", ["llama3", "mistral", "codellama"])
def test_reads_a_checkpoint_of_each_family(family: str, tiny_checkpoint: Callable[..., Path]) -> None:
    directory = tiny_checkpoint(family)
    spec = read_spec(directory)
    assert isinstance(spec, ModelSpec)
    assert spec.vocab_size == json.loads((directory / "config.json").read_text())["vocab_size"]


def test_needs_the_standard_library_alone() -> None:
    code = "import sys, models.spec; sys.exit(bool({'torch', 'numpy', 'msgspec', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
