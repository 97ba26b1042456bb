"""Which models can be on the device side by side, and the planner's word that each fits, and that the residents do.

Pure but for the configuration files it reads: knows no worker and no state.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from models.planner import host_memory, refusal, residents_refusal
from models.planner.fit import gib
from models.protocol import DeviceOptions, NeuronOptions
from models.spec import ModelSpec, SpecError, read_spec
from server.errors import ConfigurationError
from server.settings import ModelSettings, Settings


def rivals(one: DeviceOptions, other: DeviceOptions) -> bool:
    """Whether two models can never be resident together: they share a NeuronCore, or one takes them all."""
    if not isinstance(one, NeuronOptions) or not isinstance(other, NeuronOptions):
        return False
    return not one.cores or not other.cores or bool(_cores(one) & _cores(other))


def check_fit(settings: Settings, host_free: int) -> None:
    """ConfigurationError unless each model fits alone, and any `swap.residents` that are no rivals beside each other.

    `host_free`: bytes of memory that the host has available. A model without a readable config.json is left out: it
    cannot be loaded either.
    """
    room = min(settings.swap.residents, len(settings.models))
    known = [(model, spec) for model in settings.models if (spec := _spec(model)) is not None]
    for model, spec in known:
        if reason := refusal(spec, model.device, host_free):
            raise ConfigurationError(f"{model.id} cannot be served: {reason}")
    for chosen in itertools.combinations(known, room) if room > 1 else ():
        if any(rivals(a.device, b.device) for (a, _), (b, _) in itertools.combinations(chosen, 2)):
            continue
        if reason := _refusal(chosen, host_free):
            names = " and ".join(model.id for model, _ in chosen)
            raise ConfigurationError(
                f"swap.residents = {settings.swap.residents}: {names} cannot be resident together: {reason}. "
                f"Set swap.residents = {room - 1}"
            )


def _refusal(chosen: Sequence[tuple[ModelSettings, ModelSpec]], host_free: int) -> str | None:
    on_neuron = [(spec, model.device) for model, spec in chosen if isinstance(model.device, NeuronOptions)]
    cores = set().union(*(_cores(options) for _, options in on_neuron))
    if reason := residents_refusal(on_neuron, len(cores), host_free):
        return reason
    hosts = [host_memory(spec, model.device) for model, spec in chosen]
    needed = sum(host.resident for host in hosts) + max(host.peak - host.resident for host in hosts)
    if needed > host_free:
        return (
            f"together they need {gib(needed)} GiB of the host while the last one loads, and {gib(host_free)} are free"
        )
    return None


def _spec(model: ModelSettings) -> ModelSpec | None:
    try:
        return read_spec(Path(model.path))
    except SpecError:
        return None


def _cores(options: NeuronOptions) -> set[int]:
    """The cores of NEURON_RT_VISIBLE_CORES' notation: "0", "0-1", "0,2-3"."""
    found: set[int] = set()
    for part in filter(None, options.cores.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
