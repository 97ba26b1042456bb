"""The Neuron backend: Llama, Mistral and CodeLlama through transformers-neuronx with continuous batching.

The only importer of transformers_neuronx; it drives LlamaForSampling for all three families and keeps to the step
contract that the library does not check itself. Knows no sampling and no scheduling.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from models.backend import ConfigurationError, DeviceError, FloatRows, Logits, ProgressCallback, Scores, StepError
from models.neuron import checks, faults
from models.protocol import Description, NeuronOptions, SlotInput
from models.spec import ModelSpec, SpecError, read_spec
from models.step_checks import StepLimits

EXEC_TIMEOUT_S = "60"
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
        self._model: Any = None

    def stage(self, progress: ProgressCallback) -> None:
        """Check the model, import the library and map the checkpoint; `from_pretrained` touches no device."""
        try:
            spec = read_spec(self._directory)
        except SpecError as error:
            raise ConfigurationError(str(error)) from error
        checks.check(spec, self._options)
        if self._options.artifacts and not Path(self._options.artifacts).is_dir():
            raise ConfigurationError(f"artifacts: {self._options.artifacts} is not a directory")
        self._limits = StepLimits(
            slots=self._options.slots,
            n_positions=self._options.n_positions,
            vocab_size=spec.vocab_size,
            longest_feed=self._options.context_buckets[-1],
            extend=False,
        )
        progress("staging", 0, 2)
        library = _import_library(self._options.tp_degree)
        progress("staging", 1, 2)
        self._model = _construct(library, self._directory, self._options)
        _check_rope(self._model, spec)
        progress("staging", 2, 2)

    def load(self, progress: ProgressCallback) -> Description:
        """Put the weights and programs on the cores, then run every bucket for real.

        Takes minutes where programs are compiled, which it does only without `artifacts`.
        """
        started = time.perf_counter()
        options = self._options
        try:
            if options.artifacts:
                self._model.load(options.artifacts)
            with _reporting(self._model, progress):
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
            dtype=DTYPES[options.amp] if options.quant == "none" else f"{DTYPES[options.amp]}+{options.quant}",
            device="neuron",
            load_s=time.perf_counter() - started,
            feed_s=feed_s,
            step_s=step_s,
        )

    def feed(self, slot: int, tokens: Sequence[int], position: int = 0, all_logits: bool = False) -> Scores:
        """Prefill a whole prompt into `slot`, with the program of the smallest context bucket that holds it."""
        self._limits.check_feed(slot, tokens, position)
        if all_logits:
            raise StepError("the Neuron graphs score the last token of a prompt only")
        if len(tokens) == 1:
            # One column would be taken for a decode step, which harms every slot that it does not name. Of two columns
            # at position 0 the library takes the first for the last token of a prompt.
            return Logits(self._forward([[tokens[0], 0]], [[0, 0]], [slot]))
        return Logits(self._forward([list(tokens)], [list(range(len(tokens)))], [slot]))

    def decode(self, live: Sequence[SlotInput], full: bool = False) -> Scores:
        """One step of all live slots, with the program of the smallest token bucket that holds the largest position."""
        self._limits.check_decode(live)
        return Logits(
            self._forward([[row.token] for row in live], [[row.position] for row in live], [row.slot for row in live])
        )

    def close(self) -> None:
        """Drop the model; the cores are free for certain when the process has exited."""
        self._model = None

    def _forward(self, tokens: list[list[int]], positions: list[list[int]], slots: list[int]) -> FloatRows:
        """The library's one call: (rows, columns) tokens at their positions, (rows,) slots; float32 (rows, vocab_size).

        All integers are int64: in a decode step the library fails on two integer types. The result is a copy, since
        the library may answer with a view of a buffer that the next step overwrites.
        """
        import torch

        try:
            with torch.inference_mode():
                logits = self._model(
                    torch.tensor(tokens, dtype=torch.int64),
                    cache_ids=torch.tensor(positions, dtype=torch.int64),
                    start_ids=torch.tensor(slots, dtype=torch.int64),
                )
                return np.array(logits.numpy(), dtype=np.float32, order="C")
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


def _import_library(tp_degree: int) -> Any:
    """The module transformers_neuronx; ConfigurationError with the way to get it.

    The runtime reads its variables when it starts, so they are set first; the operator's own settings win.
    """
    if "NEURON_RT_VISIBLE_CORES" not in os.environ:
        os.environ.setdefault("NEURON_RT_NUM_CORES", str(tp_degree))
    os.environ.setdefault("NEURON_RT_EXEC_TIMEOUT", EXEC_TIMEOUT_S)
    try:
        import transformers_neuronx  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:  # the placeholder packages raise it themselves
        raise ConfigurationError(f"{IMPORT_HINT} ({error})") from error
    return transformers_neuronx


def _construct(library: Any, directory: Path, options: NeuronOptions) -> Any:
    """The model with its checkpoint mapped. Mistral's own class lacks what came to Llama's and computes the same."""
    try:
        return library.LlamaForSampling.from_pretrained(
            str(directory),
            batch_size=options.slots,
            amp=options.amp,
            tp_degree=options.tp_degree,
            n_positions=list(options.token_buckets),
            context_length_estimate=list(options.context_buckets),
            neuron_config=_neuron_config(library, options),
        )
    except Exception as error:
        raise faults.load_error(error) from error


def _neuron_config(library: Any, options: NeuronOptions) -> Any:
    """A new NeuronConfig: a model changes the one it is given, so that none may be used twice.

    The cache keeps its SBH layout (BSH gives wrong results), and group_query_attention its default, which shards over
    heads: REPLICATED_HEADS would multiply the cache.
    """
    quant = None
    if options.quant != "none":
        quant = library.QuantizationConfig(quant_dtype=options.quant, dequant_dtype=options.amp)
    return library.NeuronConfig(
        continuous_batching=library.ContinuousBatchingConfig(max_num_seqs=options.slots),
        attention_layout="BSH",
        collectives_layout="BSH",
        fuse_qkv=True,
        quant=quant,
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
    """Seconds of the second of two runs, both of which must give finite numbers."""
    for _ in range(2):
        started = time.perf_counter()
        scores = run()
        seconds = time.perf_counter() - started
        if not (isinstance(scores, Logits) and np.isfinite(scores.rows).all()):
            raise DeviceError(f"the warm-up of {name} gave numbers that are not finite")
    return seconds


@contextmanager
def _reporting(model: Any, progress: ProgressCallback) -> Iterator[None]:
    """Report `to_neuron`: layers as they reach the device, then graphs as they are loaded.

    The library has no callback. It nullifies each layer of the checkpoint once the device has it, and sets up one
    graph after the other (the token buckets are one graph there); what it compiles in between goes unreported.
    """
    layers = list(model.chkpt_model.model.layers)
    graphs = list(model.nbs_objs)
    with (
        _after_each(layers, "nullify", lambda done: progress("weights", done, len(layers))),
        _after_each(graphs, "setup", lambda done: progress("graphs", done, len(graphs))),
    ):
        progress("weights", 0, len(layers))
        yield


@contextmanager
def _after_each(objects: Iterable[Any], method: str, report: Callable[[int], None]) -> Iterator[None]:
    """Call `report(n)` after the n-th call of `method` on any of `objects`."""
    done = 0

    def watched(call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            nonlocal done
            call()
            done += 1
            report(done)

        return run

    for each in objects:
        setattr(each, method, watched(getattr(each, method)))
    try:
        yield
    finally:
        for each in objects:
            delattr(each, method)
