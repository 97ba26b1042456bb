"""The CPU backend: a Hugging Face checkpoint on torch, with static slots. See models/backend.py for the contract.

In the layout "fixed" with float32, a slot's logits are the same bits whatever its neighbours do: each row attends over
its own slot alone, and the row counts of the matrix products are proven harmless on this CPU at load (rows.py); so is
how a prompt is cut (cuts.py), which decides how much of a freed slot may serve another sequence.
"packed" computes exactly the live rows, attends with all of them at once, and proves nothing. torch is imported when
the backend stages, not before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from models.backend import (
    ConfigurationError,
    DeviceError,
    FloatRows,
    Logits,
    OutOfMemoryError,
    ProgressCallback,
    StepError,
)
from models.checkpoint import Checkpoint, CheckpointError, open_checkpoint, warm_page_cache
from models.cpu import host
from models.host import available_bytes
from models.planner import within_window
from models.planner.memory import cpu_host_memory
from models.protocol import CpuOptions, Description, Reuse, SlotInput
from models.spec import ModelSpec, SpecError, read_spec
from models.step_checks import StepLimits

if TYPE_CHECKING:
    from models.cpu.attention import Attention
    from models.cpu.cache import KvCache
    from models.cpu.decoder import Decoder
    from models.cpu.linear import LinearType

_log = logging.getLogger(__name__)

# Left free when a checkpoint is read ahead into the page cache.
_WARM_RESERVE = 4 * 1024**3
# Tokens of the warm-up; any that exist will do.
_PROBE_PROMPT = 5


class CpuBackend:
    """Llama, Mistral and CodeLlama checkpoints on torch's CPU device."""

    def __init__(
        self,
        directory: Path,
        options: CpuOptions,
        linear: LinearType | None = None,
        attention: Attention | None = None,
        stacked: bool | None = None,
    ) -> None:
        """`linear`, `attention` and `stacked` gates instead of what the options ask for: to measure against."""
        self._directory = directory
        self._linear = linear
        self._attention = attention
        self._stacked = stacked
        self._options = msgspec.structs.replace(options, chunk=min(options.chunk, options.n_positions))
        self._spec: ModelSpec | None = None
        self._checkpoint: Checkpoint | None = None
        self._decoder: Decoder | None = None
        self._cache: KvCache | None = None
        self._limits = StepLimits(0, 0, 0, 0, extend=True)
        self._counts: tuple[int, ...] = ()
        # A feed is padded to the fewest rows that are proven: many kernels compute a single row in another way.
        self._least_rows = 1
        self._reuse: Reuse = "tokens"

    @property
    def _proving(self) -> bool:
        """Whether a row's bits are promised, so that no row count is used which was not proven."""
        return self._options.layout == "fixed"

    # --- loading ----------------------------------------------------------------------------------------------------

    def stage(self, progress: ProgressCallback) -> None:
        """Imports torch, checks config and headers, and reads the files ahead as far as memory allows."""
        try:
            self._spec = read_spec(self._directory)
            self._options = within_window(self._spec, self._options)
            _check_options(self._options, self._spec)
            self._checkpoint = open_checkpoint(self._directory, self._spec)
        except (SpecError, CheckpointError) as error:
            raise ConfigurationError(str(error)) from error
        host.import_torch(self._options.threads)
        budget = available_bytes() - _WARM_RESERVE
        if not warm_page_cache(self._checkpoint.entries, budget, lambda done, total: progress("staging", done, total)):
            progress("staging", 1, 1)

    def load(self, progress: ProgressCallback) -> Description:
        """Reads and packs the weights, then feeds and decodes for real; the times in the answer are measured."""
        if self._spec is None or self._checkpoint is None:
            raise ConfigurationError("load before stage: the checkpoint is not open yet")
        began = time.perf_counter()
        dtype = host.compute_dtype(self._options.dtype)
        spec, options = self._spec, self._options
        _check_memory(spec, msgspec.structs.replace(options, dtype=dtype))
        with _typed_errors(), self._checkpoint as checkpoint:
            self._build(checkpoint, dtype, progress)
        self._checkpoint = None
        self._limits = StepLimits(options.slots, options.n_positions, spec.vocab_size, options.chunk, extend=True)
        with _typed_errors():
            step_s, feed_s = self._warm_up(progress)
        kind = dtype if options.weights == "dtype" else f"{dtype}+{options.weights}"
        _log.info(
            "%s computes in %s, layout %s, decode rows %s",
            self._directory.name,
            kind,
            options.layout,
            self._counts or "as they are live",
        )
        return Description(
            slots=options.slots,
            n_positions=options.n_positions,
            vocab_size=spec.vocab_size,
            context_buckets=(options.chunk,),
            token_buckets=(options.n_positions,),
            chunk=options.chunk,
            reuse=self._reuse,
            copies=True,
            mixed=not self._proving,
            prefill_logprobs=True,
            exact_replay=options.layout == "fixed" and dtype == "float32",
            dtype=kind,
            device=host.cpu_name(),
            load_s=time.perf_counter() - began,
            step_s=(step_s,),
            feed_s=(feed_s,),
        )

    def _build(self, checkpoint: Checkpoint, dtype: str, progress: ProgressCallback) -> None:
        import torch

        from models.cpu.attention_exact import EXACT
        from models.cpu.attention_fast import FAST
        from models.cpu.cache import KvCache
        from models.cpu.decoder import Decoder
        from models.cpu.linear import linear_type
        from models.cpu.loading import load_weights
        from models.cpu.rope import RotaryTables

        assert self._spec is not None
        kind: torch.dtype = getattr(torch, dtype)
        with torch.inference_mode():
            fixed = self._proving
            linear = self._linear or linear_type(kind, self._options.weights)
            stacked = not fixed if self._stacked is None else self._stacked
            weights = load_weights(
                checkpoint, self._spec, kind, linear, stacked, lambda done, total: progress("weights", done, total)
            )
            self._cache = KvCache(self._spec, self._options.slots, self._options.n_positions, kind)
            rope = RotaryTables(self._spec, self._options.n_positions)
            attention = self._attention or (EXACT if fixed else FAST)
            self._decoder = Decoder(self._spec, weights, self._cache, rope, kind, attention)

    def _warm_up(self, progress: ProgressCallback) -> tuple[float, float]:
        """Seconds of a step of all slots at full length, and of a feed of one chunk; proves the row counts first."""
        from models.cpu import cuts, rows

        options, proving = self._options, self._proving
        total = options.slots + (rows.probe_steps(options.slots) + 1 if proving else 0) + 2
        done = 0

        def stepped() -> None:
            nonlocal done
            done += 1
            progress("warm-up", done, total)

        assert self._spec is not None
        tokens = [token % self._spec.vocab_size for token in range(max(options.slots, options.chunk))]
        for slot in range(options.slots):
            self._forward_feed(slot, tokens[: min(_PROBE_PROMPT, options.chunk)], 0, False)
            stepped()
        if proving:
            self._counts = rows.proven_counts(self._probe, tokens[: options.slots], stepped)
            self._least_rows = self._counts[0]
            prompt = [token % self._spec.vocab_size for token in range(min(cuts.LENGTH, options.n_positions))]
            if not cuts.cuts_do_not_matter(self._written, self._written_by_step, prompt, options.chunk):
                self._reuse = "chunks"
            stepped()
        feed_s = _timed(lambda: self._forward_feed(0, tokens[: options.chunk], 0, False))
        stepped()
        last = [SlotInput(slot, tokens[slot], options.n_positions - 1) for slot in range(options.slots)]
        step_s = _timed(lambda: self._forward_decode(last))
        stepped()
        for row in last:
            self._slots().erase(row.slot, row.position)
        self._slots().forget()
        return step_s, feed_s

    def _probe(self, tokens: Sequence[int]) -> FloatRows:
        """Row i is `tokens[i]` behind the probe prompt of slot i, all in one run."""
        position = min(_PROBE_PROMPT, self._options.chunk)
        for slot in range(len(tokens)):
            self._slots().fed(slot, (), position)  # what an earlier probe wrote there: a step repeats nothing
        live = [SlotInput(slot, token, position) for slot, token in enumerate(tokens)]
        return self._run(live, len(live))

    def _written(self, tokens: Sequence[int], position: int) -> bytes:
        """See cuts.Write."""
        scores = self._forward_feed(0, tokens, position, False)
        return self._slots().content(0) + scores.tobytes()

    def _written_by_step(self, tokens: Sequence[int], position: int) -> bytes:
        scores = self._forward_decode([SlotInput(0, tokens[0], position)])
        return self._slots().content(0) + scores.tobytes()

    # --- steps ------------------------------------------------------------------------------------------------------

    def feed(self, slot: int, tokens: Sequence[int], position: int = 0, all_logits: bool = False) -> Logits:
        """Prefill, or extend at any position the slot has reached, by at most `chunk` tokens."""
        cache = self._slots()
        self._limits.check_feed(slot, tokens, position)
        cache.check_reachable(slot, position)
        with _typed_errors():
            return Logits(self._forward_feed(slot, tokens, position, all_logits))

    def copy(self, source: int, slot: int, length: int) -> None:
        """See SlotCopier.copy."""
        cache = self._slots()
        self._limits.check_copy(source, slot, length)
        cache.check_reachable(source, length)
        with _typed_errors():
            cache.copy(source, slot, length)

    def decode(self, live: Sequence[SlotInput], full: bool = False) -> Logits:
        """One token a live slot; always the whole vocabulary, so `full` changes nothing."""
        cache = self._slots()
        self._limits.check_decode(live)
        for row in live:
            cache.check_reachable(row.slot, row.position)
        with _typed_errors():
            return Logits(self._forward_decode(live))

    def decode_and_feed(self, live: Sequence[SlotInput], slot: int, tokens: Sequence[int], position: int = 0) -> Logits:
        """See MixedStepper.decode_and_feed. StepError in the layout "fixed": its row counts are proven apart."""
        cache = self._slots()
        if self._proving:
            raise StepError('the layout "fixed" does not feed and decode in one pass')
        self._limits.check_mixed(live, slot, tokens, position)
        for each, start in ((slot, position), *((row.slot, row.position) for row in live)):
            cache.check_reachable(each, start)
        with _typed_errors():
            return Logits(self._forward_both(live, slot, tokens, position))

    def close(self) -> None:
        """Frees the weights and the cache."""
        self._decoder = self._cache = self._checkpoint = None

    def _forward_feed(self, slot: int, tokens: Sequence[int], position: int, all_logits: bool) -> FloatRows:
        import torch

        assert self._decoder is not None
        self._slots().fed(slot, tokens, position)
        with torch.inference_mode():
            logits: FloatRows = self._decoder.feed(slot, tokens, position, all_logits, self._least_rows).numpy()
        return logits

    def _forward_decode(self, live: Sequence[SlotInput]) -> FloatRows:
        from models.cpu.rows import runs

        counts = self._counts or (len(live),)
        parts = [self._run(live[rows], count) for rows, count in runs(len(live), counts)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, live: Sequence[SlotInput], count: int) -> FloatRows:
        import torch

        assert self._decoder is not None
        with torch.inference_mode():
            logits: FloatRows = self._decoder.decode(live, self._slots().stepped(live), count).numpy()
        return logits

    def _forward_both(self, live: Sequence[SlotInput], slot: int, tokens: Sequence[int], position: int) -> FloatRows:
        import torch

        assert self._decoder is not None
        cache = self._slots()
        cache.fed(slot, tokens, position)
        with torch.inference_mode():
            writes = cache.stepped(live)
            logits: FloatRows = self._decoder.decode_and_feed(live, writes, slot, tokens, position).numpy()
        return logits

    def _slots(self) -> KvCache:
        if self._cache is None:
            raise StepError("the CPU backend is not loaded: stage and load come before a step")
        return self._cache


