"""`python -m models.cpu.benchmark DIRECTORY`: the CPU backend against plain torch and transformers.

All variants run in turns in one process, so a busy neighbour slows them alike: read the ratios, not the milliseconds.
`--diverge` counts where they say something else than the guaranteed mode. Knows no server: the backend alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from models.cpu.backend import CpuBackend
from models.cpu.divergence import Decoding, Divergence, answers, beginnings, diverges
from models.cpu.mixed_benchmark import measure
from models.protocol import CpuOptions, SlotInput
from models.spec import read_spec

if TYPE_CHECKING:
    from torch import Tensor

    from models.cpu.linear import Linear, LinearType

# "F.linear": torch's own products and attention in our pass. "int8": weights that the backend does not offer.
Form = Literal["ours", "F.linear", "int8"]

# Seconds. What a thread has computed (time.thread_time) is free of the time in which its neighbours did.
Clock = Callable[[], float]

PROMPT = 104
SLOTS = (1, 4, 10, 16, 32)
PLAIN, OURS_PLAIN, TRANSFORMERS = "plain torch", "our pass, F.linear", "transformers"  # what the ratios are of
STREAMS = 10  # of a comparison with `generate`
_N_POSITIONS = 512
_FEEDS = 4  # prefills of a turn
_BESIDE = (1, 4, 9, 20, 31)  # rows that decode while a prompt is fed


@dataclass(frozen=True, slots=True)
class Row:
    """Median seconds of one variant: `step_s[i]` is a decode of SLOTS[i] rows, `feed_s` a prefill of PROMPT tokens."""

    variant: str
    step_s: tuple[float, ...]
    feed_s: float


@dataclass(frozen=True, slots=True)
class Rate:
    """New tokens a second of STREAMS requests that start together, median; `ratio`: the median over the turns of this
    rate over that of the fastest `generate` in the same turn."""

    variant: str
    tokens_per_s: float
    ratio: float


class Generator(Protocol):
    """Anything that continues STREAMS prompts of PROMPT tokens."""

    name: str

    def generate(self, new_tokens: int) -> None:
        """Greedily, and without an end token."""


class Variant:
    """A loaded decoder, and the steps measured so far."""

    def __init__(self, name: str, decoder: Decoding, vocabulary: int, clock: Clock = time.perf_counter) -> None:
        self.name = name
        self._clock = clock
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._feeds: list[float] = []
        self._steps: dict[int, list[float]] = {count: [] for count in SLOTS}

    def prepare(self) -> None:
        """Feed every slot, and make one step of each width, which some are slow at for the first time."""
        for slot in range(max(SLOTS)):
            self._decoder.feed(slot, _prompt(slot, self._vocabulary))
        for count in SLOTS:
            self._decoder.decode(_streams(count))

    def turn(self) -> None:
        """Some prefills and one step of each width; all slots stay equally long."""
        for slot in range(_FEEDS):
            feed = partial(self._decoder.feed, slot, _prompt(slot, self._vocabulary))
            self._feeds.append(_seconds(self._clock, feed))
        for count in SLOTS:
            self._steps[count].append(_seconds(self._clock, partial(self._decoder.decode, _streams(count))))

    def row(self) -> Row:
        return Row(
            self.name, tuple(statistics.median(self._steps[count]) for count in SLOTS), statistics.median(self._feeds)
        )

    def ratios(self, base: Variant) -> tuple[float, ...]:
        """The columns of `row` over those of `base`, each the median over the turns."""
        feeds = zip(self._feeds, base._feeds, strict=True)
        steps = [zip(self._steps[count], base._steps[count], strict=True) for count in SLOTS]
        return tuple(statistics.median(mine / theirs for mine, theirs in pairs) for pairs in (*steps, feeds))

    def divergence(self, prompts: Sequence[Sequence[int]], guaranteed: Sequence[Sequence[int]]) -> Divergence:
        return diverges(self.name, self._decoder, prompts, guaranteed)

    def generate(self, new_tokens: int) -> None:
        """As the engine does: a prefill a prompt, then steps of all."""
        prompts = [_prompt(slot, self._vocabulary) for slot in range(STREAMS)]
        tokens = [int(self._decoder.feed(slot, prompt).rows.argmax()) for slot, prompt in enumerate(prompts)]
        for position in range(PROMPT, PROMPT + new_tokens - 1):
            live = [SlotInput(slot, token, position) for slot, token in enumerate(tokens)]
            tokens = self._decoder.decode(live).rows.argmax(1).tolist()


def variants(
    directory: Path,
    dtypes: Sequence[str],
    threads: int,
    *,
    int8: bool = False,
    transformers: bool = False,
    clock: Clock = time.perf_counter,
) -> list[Variant]:
    """Of each dtype what to measure against, then what is offered; of bfloat16 also what is not, int8 weights.

    PLAIN is a decoder of torch's own operators, written apart (plain.py). OURS_PLAIN is our pass with torch's own
    products and the exact attention, nothing packed, stacked or fused: what is left of the difference is those.
    TRANSFORMERS are the modules of that library.
    """
    vocabulary = read_spec(directory).vocab_size

    def made(name: str, dtype: str, layout: str, weights: str = "dtype", form: Form = "ours") -> Variant:
        options = {"dtype": dtype, "layout": layout, "weights": weights, "threads": threads}
        chosen = CpuOptions(slots=max(SLOTS), n_positions=_N_POSITIONS, **options)  # type: ignore[arg-type]
        return Variant(f"{dtype}, {name}", loaded_backend(directory, chosen, form), vocabulary, clock)

    loaded = []
    for dtype in dtypes:
        ours = made(OURS_PLAIN, dtype, "packed", form="F.linear")  # its backend imports torch with so many threads
        loaded.append(Variant(f"{dtype}, {PLAIN}", _plain(directory, dtype), vocabulary, clock))
        loaded.append(ours)
        if transformers:
            loaded.append(Variant(f"{dtype}, {TRANSFORMERS}", _hugging_face(directory, dtype), vocabulary, clock))
        loaded.append(made("layout fixed", dtype, "fixed"))
        loaded.append(made("layout packed", dtype, "packed"))
        if dtype == "float32":
            loaded.append(made("packed, float16 weights", dtype, "packed", "float16"))
        elif int8:
            loaded.append(made("packed, int8 weights", dtype, "packed", form="int8"))
    return loaded


def loaded_backend(directory: Path, options: CpuOptions, form: Form = "ours") -> CpuBackend:
    """`form`: what to multiply and attend with, in place of what the options ask for."""
    from models.cpu.attention_exact import EXACT
    from models.cpu.linear import PlainLinear

    linear: LinearType | None = {"ours": None, "F.linear": PlainLinear, "int8": _int8_linear}[form]
    plain = form == "F.linear"
    backend = CpuBackend(directory, options, linear, EXACT if plain else None, False if plain else None)
    backend.stage(_quiet)
    backend.load(_quiet)
    return backend


def _plain(directory: Path, dtype: str) -> Decoding:
    import torch

    from models.cpu.plain import PlainDecoder

    return PlainDecoder(directory, getattr(torch, dtype), max(SLOTS), _N_POSITIONS)


def _hugging_face(directory: Path, dtype: str) -> Decoding:
    import torch

    from models.cpu.hugging_face import HuggingFaceDecoder

    return HuggingFaceDecoder(directory, getattr(torch, dtype))


def _generators(directory: Path, dtypes: Sequence[str]) -> list[Generator]:
    from models.cpu.hugging_face import Generate

    prompts = [_prompt(stream, read_spec(directory).vocab_size) for stream in range(STREAMS)]
    caches = itertools.product(dtypes, ("dynamic", "static"))
    return [Generate(directory, dtype, cache, prompts) for dtype, cache in caches]


def rates(
    theirs: Sequence[Generator],
    ours: Sequence[Generator],
    new_tokens: int,
    turns: int,
    clock: Clock = time.perf_counter,
) -> list[Rate]:
    """All take turns; each turn is compared with itself."""
    seconds: dict[str, list[float]] = {each.name: [] for each in (*theirs, *ours)}
    for _ in range(turns):
        for each in (*theirs, *ours):
            seconds[each.name].append(_seconds(clock, partial(each.generate, new_tokens)))
    best = [min(turn) for turn in zip(*(seconds[each.name] for each in theirs), strict=True)]
    return [
        Rate(
            name,
            STREAMS * new_tokens / statistics.median(taken),
            statistics.median(base / mine for base, mine in zip(best, taken, strict=True)),
        )
        for name, taken in seconds.items()
    ]


def _int8_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights as int8 with a scale a row, activations in bfloat16: measured here, and not offered by the backend."""
    import torch

    from models.cpu.linear import Unfused

    scales = (weight.float().abs().amax(1) / 127).clamp_min(1e-12)
    packed = (weight.float() / scales[:, None]).round().to(torch.int8)

    class Int8Linear(Unfused):
        def __call__(self, x: Tensor) -> Tensor:
            y: Tensor = torch._weight_int8pack_mm(x, packed, scales.to(x.dtype))
            return y if bias is None else y.add_(bias)

    return Int8Linear()


