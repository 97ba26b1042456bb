"""Stands in for transformers-neuronx where it cannot be installed: its step contract, with a hash for a model.

Written from the library's observable behaviour (tests/neuron_emulator/FINDINGS.md); test_library_contract.py holds it
to the real library's answers. The cache of a slot is the list of tokens at their positions, and logits are a hash of
what is visible, so that a missed slot, a wrong position or a damaged first token changes them.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

NEURON_CONFIG_FIELDS = {
    "continuous_batching",
    "attention_layout",
    "collectives_layout",
    "cache_layout",
    "fuse_qkv",
    "group_query_attention",
    "quant",
    "on_device_embedding",
    "on_device_generation",
    "compilation_worker_count",
}


class ContinuousBatchingConfig:
    def __init__(self, *, max_num_seqs: int) -> None:
        self.max_num_seqs = max_num_seqs


class QuantizationConfig:
    def __init__(self, quant_dtype: str = "s8", dequant_dtype: str = "f16") -> None:
        self.quant_dtype, self.dequant_dtype = quant_dtype, dequant_dtype


class GenerationConfig:
    """Sampling on the device, as the driver asks for it: a list entry for each slot, changed while running."""

    def __init__(
        self,
        *,
        do_sample: bool,
        dynamic: bool,
        per_batch_line: bool,
        global_top_k: int,
        top_k: list[int],
        top_p: list[float],
        temperature: list[float],
        top_p_min_tokens: list[int],
    ) -> None:
        assert do_sample
        assert dynamic
        assert per_batch_line
        self.global_top_k, self.top_k, self.top_p = global_top_k, top_k, top_p
        self.temperature, self.top_p_min_tokens = temperature, top_p_min_tokens

    def check(self, slots: int) -> None:
        lists = (self.top_k, self.top_p, self.temperature, self.top_p_min_tokens)
        assert {len(each) for each in lists} == {slots}, "sampling parameters must be of same size as batch_size"

    def draw(self, logits: torch.Tensor, slot: int) -> int:
        values, ids = (logits / self.temperature[slot]).topk(min(self.global_top_k, self.top_k[slot]))
        probabilities = values.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        kept = torch.where(before < self.top_p[slot], probabilities, 0.0)
        return int(ids[kept.multinomial(1)])


class NeuronConfig:
    def __init__(self, **fields: Any) -> None:
        unexpected = set(fields) - NEURON_CONFIG_FIELDS
        assert not unexpected, f"Unexpected NeuronConfig keyword arguments: {unexpected}"
        self.__dict__.update(dict.fromkeys(NEURON_CONFIG_FIELDS), **fields)


class _Layer:
    def nullify(self) -> None:
        """The device has this layer's weights."""


class _Module:
    def __init__(self, text: str) -> None:
        self._text = text

    def SerializeToString(self) -> bytes:
        return self._text.encode()


class _Kernel:
    """One graph."""

    num_exec_repetition = 1

    def __init__(self, text: str) -> None:
        self.hlo_module = _Module(text)
        self.neff_bytes: bytes | None = None

    @property
    def name(self) -> str:
        return hashlib.sha256(self.hlo_module.SerializeToString()).hexdigest()[:20] + ".neff"

    def compile(self, num_exec_repetition: int) -> bytes:
        self.neff_bytes = b"neff of " + self.hlo_module.SerializeToString()
        return self.neff_bytes


class _Decoder:
    """What shares a set-up: the graph of one context bucket, or those of all token buckets."""

    def __init__(self, kernels: list[_Kernel]) -> None:
        self._kernels = kernels

    def get_all_kernels(self) -> list[_Kernel]:
        return self._kernels

    def setup(self) -> None:
        """The device has these graphs."""
        assert all(kernel.neff_bytes is not None for kernel in self._kernels), "Try to load with neff bytes as None"


