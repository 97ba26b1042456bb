"""The configurations nearest to one that does not fit: fewer slots, shorter slots, a smaller number type, more cores.

A search over `good`, which the caller gives. Knows no memory and no device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from msgspec.structs import replace

from models.planner.hardware import CORES_PER_CHIP
from models.protocol import CpuOptions, NeuronOptions

AnyOptions = NeuronOptions | CpuOptions
Options = TypeVar("Options", bound=AnyOptions)

_POSITION_STEP = 256
_TP_DEGREES = (CORES_PER_CHIP, 8, 24)


def nearest(options: Options, good: Callable[[Options], bool]) -> list[Options]:
    """Each of the single changes that suffices; else the smaller number type with one of them; else more chips.

    Fewer slots come first, since they cost throughput alone; then shorter ones, which refuse requests; then accuracy.
    """
    halved = [replace(options, **change) for change in _smaller_type(options)]
    whole_chip = [replace(options, tp_degree=cores) for cores in _more_cores(options) if cores == CORES_PER_CHIP]
    single = [*_reduced(options, good), *filter(good, [*halved, *whole_chip])]
    if single:
        return single
    double = [change for base in halved for change in _reduced(base, good)]
    return double or _first((replace(options, tp_degree=cores) for cores in _more_cores(options)), good)


def changes(old: AnyOptions, new: AnyOptions) -> str:
    """What of `new` differs, as it is written in the file: 'slots = 4, quant = "s8"'."""
    return ", ".join(
        f"{name} = {_toml(getattr(new, name))}"
        for name in new.__struct_fields__
        if getattr(new, name) != getattr(old, name)
    )


def _reduced(options: Options, good: Callable[[Options], bool]) -> list[Options]:
    """With the most slots that are good, and with the most positions that are good; each alone."""
    slots = range(options.slots - 1, 0, -1)
    lengths = range((options.n_positions - 1) // _POSITION_STEP * _POSITION_STEP, 0, -_POSITION_STEP)
    return [
        *_first((replace(options, slots=count) for count in slots), good),
        *_first((replace(options, **_shortened(options, length)) for length in lengths), good),
    ]


def _first(candidates: Iterator[Options], good: Callable[[Options], bool]) -> list[Options]:
    return next(([candidate] for candidate in candidates if good(candidate)), [])


def _shortened(options: AnyOptions, length: int) -> dict[str, Any]:
    """Slots of `length` positions, with the buckets, or the chunk, that they allow."""
    if isinstance(options, CpuOptions):
        return {"n_positions": length, "chunk": min(options.chunk, length)}
    contexts = tuple(bucket for bucket in options.context_buckets if bucket <= length) or (length,)
    steps = (*(bucket for bucket in options.token_buckets if bucket < length), length)
    return {"n_positions": length, "context_buckets": contexts, "token_buckets": steps}


def _smaller_type(options: AnyOptions) -> list[dict[str, Any]]:
    if isinstance(options, CpuOptions):
        return [{"dtype": "bfloat16", "weights": "dtype"}] if options.dtype == "float32" else []
    return [{"quant": "s8"}] if options.quant == "none" else []


def _more_cores(options: AnyOptions) -> list[int]:
    """None for a model that is given certain cores: the others belong to another."""
    if isinstance(options, CpuOptions) or options.cores:
        return []
    return [cores for cores in _TP_DEGREES if cores > options.tp_degree]


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