def _prompt(stream: int, vocabulary: int) -> list[int]:
    return [(7919 * (position + 1) + 31 * stream) % vocabulary for position in range(PROMPT)]


def _streams(count: int) -> list[SlotInput]:
    return [SlotInput(slot, 1, PROMPT) for slot in range(count)]


def _quiet(phase: str, done: int, total: int) -> None:
    """Loading is no part of the measurement."""


def _seconds(clock: Clock, run: Callable[[], object]) -> float:
    began = clock()
    run()
    return clock() - began


def _print_steps(rows: Sequence[Row], loaded: Sequence[Variant]) -> None:
    print(f"{'ms':34}" + "".join(f"{count:>9}" for count in SLOTS) + f"{f'prefill {PROMPT}':>14}")
    for row in rows:
        print(f"{row.variant:34}" + "".join(f"{1e3 * s:9.1f}" for s in row.step_s) + f"{1e3 * row.feed_s:14.1f}")
    for against in (PLAIN, OURS_PLAIN, TRANSFORMERS):
        bases = {variant.name.split(",")[0]: variant for variant in loaded if variant.name.endswith(f", {against}")}
        if not bases:
            continue
        print(f"\n{f'times {against} of its dtype':34}")
        for variant in loaded:
            *steps, feed = variant.ratios(bases[variant.name.split(",")[0]])
            print(f"{variant.name:34}" + "".join(f"{ratio:9.2f}" for ratio in steps) + f"{feed:14.2f}")


