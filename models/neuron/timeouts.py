"""NEURON_RT_EXEC_TIMEOUT: when the runtime itself gives an execution up. Pure arithmetic over a prediction.

The runtime's own timeout comes with a status code and a log that name what hangs; the server's deadline ends in
SIGKILL, which names nothing. So the runtime's must be the shorter one: the server adds its margin to what is set here.
"""

from __future__ import annotations

import math

from models.planner.timing import decode_step, prefill
from models.protocol import NeuronOptions
from models.spec import ModelSpec

LEAST_S = 1
# Of the pessimistic prediction, which is itself 3.5 times the physical floor or more: nothing healthy comes near it.
FACTOR = 2.0


def exec_timeout_s(spec: ModelSpec, options: NeuronOptions) -> int:
    """Whole seconds for the longest of this configuration's executions, at least LEAST_S."""
    longest = max(
        *(prefill(spec, options, bucket).pessimistic for bucket in options.context_buckets),
        *(decode_step(spec, options, bucket).pessimistic for bucket in options.token_buckets),
    )
    return max(LEAST_S, math.ceil(FACTOR * longest))
