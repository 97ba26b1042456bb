"""The Neuron backend: Llama, Mistral and CodeLlama through transformers-neuronx with continuous batching.

The only importer of transformers_neuronx; it drives LlamaForSampling for all three families and keeps to the step
contract that the library does not check itself. Knows no scheduling, and of sampling only that the cores can do it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.backend import ConfigurationError, DeviceError, Logits, ProgressCallback, Scores, StepError, TokenIds
from models.checkpoint import Checkpoint, CheckpointError, open_checkpoint, warm_page_cache
from models.host import available_bytes
from models.neuron import checks, faults
from models.neuron.artifacts import ArtifactError
from models.neuron.graphs import GraphRequest, graphs_from_store, request_for
from models.neuron.sampling import SlotSampling
from models.neuron.timeouts import exec_timeout_s
from models.planner import within_window
from models.protocol import Description, NeuronOptions, SamplingParams, SlotInput
from models.spec import ModelSpec, SpecError, read_spec
from models.step_checks import StepLimits

EXEC_TIMEOUT = "NEURON_RT_EXEC_TIMEOUT"
# Left free when a checkpoint is read ahead into the page cache.
WARM_RESERVE = 4 * 1024**3
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
_WARM_UP_TOKEN = 1

IMPORT_HINT = (
    "the Neuron backend needs transformers-neuronx and torch-neuronx, and `worker.python` must be the interpreter that "
    "has them. Install the exact versions of pyproject.toml's extra `neuron` from AWS's Neuron package index: the "
    "packages of these names on PyPI are placeholders that fail on import"
)


class NeuronBackend:
    """One model on `tp_degree` NeuronCores; see models/backend.py for the contract.

    The cores belong to this process from `load` until it exits: nothing else returns their memory for certain.
    """

    def __init__(self, directory: Path, options: NeuronOptions) -> None:
        self._directory = directory
        self._options = options
        self._library: Any = None
        self._model: Any = None
        self._request: GraphRequest | None = None
        self._sampling: SlotSampling | None = None

    def stage(self, progress: ProgressCallback) -> None:
        """Check model and options, import the library, map the checkpoint and read it ahead; touches no device."""
        spec, checkpoint, options = _read(self._directory, self._options)
        self._options = options
        self._limits = StepLimits(
            slots=options.slots,
            n_positions=options.n_positions,
            vocab_size=spec.vocab_size,
            longest_feed=options.context_buckets[-1],
            extend=False,
        )
        if options.sampling == "device":
            self._sampling = SlotSampling(options.slots, spec.vocab_size)
        self._runtime_timeout_s = _set_up_runtime(spec, options)
        self._library = _import_library()
        self._request = request_for(self._library, str(self._directory), spec, options)
        self._check_graphs(self._request)
        config = _neuron_config(self._library, spec, options, self._sampling)
        self._model = _construct(self._library, self._directory, options, config)
        _check_rope(self._model, spec)
        _read_ahead(checkpoint, progress)

    def load(self, progress: ProgressCallback) -> Description:
        """Put the weights, layer by layer, and the graphs on the cores, then run every bucket for real.

        Takes minutes where graphs are compiled, which it does only where the option `compile` says so.
        """
        if self._request is None:
            raise ConfigurationError("load before stage: there is no model yet")
        started = time.perf_counter()
        options = self._options
        try:
            with graphs_from_store(self._model, self._request, progress), reporting(self._model, progress):
                self._model.to_neuron()
        except Exception as error:
            raise faults.load_error(error) from error
        feed_s, step_s = self._warm_up(progress)
        return Description(
            slots=options.slots,
            n_positions=options.n_positions,
            vocab_size=self._limits.vocab_size,
            context_buckets=options.context_buckets,
            token_buckets=options.token_buckets,
            device_sampling=self._sampling is not None,
            dtype=DTYPES[options.amp] if options.quant == "none" else f"{DTYPES[options.amp]}+{options.quant}",
            device="neuron",
            load_s=time.perf_counter() - started,
            feed_s=feed_s,
            step_s=step_s,
            runtime_timeout_s=self._runtime_timeout_s,
        )

    def configure(self, slot: int, sampling: SamplingParams) -> None:
        """How the cores draw the tokens of `slot` from its next feed on; nothing where the host draws them."""
        if self._sampling is None or not self._sampling.put(slot, sampling):
            return
        try:
            self._model.update_generation_config(self._library.GenerationConfig(**self._sampling.fields()))
        except Exception as error:
            raise faults.runtime_error(error) from error

    def feed(self, slot: int, tokens: Sequence[int], position: int = 0, all_logits: bool = False) -> Scores:
        """Prefill a whole prompt into `slot`, with the program of the smallest context bucket that holds it."""
        self._limits.check_feed(slot, tokens, position)
        if all_logits:
            raise StepError("the Neuron graphs score the last token of a prompt only")
        if len(tokens) == 1:
            # One column would be taken for a decode step, which harms every slot that it does not name. Of two columns
            # at position 0 the library takes the first for the last token of a prompt.
            return self._scores([[tokens[0], 0]], [[0, 0]], [slot])
        return self._scores([list(tokens)], [list(range(len(tokens)))], [slot])

    def decode(self, live: Sequence[SlotInput], full: bool = False) -> Scores:
        """One step of all live slots, with the program of the smallest token bucket that holds the largest position."""
        self._limits.check_decode(live)
        if full and self._sampling is not None:
            raise StepError('the cores draw the tokens themselves (sampling = "device"): there are no logits')
        return self._scores([[row.token] for row in live], [[row.position] for row in live], [row.slot for row in live])

    def close(self) -> None:
        """Drop the model; the cores are free for certain when the process has exited."""
        self._model = None

    def _check_graphs(self, request: GraphRequest) -> None:
        """A missing artifact is refused here, where the model that serves still holds the device."""
        if self._options.compile == "never":
            try:
                request.artifact()
            except ArtifactError as error:
                raise ConfigurationError(str(error)) from error

    def _scores(self, tokens: list[list[int]], positions: list[list[int]], slots: list[int]) -> Scores:
        """One call: a row for each slot, of float32 logits, or the token that the cores drew.

        The result is a copy, since the library may answer with a view of a buffer that the next step overwrites.
        """
        rows = self._forward(tokens, positions, slots).numpy()
        if self._sampling is None:
            return Logits(np.array(rows, dtype=np.float32, order="C"))
        ids = np.array(rows, dtype=np.int64).reshape(-1)
        if not ((ids >= 0) & (ids < self._limits.vocab_size)).all():
            raise DeviceError(f"the cores drew {ids.tolist()}, not all of a vocabulary of {self._limits.vocab_size}")
        return TokenIds(ids)

    def _forward(self, tokens: list[list[int]], positions: list[list[int]], slots: list[int]) -> Any:
        """The library's one call: (rows, columns) tokens at their positions, (rows,) slots.

        A torch tensor, (rows, vocab_size) float32 or (rows, 1) int32. All integers that go in are int64: in a decode
        step the library fails on two integer types.
        """
        import torch

        try:
            with torch.inference_mode():
                return self._model(
                    torch.tensor(tokens, dtype=torch.int64),
                    cache_ids=torch.tensor(positions, dtype=torch.int64),
                    start_ids=torch.tensor(slots, dtype=torch.int64),
                )
        except Exception as error:  # a bare StopIteration among them
            raise faults.runtime_error(error) from error

    def _warm_up(self, progress: ProgressCallback) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Run each program on slot 0, as the library hides the errors of its own warm-up; seconds by bucket."""
        contexts, steps = self._options.context_buckets, self._options.token_buckets
        runs: list[Callable[[], Scores]] = [
            *(lambda bucket=bucket: self.feed(0, [_WARM_UP_TOKEN] * bucket) for bucket in contexts),
            *(lambda bucket=bucket: self.decode([SlotInput(0, _WARM_UP_TOKEN, bucket - 1)]) for bucket in steps),
        ]
        names = [f"context bucket {bucket}" for bucket in contexts] + [f"token bucket {bucket}" for bucket in steps]
        seconds = []
        for done, (name, run) in enumerate(zip(names, runs, strict=True)):
            progress("warm-up", done, len(runs))
            seconds.append(_measure(name, run))
        progress("warm-up", len(runs), len(runs))
        return tuple(seconds[: len(contexts)]), tuple(seconds[len(contexts) :])


