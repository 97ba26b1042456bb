"""A simulated model to measure against: its directory, its settings, and metrics that keep every step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from models.protocol import SimulatedOptions
from server.bench.timeline import Step
from server.observe.metrics import Method, Metrics
from server.settings import LimitSettings, ModelSettings, ServerSettings, Settings, SwapSettings

PROMPT_TOKENS = 104  # of the published benchmark
_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "


def write_text_files(directory: Path, vocab_size: int) -> None:
    """What the API process reads of a model: byte tokens and words, `vocab_size` tokens in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġw{number}" for number in range(vocab_size - len(alphabet))]
    vocabulary = {text: token for token, text in enumerate([*alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": _TEMPLATE}), "utf-8")
    config = {"model_type": "llama", "vocab_size": vocab_size, "eos_token_id": 2}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")


def simulated_settings(options: dict[str, SimulatedOptions], directory: Path) -> Settings:
    """A configuration of simulated models by id, all with the text files of `directory`; nothing drains."""
    return Settings(
        models=tuple(ModelSettings(id=model, path=str(directory), device=device) for model, device in options.items()),
        server=ServerSettings(host="127.0.0.1", port=0, log_level="error"),
        limits=LimitSettings(max_concurrent_requests=4096),
        swap=SwapSettings(drain=0.0, min_resident=0.0),
    )


class StepMetrics(Metrics):
    """Metrics that also keep every step, and set `stepped` at each. `waiting` tells how many sequences have no slot."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.stepped = asyncio.Event()
        self.waiting: Callable[[], int] = lambda: 0

    def observe_step(
        self,
        method: Method,
        seconds: float,
        requests: int = 0,
        *,
        drawn: int = 0,
        sampling_s: float = 0.0,
        idle_s: float = 0.0,
    ) -> None:
        super().observe_step(method, seconds, requests, drawn=drawn, sampling_s=sampling_s, idle_s=idle_s)
        self.steps.append(Step(method, drawn, seconds, sampling_s, idle_s, self.waiting()))
        self.stepped.set()