def _print_divergence(directory: Path, loaded: Sequence[Variant], count: int, threads: int) -> None:
    prompts = beginnings(directory)
    options = CpuOptions(slots=len(prompts), n_positions=_N_POSITIONS, threads=threads)
    guaranteed = answers(loaded_backend(directory, options), prompts, count)
    print(f"\n{len(prompts)} greedy answers of {count} tokens")
    for variant in loaded:
        each = variant.divergence(prompts, guaranteed)
        print(
            f"{each.variant:34}{100 * each.changed:6.0f} % change in company; of the guaranteed tokens "
            f"{100 * each.other:5.2f} % others likelier, perplexity {each.perplexity:.4f}"
        )


def _print_mixed(directory: Path, dtypes: Sequence[str], threads: int, turns: int, clock: Clock) -> None:
    print(f"\nprefill of {PROMPT} beside decoding rows, layout packed")
    for dtype in dtypes:
        options = {"dtype": dtype, "layout": "packed", "threads": threads}
        chosen = CpuOptions(slots=max(SLOTS), n_positions=_N_POSITIONS, **options)  # type: ignore[arg-type]
        prompt = _prompt(0, read_spec(directory).vocab_size)
        for each in measure(loaded_backend(directory, chosen), prompt, _BESIDE, turns, clock):
            print(
                f"{dtype}, {each.rows} rows: {1e3 * each.together_s:.1f} ms in one pass, "
                f"{1e3 * each.apart_s:.1f} ms as two, {each.ratio:.2f} times"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.cpu.benchmark", description=__doc__)
    parser.add_argument("directory", type=Path, help="a checkpoint's directory")
    parser.add_argument("--turns", type=int, default=8, help="measurements of each variant (default: 8)")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are processors")
    parser.add_argument("--generate", type=int, metavar="N", default=0, help="also N new tokens, with transformers'")
    parser.add_argument("--transformers", action="store_true", help="also against the modules of transformers")
    parser.add_argument("--mixed", action="store_true", help="also prefills in one pass with a decode")
    parser.add_argument("--int8", action="store_true", help="also int8 weights, which the backend does not offer")
    parser.add_argument("--diverge", type=int, metavar="N", default=0, help="also compare answers of N tokens")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, by the time that it computed: for a machine whose neighbours are never quiet",
    )
    args = parser.parse_args()
    clock = time.thread_time if args.cpu_time else time.perf_counter
    args.threads = 1 if args.cpu_time else args.threads
    loaded = variants(
        args.directory, args.dtypes, args.threads, int8=args.int8, transformers=args.transformers, clock=clock
    )
    for variant in loaded:
        variant.prepare()
    for _ in range(args.turns):
        for variant in loaded:
            variant.turn()
    rows = [variant.row() for variant in loaded]
    _print_steps(rows, loaded)
    # The decoder over transformers' modules knows one position only.
    movable = [variant for variant in loaded if not variant.name.endswith(f", {TRANSFORMERS}")]
    if args.diverge:
        _print_divergence(args.directory, movable, args.diverge, args.threads)
    if args.mixed:
        _print_mixed(args.directory, args.dtypes, args.threads, args.turns, clock)
    if args.generate:
        print(f"\n{STREAMS} streams, {PROMPT} + {args.generate} tokens")
        for rate in rates(_generators(args.directory, args.dtypes), movable, args.generate, args.turns, clock):
            print(f"{rate.variant:38}{rate.tokens_per_s:9.1f} tokens/s{rate.ratio:8.2f} times the best generate")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