def _read(directory: Path, options: NeuronOptions) -> tuple[ModelSpec, Checkpoint, NeuronOptions]:
    """The model's shapes, its checkpoint with headers verified, and the options within its sliding window, which the
    graphs ignore. ConfigurationError if it cannot run with them."""
    try:
        spec = read_spec(directory)
        options = within_window(spec, options)
        checks.check(spec, options)
        checks.check_files(directory)
        return spec, open_checkpoint(directory, spec), options
    except (SpecError, CheckpointError) as error:
        raise ConfigurationError(str(error)) from error


def _read_ahead(checkpoint: Checkpoint, progress: ProgressCallback) -> None:
    """Bring the weights into the page cache as far as memory allows: the load then waits for no disk."""
    budget = available_bytes() - WARM_RESERVE
    if not warm_page_cache(checkpoint.entries, budget, lambda done, total: progress("staging", done, total)):
        progress("staging", 1, 1)


def _set_up_runtime(spec: ModelSpec, options: NeuronOptions) -> float:
    """Set the variables that the runtime reads when it starts; the seconds after which it gives an execution up.

    The operator's own settings win, except over the cores that the configuration gives to this very model.
    """
    if options.cores:
        os.environ["NEURON_RT_VISIBLE_CORES"] = options.cores
    if "NEURON_RT_VISIBLE_CORES" not in os.environ:
        os.environ.setdefault("NEURON_RT_NUM_CORES", str(options.tp_degree))
    timeout = os.environ.setdefault(EXEC_TIMEOUT, str(exec_timeout_s(spec, options)))
    if not timeout.isdecimal():
        raise ConfigurationError(f"{EXEC_TIMEOUT} is {timeout!r}: it must be a whole number of seconds")
    return float(timeout)


