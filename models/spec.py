"""ModelSpec: the shapes of a Llama-architecture checkpoint, read from its config.json.

Reads what transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) write, and refuses what no backend
here computes. Pure: both processes import it, so it needs the standard library alone. Knows no weights and no device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}

# What transformers assumes when the key is absent. A Mistral checkpoint without `sliding_window` has one.
_DEFAULT_KV_HEADS = {"mistral": 8}
_DEFAULT_SLIDING_WINDOW = {"mistral": 4096}
_DEFAULT_ROPE_THETA = 10000.0
_DEFAULT_RMS_NORM_EPS = 1e-6


class SpecError(ValueError):
    """config.json is missing, broken, or describes a model that no backend runs; the text says what and why."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's stretching of the rotary frequencies (`rope_type` "llama3"); lengths are in tokens."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shapes and constants of one decoder. `head_dim` is per head; `sliding_window` is None for full attention."""

    architecture: str
    model_type: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    rms_norm_eps: float
    tied: bool
    sliding_window: int | None
    attention_bias: bool
    mlp_bias: bool

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the checkpoint must hold, by Hugging Face name, in load order; linears are (out, in)."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.layers):
            shapes.update(self._layer_shapes(f"model.layers.{layer}"))
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def _layer_shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
        attention["o_proj"] = (hidden, queries)
        mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        shapes: dict[str, tuple[int, ...]] = {f"{prefix}.input_layernorm.weight": (hidden,)}
        for block, linears, bias in (("self_attn", attention, self.attention_bias), ("mlp", mlp, self.mlp_bias)):
            for name, shape in linears.items():
                shapes[f"{prefix}.{block}.{name}.weight"] = shape
                if bias:
                    shapes[f"{prefix}.{block}.{name}.bias"] = shape[:1]
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        return shapes

    def parameters(self) -> int:
        """How many numbers the checkpoint holds; a tied head counts once."""
        return sum(prod(shape) for shape in self.tensor_shapes().values())

    def weight_bytes(self, dtype_bytes: int) -> int:
        """Bytes of all weights at `dtype_bytes` a number."""
        return self.parameters() * dtype_bytes

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes of keys and values that one cached token takes over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype_bytes


def read_spec(directory: Path) -> ModelSpec:
    """The spec of the checkpoint in `directory`; SpecError says what is missing or unsupported."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path} does not exist: {directory} is no Hugging Face checkpoint") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise SpecError(f"{path} holds a {type(config).__name__}, not an object")
    try:
        return spec_of(config)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    """The spec that the contents of a config.json describe; SpecError as `read_spec`."""
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise SpecError(f"model_type {model_type!r} is not supported; supported are {', '.join(sorted(ARCHITECTURES))}")
    _check_supported(config, model_type)
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    kv_heads = _count(config, "num_key_value_heads", _DEFAULT_KV_HEADS.get(model_type, heads))
    if heads % kv_heads:
        raise SpecError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    theta, scaling = _rope(config)
    return ModelSpec(
        architecture=ARCHITECTURES[model_type],
        model_type=model_type,
        hidden_size=hidden,
        intermediate_size=_count(config, "intermediate_size"),
        layers=_count(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(config, hidden, heads),
        vocab_size=_count(config, "vocab_size"),
        max_position_embeddings=_count(config, "max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=_number(config, "rms_norm_eps", _DEFAULT_RMS_NORM_EPS),
        tied=_flag(config, "tie_word_embeddings"),
        sliding_window=_sliding_window(config, model_type),
        attention_bias=_flag(config, "attention_bias"),
        mlp_bias=_flag(config, "mlp_bias"),
    )


def _check_supported(config: Mapping[str, Any], model_type: str) -> None:
    architectures = config.get("architectures") or [ARCHITECTURES[model_type]]
    if architectures != [ARCHITECTURES[model_type]]:
        raise SpecError(f"architectures {architectures!r} is not supported; expected [{ARCHITECTURES[model_type]!r}]")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise SpecError(f"hidden_act {activation!r} is not supported; only silu is")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise SpecError(f"the checkpoint is quantised ({method}); use the original one in bfloat16, float16 or float32")


def _head_dim(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    if config.get("head_dim") is None and hidden % heads:
        raise SpecError(f"hidden_size {hidden} is no multiple of num_attention_heads {heads} and head_dim is not given")
    head_dim = _count(config, "head_dim", hidden // heads)
    if head_dim % 2:
        raise SpecError(f"head_dim {head_dim} is odd: rotary embeddings turn pairs")
    return head_dim


def _sliding_window(config: Mapping[str, Any], model_type: str) -> int | None:
    if "sliding_window" not in config:
        return _DEFAULT_SLIDING_WINDOW.get(model_type)
    return None if config["sliding_window"] is None else _count(config, "sliding_window")


def _rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from `rope_parameters`, or else from `rope_theta` and `rope_scaling`."""
    rope: Any = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise SpecError(f"the rotary parameters {rope!r} are no object")
    theta = _number(rope, "rope_theta", _number(config, "rope_theta", _DEFAULT_ROPE_THETA))
    rotated = _number(rope, "partial_rotary_factor", _number(config, "partial_rotary_factor", 1.0))
    if rotated != 1.0:
        raise SpecError(f"partial_rotary_factor {rotated} is not supported; only 1.0 is")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise SpecError(f"rope type {kind!r} is not supported; supported are default and llama3")
    scaling = RopeScaling(
        factor=_number(rope, "factor"),
        low_freq_factor=_number(rope, "low_freq_factor"),
        high_freq_factor=_number(rope, "high_freq_factor"),
        original_max_position_embeddings=_count(rope, "original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise SpecError(
            f"rope high_freq_factor {scaling.high_freq_factor} must be over low_freq_factor {scaling.low_freq_factor}"
        )
    return theta, scaling


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{key} must be a whole number of at least 1, not {value!r}")
    return value


def _number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise SpecError(f"{key} must be a number over 0, not {value!r}")
    return float(value)


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise SpecError(f"{key} must be true or false, not {value!r}")
    return value
