"""`python -m models.cpu.benchmark DIRECTORY`: the CPU backend against plain torch and Hugging Face `generate`.

All variants run in turns in one process, so a busy neighbour slows them alike: read the ratios, not the milliseconds.
Knows no server: step times of the backend alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from models.cpu.backend import CpuBackend
from models.protocol import CpuOptions, SlotInput

PROMPT = 104
SLOTS = (1, 4, 10, 16, 32)
_N_POSITIONS = 512


@dataclass(frozen=True, slots=True)
class Row:
    """Median seconds of one variant: `step_s[i]` is a decode of SLOTS[i] rows, `feed_s` a prefill of PROMPT tokens."""

    variant: str
    step_s: tuple[float, ...]
    feed_s: float


class Variant:
    """A loaded backend with every slot fed, and the steps measured so far."""

    def __init__(self, name: str, directory: Path, options: CpuOptions, plain: bool) -> None:
        from models.cpu import loading
        from models.cpu.linear import PlainLinear, linear_type

        self.name = name
        self._backend = CpuBackend(directory, options)
        self._backend.stage(_quiet)
        with mock.patch.object(loading, "linear_type", (lambda dtype: PlainLinear) if plain else linear_type):
            self._vocabulary = self._backend.load(_quiet).vocab_size
        self._feeds: list[float] = []
        self._steps: dict[int, list[float]] = {count: [] for count in SLOTS}
        for slot in range(max(SLOTS)):
            self._feed(slot)

    def turn(self) -> None:
        """One prefill and one step of each width; all slots stay equally long."""
        self._feeds.append(_seconds(lambda: self._feed(0)))
        for count in SLOTS:
            live = [SlotInput(slot, self._token(PROMPT), PROMPT) for slot in range(count)]
            self._steps[count].append(_seconds(partial(self._backend.decode, live)))

    def row(self) -> Row:
        return Row(
            self.name, tuple(statistics.median(self._steps[count]) for count in SLOTS), statistics.median(self._feeds)
        )

    def close(self) -> None:
        self._backend.close()

    def _feed(self, slot: int) -> None:
        self._backend.feed(slot, [self._token(position) for position in range(PROMPT)])

    def _token(self, position: int) -> int:
        return (7919 * (position + 1)) % self._vocabulary


def measure(directory: Path, turns: int, dtypes: Sequence[str], threads: int) -> list[Row]:
    """A row for each dtype of plain F.linear and of the two layouts; variants take their turns one after the other."""
    variants = [
        Variant(f"{dtype}, {name}", directory, _options(dtype, layout, threads), plain)
        for dtype in dtypes
        for name, layout, plain in (
            ("F.linear", "packed", True),
            ("layout fixed", "fixed", False),
            ("layout packed", "packed", False),
        )
    ]
    for _ in range(turns):
        for variant in variants:
            variant.turn()
    rows = [variant.row() for variant in variants]
    for variant in variants:
        variant.close()
    return rows


def generate_tokens_per_s(directory: Path, batch: int, new_tokens: int) -> float:
    """Tokens a second of transformers' `generate`, float32, greedy, a static batch of prompts of PROMPT tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompts = torch.arange(1, PROMPT + 1).repeat(batch, 1) + torch.arange(batch)[:, None]
    length = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    options = {"attention_mask": torch.ones_like(prompts), "do_sample": False, "pad_token_id": 0, **length}
    with torch.inference_mode():
        seconds = _seconds(lambda: model.generate(prompts, **options))
    return batch * new_tokens / seconds


def implied_tokens_per_s(row: Row, streams: int, new_tokens: int) -> float:
    """Of `streams` requests of PROMPT + `new_tokens` that start together: prefills one by one, then full steps."""
    step_s = row.step_s[SLOTS.index(streams)]
    return streams * new_tokens / (streams * row.feed_s + (new_tokens - 1) * step_s)


def _options(dtype: str, layout: str, threads: int) -> CpuOptions:
    options = {"slots": max(SLOTS), "n_positions": _N_POSITIONS, "dtype": dtype, "layout": layout, "threads": threads}
    return CpuOptions(**options)  # type: ignore[arg-type]


def _quiet(phase: str, done: int, total: int) -> None:
    """Loading is no part of the measurement."""


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.cpu.benchmark", description=__doc__)
    parser.add_argument("directory", type=Path, help="a checkpoint's directory")
    parser.add_argument("--turns", type=int, default=8, help="steps of each width and variant (default: 8)")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are processors")
    parser.add_argument("--generate", type=int, metavar="N", default=0, help="also N new tokens by transformers at 10")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    rows = measure(args.directory, args.turns, args.dtypes, args.threads)
    print(f"{'ms':24}" + "".join(f"{count:>9}" for count in SLOTS) + f"{f'prefill {PROMPT}':>14}")
    for row in rows:
        print(f"{row.variant:24}" + "".join(f"{1e3 * s:9.1f}" for s in row.step_s) + f"{1e3 * row.feed_s:14.1f}")
    if args.generate:
        theirs = generate_tokens_per_s(args.directory, 10, args.generate)
        print(f"\ntransformers' generate, float32, batch 10: {theirs:.1f} tokens/s")
        for row in rows:
            ours = implied_tokens_per_s(row, 10, args.generate)
            print(f"{row.variant:24}{ours:9.1f} tokens/s, {ours / theirs:.2f} times that")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