def _import_library() -> Any:
    """The module transformers_neuronx; ConfigurationError with the way to get it."""
    try:
        import transformers_neuronx  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:  # the placeholder packages raise it themselves
        raise ConfigurationError(f"{IMPORT_HINT} ({error})") from error
    return transformers_neuronx


def _construct(library: Any, directory: Path, options: NeuronOptions, config: Any) -> Any:
    """The model with its checkpoint mapped. Mistral's own class lacks what came to Llama's and computes the same."""
    try:
        return library.LlamaForSampling.from_pretrained(
            str(directory),
            batch_size=options.slots,
            amp=options.amp,
            tp_degree=options.tp_degree,
            n_positions=list(options.token_buckets),
            context_length_estimate=list(options.context_buckets),
            neuron_config=config,
        )
    except Exception as error:
        raise faults.load_error(error) from error


def _neuron_config(library: Any, spec: ModelSpec, options: NeuronOptions, sampling: SlotSampling | None) -> Any:
    """A new NeuronConfig: a model changes the one it is given, so that none may be used twice.

    The cache keeps its SBH layout (BSH gives wrong results), and group_query_attention its default, which shards over
    heads: REPLICATED_HEADS would multiply the cache. Without grouped queries, heads that the cores do not divide cannot
    be padded in a fused projection.
    """
    quant = None
    if options.quant != "none":
        quant = library.QuantizationConfig(quant_dtype=options.quant, dequant_dtype=options.amp)
    return library.NeuronConfig(
        continuous_batching=library.ContinuousBatchingConfig(max_num_seqs=options.slots),
        attention_layout="BSH",
        collectives_layout="BSH",
        fuse_qkv=spec.heads != spec.kv_heads or spec.heads % options.tp_degree == 0,
        quant=quant,
        on_device_generation=library.GenerationConfig(**sampling.fields()) if sampling else None,
        compilation_worker_count=1,
    )


def _check_rope(model: Any, spec: ModelSpec) -> None:
    """Where transformers or config.json keep the rotary settings elsewhere, the library takes 10000 without a word."""
    theta, scaling = float(model.config.rope_theta), model.config.rope_scaling
    if theta != spec.rope_theta or (spec.rope_scaling and not scaling):
        raise ConfigurationError(
            f"transformers-neuronx took rope_theta {theta} and rope_scaling {scaling} where config.json has "
            f"{spec.rope_theta} and {spec.rope_scaling}: it needs a transformers below 4.48, and these two as keys of "
            "config.json itself rather than of its rope_parameters"
        )


def _measure(name: str, run: Callable[[], Scores]) -> float:
    """Seconds of the second of two runs, both of which must give finite numbers, or tokens that exist."""
    for _ in range(2):
        started = time.perf_counter()
        scores = run()
        seconds = time.perf_counter() - started
        if isinstance(scores, Logits) and not np.isfinite(scores.rows).all():
            raise DeviceError(f"the warm-up of {name} gave numbers that are not finite")
    return seconds


@contextmanager
def reporting(model: Any, progress: ProgressCallback) -> Iterator[None]:
    """Report `to_neuron`: layers as they reach the device, then graphs as they are loaded.

    The library has no callback. It nullifies each layer of the checkpoint once the device has it, and sets up one
    decoder after the other: one with the graphs of all token buckets, and one for each context bucket.
    """
    layers, graphs = list(model.chkpt_model.model.layers), len(model.context_buckets) + len(model.token_buckets)
    weights = _Count(progress, "weights", len(layers))
    loaded = _Count(progress, "graphs", graphs)
    with ExitStack() as watched:
        for layer in layers:
            watched.enter_context(_watched(layer, "nullify", after=lambda: weights.add(1)))
        watched.enter_context(_watched(model, "setup", before=lambda: loaded.add(0)))
        for decoder in model.nbs_objs:
            after = partial(lambda each: loaded.add(len(each.get_all_kernels())), decoder)
            watched.enter_context(_watched(decoder, "setup", after=after))
        weights.add(0)
        yield


class _Count:
    """Counts the units of a phase, and reports each sum."""

    def __init__(self, progress: ProgressCallback, phase: str, total: int) -> None:
        self._report = partial(progress, phase)
        self._done, self._total = 0, total

    def add(self, units: int) -> None:
        self._done += units
        self._report(self._done, self._total)


def _nothing() -> None:
    pass


@contextmanager
def _watched(
    target: Any, method: str, before: Callable[[], None] = _nothing, after: Callable[[], None] = _nothing
) -> Iterator[None]:
    """Inside, calls of `target`'s `method`, which takes nothing, are announced."""
    call = getattr(target, method)

    def announced() -> None:
        before()
        call()
        after()

    setattr(target, method, announced)
    try:
        yield
    finally:
        delattr(target, method)
