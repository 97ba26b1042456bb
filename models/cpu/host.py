"""What the backend asks of the machine: processors, number formats, and torch set up for them."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal

from models.backend import ConfigurationError

_BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}

# Turns of the loop in which an idle OpenMP thread waits before it sleeps. By default it spins for milliseconds, and
# as soon as any other process wants a processor, every parallel region of a step waits for a spinning thread's time
# slice: on two cores with one busy neighbour a step took 2 s instead of 0.1 s. A thread that sleeps at once is woken up
# hundreds of times a step instead, for a third of the speed. This many last through most of the small operators between
# two products, and not much longer (docs/performance.md has what was measured).
_SPIN_COUNT = "2000"

# Torch asks the kernel for pages of 2 MB for whatever is as large: a step reads all weights once, and finding them in
# pages of 4 KB takes time. Where the kernel knows no such pages torch would warn of it.
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
_HUGE_PAGES_OF_THE_KERNEL = Path("/sys/kernel/mm/transparent_hugepage")


def import_torch(threads: int) -> None:
    """Imports torch and sets its threads; 0 takes every processor that this process may use."""
    # Both are read once, when OpenMP is loaded with torch and when torch first allocates; the user's own choice stands.
    if _HUGE_PAGES_OF_THE_KERNEL.exists():
        os.environ.setdefault(_HUGE_PAGES, "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    try:
        import torch
    except ImportError as error:
        raise ConfigurationError(f"the CPU backend needs torch: pip install 'neuronx-serve[cpu]' ({error})") from error
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


def compute_dtype(wanted: Literal["auto", "float32", "bfloat16"]) -> Literal["float32", "bfloat16"]:
    """The dtype to compute in. "auto" takes bfloat16 only where the processor multiplies it: elsewhere it is slower."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if _BFLOAT16_FLAGS & _cpu_flags() else "float32"


def cpu_name() -> str:
    """The processor's model name, as the kernel gives it."""
    return _cpuinfo("model name") or platform.machine()


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
