"""How transformers-neuronx cuts a model over NeuronCores: padding of heads, replication of KV heads, bytes a core.

The rules are those of release 0.13 (`utils.get_qkv_padding`, `decoder.check_gqa_fallback`, `DecoderLayer.to_neuron`),
with the options that models/neuron/tnx.py sets. Knows no memory limit and no time.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.protocol import NeuronOptions
from models.spec import ModelSpec

AMP_BYTES = {"bf16": 2, "f16": 2, "f32": 4}


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads over all cores, after padding and replication; both divide by tp_degree."""

    queries: int
    keys: int


def sharded_heads(heads: int, kv_heads: int, tp_degree: int) -> Heads:
    """KV heads that divide evenly stay as they are. Otherwise they are replicated, which multiplies the KV cache."""
    queries = _rounded_up(heads, tp_degree)
    if heads == kv_heads:
        return Heads(queries, queries)
    if kv_heads % tp_degree == 0:
        return Heads(queries, kv_heads)
    keys = max(kv_heads * _replication(heads, kv_heads, queries, tp_degree), tp_degree)
    return Heads(queries, _rounded_up(queries if keys == heads else keys, tp_degree))


def _replication(heads: int, kv_heads: int, queries: int, tp_degree: int) -> int:
    """How often each KV head is stored: up to once a core if that comes out even, else once a query head."""
    padding = queries - heads
    if kv_heads < tp_degree and tp_degree % kv_heads == 0 and (padding == 0 or padding % kv_heads == 0):
        return tp_degree // kv_heads
    if queries * kv_heads == heads * tp_degree:
        return 1
    return heads // kv_heads


def core_weight_bytes(spec: ModelSpec, options: NeuronOptions) -> int:
    """Weights on one core: linears of the layers in the quantised or the amp type, lm_head in amp, norms on every core.

    The embedding table stays on the host. The scales of int8 (0.1 %) are left out.
    """
    tp, amp = options.tp_degree, AMP_BYTES[options.amp]
    heads = sharded_heads(spec.heads, spec.kv_heads, tp)
    attention = 2 * (heads.queries + heads.keys) * spec.head_dim * spec.hidden_size
    mlp = 3 * _rounded_up(spec.intermediate_size, tp) * spec.hidden_size
    layers = spec.layers * (attention + mlp) // tp * (amp if options.quant == "none" else 1)
    head = _rounded_up(spec.vocab_size, tp) * spec.hidden_size // tp * amp
    norms = (2 * spec.layers + 1) * spec.hidden_size * amp
    return layers + head + norms


def core_kv_bytes_per_token(spec: ModelSpec, options: NeuronOptions) -> int:
    """Keys and values of one cached token on one core."""
    keys = sharded_heads(spec.heads, spec.kv_heads, options.tp_degree).keys
    return 2 * spec.layers * keys // options.tp_degree * spec.head_dim * AMP_BYTES[options.amp]


def core_kv_bytes(spec: ModelSpec, options: NeuronOptions, positions: int) -> int:
    """Keys and values of the first `positions` positions of every slot: all are compiled in, live or not."""
    return options.slots * positions * core_kv_bytes_per_token(spec, options)


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
