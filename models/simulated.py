"""A device with set step times and a schedule of faults, for simulation, fault tests and benchmarks.

Its logits are a hash of what the slot holds at the positions up to the one that is scored, so a missed write, a wrong
position or a mixed-up slot changes the text. Unless it is told to keep slots (`reuse`), it does the damage that a
Neuron device does: a slot that a decode call leaves out gets token 0 written at position 0. Knows no checkpoint;
`directory` only keeps the marks of `once` faults.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

import numpy as np
import numpy.typing as npt

from models.backend import (
    ConfigurationError,
    DeviceError,
    FloatRows,
    Logits,
    OutOfMemoryError,
    ProgressCallback,
    Scores,
)
from models.protocol import Description, SimulatedOptions, SlotInput
from models.step_checks import StepLimits

Method = Literal["stage", "load", "feed", "decode"]
Kind = Literal["exit", "hang", "configuration", "memory", "device", "nan", "nan_all"]
HashRow = npt.NDArray[np.uint64]

_FAULT = re.compile(r"(?P<method>\w+):(?P<call>\d+)=(?P<kind>\w+)(?P<once>:once)?")
_LOAD_TICKS = 50
# A row is noise with eight favourites on top, half a logit apart: greedy is clear and sampling has a choice.
_FAVOURITES = 8
_BEST_LOGIT = 12.0
_EOS_LOGIT = 40.0


@dataclass(frozen=True, slots=True)
class ScheduledFault:
    """`kind` goes wrong at call number `call` (from 0) of `method`; with `once`, in the first process only."""

    method: Method
    call: int
    kind: Kind
    once: bool


def parse_fault(text: str) -> ScheduledFault:
    """A fault from "METHOD:CALL=KIND" or "METHOD:CALL=KIND:once"; ConfigurationError with what is allowed.

    exit: the process ends with status 1. hang: the call never returns. configuration, memory, device: the BackendError
    of that name. nan, nan_all (feed and decode only): the first row, or every row, is not finite. `once` outlives the
    process through a mark in the model's directory, so that a restarted worker gets past it.
    """
    match = _FAULT.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"fault {text!r} is not METHOD:CALL=KIND or METHOD:CALL=KIND:once, as decode:12=exit")
    method, kind = match["method"], match["kind"]
    if method not in get_args(Method):
        raise ConfigurationError(f"fault {text!r}: method {method!r} is none of {', '.join(get_args(Method))}")
    if kind not in get_args(Kind):
        raise ConfigurationError(f"fault {text!r}: kind {kind!r} is none of {', '.join(get_args(Kind))}")
    if kind.startswith("nan") and method in ("stage", "load"):
        raise ConfigurationError(f"fault {text!r}: {method} has no rows that could be {kind}")
    return ScheduledFault(cast(Method, method), int(match["call"]), cast(Kind, kind), match["once"] is not None)


class SimulatedBackend:
    """See models/backend.py for the contract; every number here is exact, so a replay continues identically."""

    def __init__(self, directory: Path, options: SimulatedOptions) -> None:
        self._directory = directory
        self._options = options
        self._faults: tuple[ScheduledFault, ...] = ()
        self._calls: dict[Method, int] = dict.fromkeys(get_args(Method), 0)
        self._limits = StepLimits(
            slots=options.slots,
            n_positions=options.n_positions,
            vocab_size=options.vocab_size,
            longest_feed=options.chunk or options.n_positions,
            extend=options.chunk > 0,
        )

    def stage(self, progress: ProgressCallback) -> None:
        """Check the options; ConfigurationError when one cannot work."""
        _check(self._options)
        self._faults = tuple(parse_fault(text) for text in self._options.faults)
        self._strike("stage")
        progress("staging", 1, 1)

    def load(self, progress: ProgressCallback) -> Description:
        """Spend `load_s` seconds, reporting progress."""
        self._strike("load")
        for tick in range(_LOAD_TICKS):
            time.sleep(self._options.load_s / _LOAD_TICKS)
            progress("weights", tick + 1, _LOAD_TICKS)
        options = self._options
        # One summand for each position a slot holds; 0 where nothing was ever written.
        self._cache: HashRow = np.zeros((options.slots, options.n_positions), np.uint64)
        self._prompt_end = [0] * options.slots
        self._noise = np.random.default_rng(0).standard_normal(2 * options.vocab_size, np.float32)
        return Description(
            slots=options.slots,
            n_positions=options.n_positions,
            vocab_size=options.vocab_size,
            context_buckets=(options.n_positions,),
            token_buckets=(options.n_positions,),
            chunk=options.chunk,
            reuse="tokens" if options.reuse else "none",
            copies=options.reuse,
            mixed=options.mixed,
            prefill_logprobs=True,
            exact_replay=True,
            dtype="float32",
            device="simulated",
            load_s=options.load_s,
            step_s=(options.step_s,),
            feed_s=(options.prefill_token_s * options.n_positions,),
        )

    def feed(self, slot: int, tokens: Sequence[int], position: int = 0, all_logits: bool = False) -> Scores:
        """See Backend.feed; takes `prefill_token_s` a token."""
        started = time.perf_counter()
        self._limits.check_feed(slot, tokens, position)
        rows = self._feed(slot, tokens, position, all_logits)
        _sleep_until(started + self._options.prefill_token_s * len(tokens))
        return Logits(rows)

    def copy(self, source: int, slot: int, length: int) -> None:
        """See SlotCopier.copy; takes no time."""
        self._limits.check_copy(source, slot, length)
        self._cache[slot, :length] = self._cache[source, :length]

    def decode(self, live: Sequence[SlotInput], full: bool = False) -> Scores:
        """See Backend.decode; takes `step_s`, whatever the number of rows."""
        started = time.perf_counter()
        self._limits.check_decode(live)
        rows = self._decode(live, [row.slot for row in live])
        _sleep_until(started + self._options.step_s)
        return Logits(rows)

    def decode_and_feed(self, live: Sequence[SlotInput], slot: int, tokens: Sequence[int], position: int = 0) -> Logits:
        """See MixedStepper.decode_and_feed; takes what the feed alone takes, `step_s` at least."""
        started = time.perf_counter()
        self._limits.check_mixed(live, slot, tokens, position)
        decoded = self._decode(live, [*(row.slot for row in live), slot])
        fed = self._feed(slot, tokens, position, False)
        _sleep_until(started + max(self._options.step_s, self._options.prefill_token_s * len(tokens)))
        return Logits(np.concatenate((fed, decoded)))

    def close(self) -> None:
        """Nothing is held."""

    def _feed(self, slot: int, tokens: Sequence[int], position: int, all_logits: bool) -> FloatRows:
        fault = self._strike("feed")
        end = position + len(tokens)
        self._cache[slot, position:end] = _summand(np.asarray(tokens), np.arange(position, end))
        self._prompt_end[slot] = end
        scored = range(position, end) if all_logits else range(end - 1, end)
        return self._rows([(slot, each) for each in scored], fault)

    def _decode(self, live: Sequence[SlotInput], present: Sequence[int]) -> FloatRows:
        fault = self._strike("decode")
        if not self._options.reuse:
            absent = np.ones(self._options.slots, np.bool_)
            absent[list(present)] = False
            self._cache[absent, 0] = _summand(np.zeros(1, np.int64), np.zeros(1, np.int64))
        slots, tokens, positions = (np.array(column) for column in zip(*map(_columns, live), strict=True))
        self._cache[slots, positions] = _summand(tokens, positions)
        return self._rows([(row.slot, row.position) for row in live], fault)

    def _rows(self, scored: Sequence[tuple[int, int]], fault: Kind | None) -> FloatRows:
        rows = np.empty((len(scored), self._options.vocab_size), np.float32)
        for row, (slot, position) in zip(rows, scored, strict=True):
            self._score(row, slot, position)
        if fault == "nan":
            rows[0] = np.nan
        elif fault == "nan_all":
            rows[:] = np.nan
        return rows

    def _score(self, row: FloatRows, slot: int, position: int) -> None:
        """Fill `row` with the scores of the token after `position`, a function of the summands up to it."""
        options = self._options
        seed = self._cache[slot, : position + 1].sum(keepdims=True, dtype=np.uint64)
        drawn = _mix(seed + np.arange(_FAVOURITES + 1, dtype=np.uint64)) % np.uint64(options.vocab_size)
        offset, favourites = int(drawn[0]), drawn[1:].astype(np.intp)
        row[:] = self._noise[offset : offset + options.vocab_size]
        # The best is written last, so that it stays on top when two favourites are one token.
        row[favourites[::-1]] = _BEST_LOGIT - 0.5 * np.arange(_FAVOURITES)[::-1]
        row[options.eos_token] = _EOS_LOGIT if self._ends(slot, position) else -_EOS_LOGIT

    def _ends(self, slot: int, position: int) -> bool:
        """Whether `answer_tokens` tokens were generated behind the last feed when the one after `position` is drawn."""
        return 0 < self._options.answer_tokens <= position + 1 - self._prompt_end[slot]

    def _strike(self, method: Method) -> Kind | None:
        """Count a call and do what is scheduled for it; returns the kind that spoils the rows, if any."""
        call = self._calls[method]
        self._calls[method] += 1
        for fault in self._faults:
            if (fault.method, fault.call) == (method, call) and not (fault.once and self._struck(fault)):
                return _strike(fault)
        return None

    def _struck(self, fault: ScheduledFault) -> bool:
        """Whether an earlier process met this fault; marks it as met."""
        mark = self._directory / f".fault-{fault.method}-{fault.call}-{fault.kind}"
        met = mark.exists()
        mark.touch()
        return met


def _strike(fault: ScheduledFault) -> Kind:
    text = f"scheduled fault at {fault.method} call {fault.call}"
    match fault.kind:
        case "exit":
            os._exit(1)
        case "hang":
            _hang()
        case "configuration":
            raise ConfigurationError(text)
        case "memory":
            raise OutOfMemoryError(text)
        case "device":
            raise DeviceError(text)
    return fault.kind


def _hang() -> NoReturn:
    while True:
        time.sleep(3600)


def _check(options: SimulatedOptions) -> None:
    for name in ("slots", "n_positions", "vocab_size"):
        if getattr(options, name) < 1:
            raise ConfigurationError(f"{name} is {getattr(options, name)}: it must be 1 or more")
    for name in ("step_s", "prefill_token_s", "load_s", "chunk", "answer_tokens"):
        if getattr(options, name) < 0:
            raise ConfigurationError(f"{name} is {getattr(options, name)}: it must not be negative")
    if options.reuse and not options.chunk:
        raise ConfigurationError(
            "reuse needs chunk: only a feed that may start at any position goes on behind a prefix"
        )
    if not 0 <= options.eos_token < options.vocab_size:
        raise ConfigurationError(f"eos_token {options.eos_token} is outside the vocabulary of {options.vocab_size}")


def _columns(row: SlotInput) -> tuple[int, int, int]:
    return row.slot, row.token, row.position


def _summand(tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> HashRow:
    """What a token at a position adds to the hash of its slot."""
    return _mix((tokens.astype(np.uint64) << np.uint64(32)) + positions.astype(np.uint64) + np.uint64(1))


def _mix(values: HashRow) -> HashRow:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014), elementwise modulo 2^64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: HashRow = values ^ (values >> np.uint64(31))
    return mixed


def _sleep_until(moment: float) -> None:
    """Sleep up to `moment` of the performance counter, so that the time spent computing is part of the set time."""
    remaining = moment - time.perf_counter()
    if remaining > 0:
        time.sleep(remaining)