class LlamaForSampling:
    @classmethod
    def from_pretrained(cls, path: str, **options: Any) -> LlamaForSampling:
        config = json.loads((Path(path) / "config.json").read_text())
        return cls(config, **options)

    def __init__(
        self,
        config: dict[str, Any],
        *,
        n_positions: list[int],
        context_length_estimate: list[int],
        batch_size: int,
        amp: str,
        tp_degree: int,
        neuron_config: NeuronConfig,
    ) -> None:
        slots = neuron_config.continuous_batching.max_num_seqs
        assert batch_size == slots, f"invalid batch_size_for_shared_caches ({slots})"
        scaling = config.get("rope_scaling") or {}
        if scaling and scaling.get("rope_type", scaling.get("type")) not in ("default", "llama3"):
            raise ValueError(f"Only default and llama3 ropes scaling types are currently supported. Received {scaling}")
        self.token_buckets, self.context_buckets = sorted(n_positions), sorted(context_length_estimate)
        assert max(self.context_buckets) <= max(self.token_buckets), "a context bucket is above n_positions"
        self.config = SimpleNamespace(**{"rope_theta": 10000, "rope_scaling": None, **config})
        layers = [_Layer() for _ in range(config["num_hidden_layers"])]
        self.chkpt_model = SimpleNamespace(model=SimpleNamespace(layers=layers))
        self._generation = neuron_config.on_device_generation
        top_k = self._generation and self._generation.global_top_k
        build = [config["hidden_size"], slots, max(self.token_buckets), amp, tp_degree, top_k]
        kernels = [
            _Kernel(json.dumps([*build, kind, bucket]))
            for kind, buckets in (("token", self.token_buckets), ("context", self.context_buckets))
            for bucket in buckets
        ]
        tokens, contexts = kernels[: len(self.token_buckets)], kernels[len(self.token_buckets) :]
        self.nbs_objs = [_Decoder(tokens), *(_Decoder([kernel]) for kernel in contexts)]
        self._slots = slots
        self._artifacts: Path | None = None
        self._compiled = False

    def save(self, directory: str) -> None:
        if not self._compiled:
            raise AttributeError("'NoneType' object has no attribute 'program'")
        Path(directory).mkdir(exist_ok=True)
        for kernel in self._get_all_kernels():
            (Path(directory) / kernel.name).write_bytes(kernel.neff_bytes or b"")

    def load(self, directory: str) -> None:
        self._artifacts = Path(directory)

    def compile(self, parallel_degree: int | None = None) -> None:
        for kernel in self._get_all_kernels():
            kernel.compile(kernel.num_exec_repetition)

    def setup(self) -> None:
        for decoder in self.nbs_objs:
            decoder.setup()

    def to_neuron(self) -> None:
        if self._generation:
            self._generation.check(self._slots)
        for layer in self.chkpt_model.model.layers:
            layer.nullify()
        if self._artifacts is None:
            self.compile(parallel_degree=1)
        else:
            self._load_compiled_artifacts(self._artifacts)
        self.setup()
        self._cache: list[list[int]] = [[0] * max(self.token_buckets) for _ in range(self._slots)]
        # The next call overwrites what this one answers.
        self._output = torch.zeros(self._slots, self.config.vocab_size)
        self._compiled = True

    def update_generation_config(self, generation_config: GenerationConfig) -> None:
        generation_config.check(self._slots)
        self._generation = generation_config

    def _load_compiled_artifacts(self, directory: Path) -> None:
        if not directory.is_dir():
            raise FileNotFoundError(f"Did not find directory: {directory}.")
        for kernel in self._get_all_kernels():
            if not (directory / kernel.name).exists():
                raise FileNotFoundError("Could not find a matching NEFF for your HLO in this directory.")
            kernel.neff_bytes = (directory / kernel.name).read_bytes()

    def _get_all_kernels(self) -> list[_Kernel]:
        return [kernel for decoder in self.nbs_objs for kernel in decoder.get_all_kernels()]

    def __call__(self, input_ids: torch.Tensor, cache_ids: torch.Tensor, start_ids: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == 1:
            logits = self._decode(input_ids, cache_ids, start_ids)
        elif int(cache_ids.flatten()[0]) > 0:
            raise AssertionError("invalid batch size for speculative forward (1 not in [])")
        else:
            logits = self._prefill(input_ids, cache_ids, start_ids)
        if self._generation is None:
            return logits
        rows = zip(logits, start_ids.flatten().tolist(), strict=True)
        return torch.tensor([[self._generation.draw(row, slot)] for row, slot in rows], dtype=torch.int32)

    def _prefill(self, tokens: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        assert positions.dim() == 2, "invalid n_active_seqs"
        width = tokens.shape[1]
        bucket = self.context_buckets[bisect.bisect_left(self.context_buckets, width, hi=len(self.context_buckets) - 1)]
        assert width <= bucket, f"invalid input prompt length ({width} <= {bucket})"
        for index, (row, slot) in enumerate(zip(tokens.tolist(), slots.tolist(), strict=True)):
            cache = self._cache[slot % self._slots]  # a slot out of range is not noticed
            cache[:bucket] = [*row, *[0] * (bucket - width)]
            self._output[index] = self._logits(cache, int(positions[index].max()))
        return self._output[: len(tokens)]

    def _decode(self, tokens: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        # The library spreads the rows over all slots: those without a row run with token 0 at position 0.
        all_tokens = torch.zeros(self._slots, 1, dtype=tokens.dtype)
        all_positions = torch.zeros(self._slots, 1, dtype=tokens.dtype)
        index = slots.flatten().unsqueeze(-1).to(torch.int64)
        all_tokens.scatter_(dim=0, index=index, src=tokens)
        all_positions.scatter_(dim=0, index=index, src=positions)
        next(bucket for bucket in self.token_buckets if bucket >= int(all_positions.max()) + 1)
        for slot, cache in enumerate(self._cache):
            position = int(all_positions[slot])
            cache[position] = int(all_tokens[slot])
            self._output[slot] = self._logits(cache, position)
        rows = slots.flatten().to(torch.int64)
        in_order = torch.equal(rows, torch.arange(len(rows)))
        return self._output[: len(rows)] if in_order else self._output[rows]

    def _logits(self, cache: list[int], position: int) -> torch.Tensor:
        digest = hashlib.sha256(json.dumps(cache[: position + 1]).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.randn(self.config.vocab_size, generator=generator)
