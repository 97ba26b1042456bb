"""The shapes of the three models that this server is made for, as their publishers' config.json files give them.

Data: a plan can be made for them before anything is downloaded. Knows no directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.spec import ModelSpec, spec_of

_LLAMA_3_8B: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-05,
}
_MISTRAL_7B: Mapping[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-05,
    "sliding_window": None,
}
_CODELLAMA_7B: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32016,
    "max_position_embeddings": 16384,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-05,
}

# By the last part of the id, in lower case: copies under other organisations have the same shapes.
_PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "meta-llama-3-8b": _LLAMA_3_8B,
    "meta-llama-3-8b-instruct": _LLAMA_3_8B,
    "mistral-7b-instruct-v0.2": _MISTRAL_7B,
    "codellama-7b-hf": _CODELLAMA_7B,
    "codellama-7b-instruct-hf": _CODELLAMA_7B,
}


def published_spec(model_id: str) -> ModelSpec | None:
    """The shapes of the published checkpoint of that id; None when it is none of the known ones."""
    config = _PUBLISHED.get(model_id.rpartition("/")[2].lower())
    return None if config is None else spec_of(config)