def _check_options(options: CpuOptions, spec: ModelSpec) -> None:
    """ConfigurationError unless the options are in range for this model."""
    for name, value, low in (
        ("slots", options.slots, 1),
        ("n_positions", options.n_positions, 2),
        ("chunk", options.chunk, 1),
        ("threads", options.threads, 0),
    ):
        if value < low:
            raise ConfigurationError(f"{name} is {value}: it must be at least {low}")
    if options.weights != "dtype" and options.dtype != "float32":
        raise ConfigurationError(
            f'{options.weights} weights are multiplied in float32, and dtype is "{options.dtype}": set dtype = '
            '"float32", or weights = "dtype"'
        )
    if options.n_positions > spec.max_position_embeddings:
        raise ConfigurationError(
            f"n_positions {options.n_positions} is over the model's max_position_embeddings "
            f"{spec.max_position_embeddings}: lower n_positions"
        )


def _check_memory(spec: ModelSpec, options: CpuOptions) -> None:
    """OutOfMemoryError when weights and cache cannot fit: better than the kernel's killer in the middle of a load."""
    memory = cpu_host_memory(spec, options)
    available = available_bytes()
    if memory.weights + memory.kv > available:
        raise OutOfMemoryError(
            f"the model needs {memory.weights / 1e9:.1f} GB for weights and {memory.kv / 1e9:.1f} GB for "
            f"{options.slots} slots of {options.n_positions} positions; {available / 1e9:.1f} GB are available"
        )


def _timed(run: Callable[[], FloatRows]) -> float:
    """Seconds of `run`, whose numbers must be finite."""
    began = time.perf_counter()
    logits = run()
    seconds = time.perf_counter() - began
    if not np.isfinite(logits).all():
        raise ConfigurationError("the warm-up gave logits that are not finite: the checkpoint is damaged")
    return seconds


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Turns what torch and the checkpoint's reader raise into the errors of the contract."""
    try:
        yield
    except CheckpointError as error:
        raise ConfigurationError(str(error)) from error
    except MemoryError as error:
        raise OutOfMemoryError("the host has no memory left") from error
    except RuntimeError as error:
        text = str(error)
        if "can't allocate memory" in text or "not enough memory" in text:
            raise OutOfMemoryError(text) from error
        raise DeviceError(f"torch failed: {text}") from error
