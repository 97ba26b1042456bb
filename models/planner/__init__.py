"""The planner: whether a configuration fits, and how fast it can be, before anything loads. Pure arithmetic.

hardware.py   the chip, the instances, their sources
shapes.py     the published shapes of the three models
sharding.py   how a model is cut over NeuronCores
memory.py     what it takes of a core and of the host
timing.py     how long steps, prefills and loads take
workload.py   what that makes of a steady load
fit.py        the verdict; nearest.py what would fit instead
window.py     slots cut to a sliding window, before all of that
"""

from models.planner.fit import fitting, host_memory, refusal, residents_refusal
from models.planner.window import within_window

__all__ = ["fitting", "host_memory", "refusal", "residents_refusal", "within_window"]
