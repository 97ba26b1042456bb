"""Hugging Face transformers as a measure of the CPU backend: its modules called step by step, and its `generate`.

What nobody here wrote: torch's F.linear for each weight, the library's attention, its caches. transformers comes with
the extra `test` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from models.backend import Logits
from models.protocol import SlotInput


class HuggingFaceDecoder:
    """The feeds and steps of a backend, for streams of one length that decode one position.

    A step's streams have a cache of their own, which is their prompts', cut back after each step.
    """

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        self._prompts: dict[int, list[int]] = {}
        self._batches: dict[tuple[int, ...], DynamicCache] = {}

    @torch.inference_mode()
    def feed(self, slot: int, tokens: Sequence[int]) -> Logits:
        """`tokens` into a slot from its first position on. Logits of the last one, float32 (1, vocab_size)."""
        if self._prompts.get(slot) != list(tokens):
            self._prompts[slot] = list(tokens)
            self._batches.clear()
        return self._forward([list(tokens)], DynamicCache())

    @torch.inference_mode()
    def decode(self, live: Sequence[SlotInput]) -> Logits:
        """One token a row, each right behind its slot's prompt, or ValueError. Logits float32 (rows, vocab_size)."""
        prompts = [self._prompts[row.slot] for row in live]
        if {row.position for row in live} != {len(prompt) for prompt in prompts}:
            raise ValueError(f"{live} are not all behind prompts of one length")
        key = tuple(row.slot for row in live)
        if key not in self._batches:
            self._batches[key] = DynamicCache()
            self._forward(prompts, self._batches[key])
        cache = self._batches[key]
        logits = self._forward([[row.token] for row in live], cache)
        cache.crop(len(prompts[0]))
        return logits

    def _forward(self, tokens: list[list[int]], cache: DynamicCache) -> Logits:
        answer = self._model(input_ids=torch.tensor(tokens), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return Logits(answer.logits[:, -1].float().numpy())


class Generate:
    """`generate` on a static batch of prompts of one length."""

    def __init__(
        self,
        directory: Path,
        dtype: str,
        cache: str,
        prompts: Sequence[Sequence[int]],
        sampling: Mapping[str, float] | None = None,
    ) -> None:
        """`cache`: "dynamic" or "static". `sampling`: how tokens are drawn, in the library's words; None: greedily."""
        self.name = f"{dtype}, transformers' generate, {cache} cache"
        self._cache = cache
        self._sampling = dict(sampling or {})
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
        self._prompts = torch.tensor([list(prompt) for prompt in prompts])

    def generate(self, new_tokens: int) -> None:
        """Without an end token."""
        with torch.inference_mode():
            self._model.generate(
                self._prompts,
                attention_mask=torch.ones_like(self._prompts),
                do_sample=bool(self._sampling),
                **self._sampling,
                pad_token_id=0,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                cache_implementation=self._cache,
                disable_compile=True,  # a compilation of the shape would be most of the time
            )
