"""`python -m models.cpu.beside_generate DIRECTORY -- COMMAND...`: a load on a server, and transformers' `generate`.

COMMAND is a `neuronx-serve bench --url` of one concurrency. It and a static batch of as many prompts take turns, so
that each run of it is compared with what `generate` gave right before and right behind it: a machine that changes its
speed changes both. torch is as its user finds it here; nothing that models/cpu/host.py sets holds. Knows no HTTP.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from models.cpu.hugging_face import Generate
from models.spec import read_spec

PROMPT = 104
CACHES = ("dynamic", "static")
SAMPLING = {"temperature": 0.8, "top_p": 0.95, "top_k": 0}  # of `bench --url`, on TGI's route without --greedy


def compared(served: Sequence[float], generated: Sequence[float]) -> list[float]:
    """Each rate of `served` over the mean of the two of `generated` around it, of which there is one more."""
    around = itertools.pairwise(generated)
    return [rate / statistics.mean(pair) for rate, pair in zip(served, around, strict=True)]


def _generated(batches: Sequence[Generate], streams: int, tokens: int) -> tuple[float, ...]:
    """Tokens a second of each."""
    rates = []
    for batch in batches:
        began = time.perf_counter()
        batch.generate(tokens)
        rates.append(streams * tokens / (time.perf_counter() - began))
    return tuple(rates)


def _served(command: Sequence[str], streams: int) -> float:
    """Tokens a second; SystemExit when the command does not tell, or of other streams or of some of them."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rows.json"
        done = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, check=False)
        if done.returncode != 0 or not file.exists():
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        rows = json.loads(file.read_text(encoding="utf-8"))
    if [row["concurrency"] for row in rows] != [streams]:
        raise SystemExit(f"{' '.join(command)} must have one row, of --concurrency {streams}")
    if rows[0]["failed"]:
        raise SystemExit(f"{rows[0]['failed']} requests of {' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return float(rows[0]["tokens_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.cpu.beside_generate", description=__doc__)
    parser.add_argument("directory", type=Path, help="the checkpoint that the server has loaded, too")
    parser.add_argument("--turns", type=int, default=12, help="runs of COMMAND (default: 12)")
    parser.add_argument("--streams", type=int, default=10, help="prompts of a batch (default: 10)")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of each prompt (default: 48)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--sampled", action="store_true", help="generate samples as bench does, not greedily")
    parser.add_argument("command", nargs="+", help="a bench --url; `--json` is added to it")
    args = parser.parse_args()
    size = read_spec(args.directory).vocab_size
    prompts = [[(7919 * (at + 1) + 31 * stream) % size for at in range(PROMPT)] for stream in range(args.streams)]
    sampling = SAMPLING if args.sampled else None
    batches = [Generate(args.directory, args.dtype, cache, prompts, sampling) for cache in CACHES]
    _generated(batches, args.streams, args.tokens)
    generated, served = [_generated(batches, args.streams, args.tokens)], []
    for turn in range(args.turns):
        served.append(_served(args.command, args.streams))
        generated.append(_generated(batches, args.streams, args.tokens))
        rates = ", ".join(f"{rate:.0f} with a {cache} cache" for rate, cache in zip(generated[-1], CACHES, strict=True))
        print(f"{turn + 1}: {served[-1]:.0f} tokens/s served, then {rates}", flush=True)
    bases = {f"generate, {cache} cache": [turn[at] for turn in generated] for at, cache in enumerate(CACHES)}
    bases["the better of the two"] = [max(turn) for turn in generated]
    for name, rates_of in bases.items():
        ratios = compared(served, rates_of)
        print(
            f"times {name} ({statistics.median(rates_of):.0f} tokens/s): median {statistics.median(ratios):.2f}, "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
