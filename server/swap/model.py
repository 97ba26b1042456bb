"""A configured model as the server knows it: its limits, its text, its engine and its state.

Its state is written by the registry alone. Knows no worker.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from models.families import family_of
from models.planner.memory import core_memory, cpu_host_memory
from models.planner.timing import decode_step
from models.protocol import (
    CpuOptions,
    Description,
    DeviceOptions,
    NeuronOptions,
    Progress,
    Remedy,
    SimulatedOptions,
)
from models.spec import read_spec
from server.core import Limits
from server.engine.loop import Engine
from server.errors import ConfigurationError, Unavailable
from server.observe.metrics import Metrics
from server.settings import LimitSettings, ModelSettings, Settings
from server.text.chat import ChatTemplate
from server.text.tokenizer import Tokenizer

State = Literal["unloaded", "staging", "loading", "available", "draining", "failed"]


class ModelProgress(msgspec.Struct, frozen=True):
    """How far staging or loading is. `fraction` of the phase, 0 to 1; `eta_s` None until a rate is known."""

    phase: str
    fraction: float
    eta_s: float | None = None


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One model as GET /models shows it. `memory_bytes` is what it takes when it is loaded (models/planner), of the
    NeuronCores or of the host; None where nothing is known of it."""

    id: str
    family: str
    state: State
    active: bool
    progress: ModelProgress | None
    waiting: int
    running: int
    parked: int
    slots: int
    memory_bytes: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """A decode step in one token bucket: the seconds it took at the last load, and what it cannot fall below (None: not
    known)."""

    bucket: int
    measured_s: float
    floor_s: float | None


@dataclass(frozen=True, slots=True)
class ModelText:
    """How a model's text becomes tokens and back."""

    tokenizer: Tokenizer
    template: ChatTemplate


class Model:
    """One configured model. `state`, `progress`, `error` and `remedy` (of its last failure) belong to the registry."""

    def __init__(self, settings: ModelSettings, all_settings: Settings, metrics: Metrics, on_ended: Callable[[], None]):
        self.id = settings.id
        self.settings = settings
        self.directory = Path(settings.path)
        self.engine = Engine(
            decode_per_feed=all_settings.scheduler.decode_per_feed,
            metrics=metrics,
            on_ended=on_ended,
            reuse_prefixes=all_settings.scheduler.reuse_prefixes,
        )
        self.state: State = "unloaded"
        self.progress: ModelProgress | None = None
        self.error: str | None = None
        self.remedy: Remedy = "restart"
        self.failed_at = 0.0
        self.used = 0.0  # when its last request came, on the monotonic clock
        self.description: Description | None = None
        self.limits = _limits(settings, all_settings.limits)
        self._memory_bytes: int | None = None
        self._text: asyncio.Task[ModelText] | None = None
        self._phase_began = (("", 0.0), 0.0)

    @property
    def family(self) -> str:
        """The configured family, or what config.json says; "unknown" while there is no readable config.json."""
        if self.settings.family != "auto":
            return self.settings.family
        try:
            return family_of(_read_config(self.directory)).name
        except (OSError, ValueError):
            return "unknown"

    async def text(self) -> ModelText:
        """Tokenizer and chat template, read once, in a thread; Unavailable when the files cannot be used."""
        if self._text is None:
            self._text = asyncio.create_task(asyncio.to_thread(self._load_text))
        try:
            return await asyncio.shield(self._text)
        except ConfigurationError as error:
            self._text = None
            raise Unavailable(f"model {self.id!r} cannot be used: {error.text}") from error

    def entry(self, active: bool) -> ModelEntry:
        """A snapshot for clients."""
        engine = self.engine
        return ModelEntry(
            id=self.id,
            family=self.family,
            state=self.state,
            active=active,
            progress=self.progress,
            waiting=engine.waiting,
            running=engine.running,
            parked=engine.parked,
            slots=self.settings.device.slots,
            memory_bytes=self._memory(),
            error=self.error,
        )

    def limit(self, limits: LimitSettings) -> None:
        """What its requests may ask for from now on."""
        self.limits = _limits(self.settings, limits)

    def note(self, progress: Progress) -> None:
        """Take a worker's progress; the ETA comes from the rate measured within the phase."""
        now = time.monotonic()
        if self.progress is None or self.progress.phase != progress.phase:
            self._phase_began = ((progress.phase, float(progress.done)), now)
        (_, first), began = self._phase_began
        done = progress.done - first
        eta = (progress.total - progress.done) * (now - began) / done if done > 0 else None
        fraction = progress.done / progress.total if progress.total else 1.0
        self.progress = ModelProgress(progress.phase, round(fraction, 4), None if eta is None else round(eta, 1))

    def decode_steps(self) -> list[DecodeStep]:
        """One a token bucket of the last load; none before it."""
        if self.description is None:
            return []
        measured = zip(self.description.token_buckets, self.description.step_s, strict=False)
        return [DecodeStep(bucket, seconds, self._floor_s(bucket)) for bucket, seconds in measured]

    def _floor_s(self, bucket: int) -> float | None:
        """How fast a CPU could be, nobody knows; a simulated device takes the time that it is told to."""
        device = self.settings.device
        if isinstance(device, NeuronOptions):
            return decode_step(read_spec(self.directory), device, bucket).floor
        return device.step_s if isinstance(device, SimulatedOptions) else None

    def _memory(self) -> int | None:
        if self._memory_bytes is None:
            self._memory_bytes = _memory_bytes(self.directory, self.settings.device)
        return self._memory_bytes

    def _load_text(self) -> ModelText:
        if not self.directory.is_dir():
            raise ConfigurationError(
                f"{self.directory}: there is no such directory: neuronx-serve models pull {self.id}, or put the "
                "checkpoint there"
            )
        tokenizer = Tokenizer.load(self.directory, self.family)
        return ModelText(tokenizer, ChatTemplate.load(self.directory, self.family, tokenizer))


def _memory_bytes(directory: Path, device: DeviceOptions) -> int | None:
    try:
        if isinstance(device, NeuronOptions):
            return core_memory(read_spec(directory), device).total * device.tp_degree
        return cpu_host_memory(read_spec(directory), device).resident if isinstance(device, CpuOptions) else None
    except ValueError:  # the worker says what is wrong with config.json, when the model is loaded
        return None


def _read_config(directory: Path) -> dict[str, Any]:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("config.json is not an object")
    return config


def _limits(model: ModelSettings, limits: LimitSettings) -> Limits:
    """A request may fill a slot, unless the configuration allows less; a prompt, what can be fed in one piece."""
    device = model.device
    draws = isinstance(device, NeuronOptions) and device.sampling == "device"
    most = device.n_positions
    total = min(model.max_total_tokens or limits.max_total_tokens or most, most)
    longest = max(device.context_buckets, default=total) if isinstance(device, NeuronOptions) else total
    prompt = min(model.max_input_tokens or limits.max_input_tokens or total - 1, total - 1, longest)
    return Limits(
        max_input_tokens=prompt,
        max_total_tokens=total,
        max_best_of=limits.max_best_of,
        max_stop_sequences=limits.max_stop_sequences,
        max_top_n_tokens=limits.max_top_n_tokens,
        max_client_batch_size=limits.max_client_batch_size,
        max_concurrent_requests=limits.max_concurrent_requests,
        grammar=limits.grammar and not draws,
        device_sampling=draws,
    )
