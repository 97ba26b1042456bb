"""What every backend implements: the step contract between the worker's loop and a device.

Rules that tests/models/test_backend_contract.py holds every backend to:

- A slot's tokens never depend on its neighbours, nor on when they join or leave. Where a Description says
  `exact_replay`, no bit of its scores does either; elsewhere (CPU: layout "packed", or bfloat16; Neuron) rounding may.
- Every live slot is in every decode call. One that must wait is *held*: its last (token, position) is passed again
  and its row dropped. Repeating a step is idempotent.
- `feed` at position 0 with the whole prompt is a prefill; a one-token prompt is legal.
- With the capability `mixed` a decode and a feed may be one call, `decode_and_feed`; it does what the two would.
- Nothing is fed at or past `n_positions`; slots, positions and token ids are checked before the device is called.
- Releasing a slot is free: the next feed overwrites it. With the capability `reuse` a released slot keeps what was
  written to it, and a feed may go on behind any part of that (`tokens`) or behind whole feeds of `chunk` (`chunks`).
- No exception crosses untyped: `BackendError` and its subclasses only. After a `DeviceError` the worker ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from models.protocol import Description, Remedy, SamplingParams, SlotInput

FloatRows = npt.NDArray[np.float32]
IntRows = npt.NDArray[np.int64]

# (phase, done, total): see protocol.Progress
ProgressCallback = Callable[[str, int, int], None]


class BackendError(Exception):
    """Root of what a backend raises. `remedy`: what may help, where the backend knows better than its class."""

    remedy: Remedy = "restart"

    def __init__(self, text: str = "", remedy: Remedy | None = None) -> None:
        super().__init__(text)
        if remedy is not None:
            self.remedy = remedy


class ConfigurationError(BackendError):
    """The checkpoint or the options cannot work on this backend; the text says which value and what is allowed."""

    remedy = "configuration"


class OutOfMemoryError(BackendError):
    """An allocation on the device or the host failed."""


class DeviceError(BackendError):
    """The device or its runtime failed; nothing that it held can be trusted."""


class StepError(BackendError):
    """A call broke the step contract (slot, position, token or length out of range); the device was not touched."""


@dataclass(frozen=True, slots=True)
class Logits:
    """Scores over the whole vocabulary. `rows`: float32 (rows, vocab_size)."""

    rows: FloatRows


@dataclass(frozen=True, slots=True)
class Candidates:
    """The K best of each row, descending. `ids`: int64 (rows, K); `values`: float32 (rows, K) raw logits;
    `normalisers`: float32 (rows,), logsumexp over the whole vocabulary."""

    ids: IntRows
    values: FloatRows
    normalisers: FloatRows


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Tokens that were sampled on the device. `ids`: int64 (rows,)."""

    ids: IntRows


Scores = Logits | Candidates | TokenIds


class Backend(Protocol):
    """One model on one device. Called from one thread, one call at a time."""

    def stage(self, progress: ProgressCallback) -> None:
        """Host work only: imports, config, mapping and warming the checkpoint. ConfigurationError if it cannot work."""

    def load(self, progress: ProgressCallback) -> Description:
        """Device work: weights and graphs, then a real feed and decode of every bucket, checked finite."""

    def feed(self, slot: int, tokens: Sequence[int], position: int = 0, all_logits: bool = False) -> Scores:
        """Write `tokens` into `slot` at `position`.. and score the last one (1 row), or all of them (len(tokens) rows).

        `position` > 0 and `all_logits` need the capabilities `chunk` and `prefill_logprobs`.
        """

    def decode(self, live: Sequence[SlotInput], full: bool = False) -> Scores:
        """One token a live slot; row i answers live[i]. `full` asks for Logits where Candidates would be given."""

    def close(self) -> None:
        """Release the device; the object is not used again."""


@runtime_checkable
class SlotCopier(Protocol):
    """What a backend is besides whose Description says `copies`."""

    def copy(self, source: int, slot: int, length: int) -> None:
        """Let `slot` hold the first `length` tokens that `source` holds, to the bit; `source` keeps what it has."""


@runtime_checkable
class MixedStepper(Protocol):
    """What a backend is besides whose Description says `mixed`."""

    def decode_and_feed(self, live: Sequence[SlotInput], slot: int, tokens: Sequence[int], position: int = 0) -> Logits:
        """`decode` of `live`, and `feed` of a slot that is not among them, in one pass.

        Row 0 answers the last of `tokens`, row 1 + i live[i]. StepError, with nothing done, if either call would be
        one.
        """


@runtime_checkable
class DeviceSampler(Protocol):
    """What a backend is besides that may draw the tokens itself: its Description says whether it does."""

    def configure(self, slot: int, sampling: SamplingParams) -> None:
        """How the tokens of `slot` are drawn from its next feed on. Without effect where the scores come back."""
