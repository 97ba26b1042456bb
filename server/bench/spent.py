"""How long a server's device has computed, and its sampling, by the `/metrics` of this server or of TGI."""

from __future__ import annotations

import math
import re

import msgspec

_SUM = re.compile(r"^(\w+)_sum(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_DEVICE = "tgi_batch_forward_duration"
_SAMPLING = "neuronx_serve_step_sampling_seconds"


class Spent(msgspec.Struct, frozen=True):
    """Seconds since the server's start, of all steps together; NaN where it does not tell."""

    device: float = math.nan
    sampling: float = math.nan

    def since(self, before: Spent) -> Spent:
        """What came after `before`; no step at all means that it does not tell."""
        return Spent(self.device - before.device or math.nan, self.sampling - before.sampling or math.nan)


NOT_TOLD = Spent()


def read(metrics: str) -> Spent:
    """Of a page in Prometheus' text format. Pure. A server that has made no step yet has no such series."""
    sums: dict[str, float] = {}
    for name, value in _SUM.findall(metrics):
        sums[name] = sums.get(name, 0.0) + float(value)
    return Spent(sums.get(_DEVICE, 0.0), sums.get(_SAMPLING, 0.0))
