"""A sliding window caps how long a slot may be. Pure.

A model with a window w lets each token attend to the last w tokens, itself among them. No backend here computes that,
and none needs to while a slot holds at most w positions: then nothing ever falls out of the window, and full attention
is the same thing. One position more, and full attention would be another model than the one that was trained.
"""

from __future__ import annotations

from typing import TypeVar

from msgspec.structs import replace

from models.protocol import CpuOptions, DeviceOptions, SimulatedOptions
from models.spec import ModelSpec

Options = TypeVar("Options", bound=DeviceOptions)


def within_window(spec: ModelSpec, options: Options) -> Options:
    """`options` with slots, buckets, chunk no longer than the model's sliding window; the same object if it fits."""
    window = spec.sliding_window
    if window is None or options.n_positions <= window or isinstance(options, SimulatedOptions):
        return options
    if isinstance(options, CpuOptions):
        return replace(options, n_positions=window, chunk=min(options.chunk, window))
    return replace(
        options,
        n_positions=window,
        context_buckets=_cut(options.context_buckets, window),
        token_buckets=_cut(options.token_buckets, window),
    )


def _cut(buckets: tuple[int, ...], window: int) -> tuple[int, ...]:
    """Rising again: those that were longer have become one."""
    return tuple(sorted({min(bucket, window) for bucket in buckets}))
