"""Checkpoints for the tests: tiny random ones of the three families, and the embedded SmolLM2."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# As the worker does (models/cpu/host.py), before a test module imports torch: spinning threads stall a shared machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# What sets each family apart, at a size that a test loads in milliseconds. The vocabularies are odd on purpose.
FAMILY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": 2,
        "vocab_size": 277,
        "max_position_embeddings": 256,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "num_key_value_heads": 2,
        "vocab_size": 269,
        "max_position_embeddings": 512,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    },
    "codellama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": 4,
        "vocab_size": 271,
        "max_position_embeddings": 256,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5,
    },
}
FAMILY_SPECIALS = {
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "mistral": ["<unk>", "<s>", "</s>"],
    "codellama": ["<unk>", "<s>", "</s>", "▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"],
}
FAMILY_BOS_EOS = {
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "mistral": ("<s>", "</s>"),
    "codellama": ("<s>", "</s>"),
}
SHARED_CONFIG: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def _tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, hidden)
            if config.get("attention_bias"):
                shapes[f"{prefix}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, queries)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, inner)
        if config.get("attention_bias"):
            shapes[f"{prefix}.self_attn.o_proj.bias"] = (hidden,)
        if config.get("mlp_bias"):
            shapes[f"{prefix}.mlp.gate_proj.bias"] = (inner,)
            shapes[f"{prefix}.mlp.up_proj.bias"] = (inner,)
            shapes[f"{prefix}.mlp.down_proj.bias"] = (hidden,)
    return shapes


def _write_weights(directory: Path, config: dict[str, Any], seed: int, shards: int) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for name, shape in _tensor_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            # Wide enough that logits differ clearly between tokens: an argmax must not hang on rounding.
            weights[name] = noise * (1.5 / shape[1] ** 0.5)
        else:
            weights[name] = noise * 0.1 if name.endswith("bias") else 1 + noise * 0.1
    names = sorted(weights)
    if shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_tokenizer(directory: Path, family: str) -> dict[str, int]:
    """A byte-level tokenizer without merges: the family's special tokens, then the 256 bytes. Returns the specials."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    names = FAMILY_SPECIALS[family]
    vocabulary = {name: index for index, name in enumerate(names)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    bos, eos = FAMILY_BOS_EOS[family]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, vocabulary[bos])]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos})
    )
    return vocabulary


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a tiny random Hugging Face checkpoint of a family ("llama3", "mistral", "codellama") and says where.

    Keyword arguments replace entries of config.json; `seed` gives other weights, `shards` splits them over files.
    Equal calls answer the same directory: copy it before you change it.
    """
    written: dict[str, Path] = {}

    def make(family: str, *, seed: int = 0, shards: int = 1, **overrides: Any) -> Path:
        key = json.dumps([family, seed, shards, overrides], sort_keys=True)
        if key not in written:
            directory = tmp_path_factory.mktemp(f"tiny-{family}")
            specials = _write_tokenizer(directory, family)
            bos, eos = FAMILY_BOS_EOS[family]
            ids = {"bos_token_id": specials[bos], "eos_token_id": specials[eos]}
            config = {**SHARED_CONFIG, **FAMILY_CONFIGS[family], **ids, **overrides}
            (directory / "config.json").write_text(json.dumps(config, indent=2))
            stops = [specials[eos], specials["<|eot_id|>"]] if family == "llama3" else specials[eos]
            generation = {"bos_token_id": specials[bos], "eos_token_id": stops}
            (directory / "generation_config.json").write_text(json.dumps(generation))
            _write_weights(directory, config, seed, shards)
            written[key] = directory
        return written[key]

    return make


@pytest.fixture(scope="session")
def embedded_model(embedded_set_up: None) -> Path:
    """The directory of the embedded model, set up by the command that users run (a download on the first run)."""
    from models.cpu.embedded import embedded_directory

    return embedded_directory()
