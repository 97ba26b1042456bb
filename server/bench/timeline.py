"""What the steps of a run say about the host: pure arithmetic over what the worker reported. Knows no clock."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from server.observe.metrics import Method


@dataclass(frozen=True, slots=True)
class Step:
    """One step, in the order the device ran them. Seconds.

    `device_s`: the device's own; `sampling_s`: drawing its tokens; `idle_s`: between the end of the step before (its
    tokens drawn) and the start of this one. `rows`: sequences that got a token.
    `waiting`: sequences without a slot when it ended.
    """

    method: Method
    rows: int
    device_s: float
    sampling_s: float
    idle_s: float
    waiting: int = 0

    @property
    def total_s(self) -> float:
        return self.idle_s + self.device_s + self.sampling_s


class EngineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `bench --simulated`. Milliseconds, but for ratios; None where nothing of the kind happened.

    Taken over the decode steps in which every slot is live (`streams` of them), the first of all left out:

    - `throughput_ratio`: tokens per second, over those of a device that never waits (streams / step_ms).
    - `host_added_ms`: interval between the starts of two decode steps, less step_ms, less sampling.
    - `sampling_ms`: drawing the tokens of one step.
    - `device_idle_share`: time in which the device had no step and no token was being drawn, over all time.

    Taken from a second run, of twice as many requests as there are slots (half of `streams`):

    - `slot_occupancy`: slots with a sequence, over all slots, by time, from the first moment all were taken until the
      last request had a slot.

    Taken from single requests to the idle server:

    - `ttft_server_ms`: from the arrival to the first token, less the prefill's own time on the device.
    """

    streams: int
    step_ms: float
    vocab: int
    throughput_ratio: float
    host_added_ms_p50: float
    host_added_ms_p99: float
    sampling_ms_p50: float
    device_ms_p50: float
    device_idle_share: float
    slot_occupancy: float | None
    ttft_server_ms_p50: float
    api_cpu_us_per_token: float | None = None


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` of 100 do not exceed, interpolated between neighbours; of one value, that one.

    ValueError when there is none.
    """
    if not values:
        raise ValueError("there is nothing to take a percentile of")
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def full_decodes(steps: Sequence[Step], slots: int) -> list[tuple[Step, Step]]:
    """Each decode step with all slots live, behind the decode step it followed at once, which had them too."""
    return [
        (before, step)
        for before, step in itertools.pairwise(steps)
        if before.method == step.method == "decode" and before.rows == step.rows == slots
    ]


def host_added_s(before: Step, step: Step, step_s: float) -> float:
    """Interval between the two starts, less the set time of the step, less the sampling of its tokens."""
    return before.device_s + step.idle_s - step_s


def throughput_ratio(pairs: Sequence[tuple[Step, Step]], step_s: float) -> float:
    """Set time of these steps over the time they took, from start to start."""
    return step_s * len(pairs) / sum(before.device_s + before.sampling_s + step.idle_s for before, step in pairs)


def idle_share(steps: Sequence[Step]) -> float:
    """Time without a step and without drawing, over all time of these steps."""
    return sum(step.idle_s for step in steps) / sum(step.total_s for step in steps)


def slot_occupancy(steps: Sequence[Step], slots: int) -> float | None:
    """Occupied slots over all slots, weighted by time, while requests wait; None when none ever waited.

    It begins with the first decode step that has all slots live. In a feed the slot that is being filled counts, and
    so do those of the decode step before, whose sequences wait for it.
    """
    first = next((i for i, step in enumerate(steps) if step.method == "decode" and step.rows == slots), len(steps))
    occupied = total = 0.0
    decoding = slots
    for step in steps[first:]:
        if step.method == "decode":
            decoding = step.rows
        if step.waiting:
            rows = decoding if step.method == "decode" else min(slots, decoding + 1)
            occupied += rows * step.total_s
            total += slots * step.total_s
    return occupied / total if total else None
