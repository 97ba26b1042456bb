"""Variables of the environment that break or slow a Neuron worker. Pure.

The doctor sees its own environment: under systemd the server's is that of the unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from server.doctor.devices import cores_wanted
from server.doctor.finding import Finding, fail, ok, warn
from server.settings import Settings

_CHECK = "environment"
_BREAKS = {
    "NEURONX_DUMP_TO": "it changes every graph, so that no compiled artifact fits, and fills the disk",
    "HLO_SNAPSHOT_PATH": "every step writes its tensors to disk",
    "NEURON_RANK_ID": "it makes the library wait for other machines",
    "NEURON_LOCAL_TP": "it belongs to a model over several machines",
    "NEURON_PP_STAGES": "it belongs to a model over several machines",
}
_SLOWS = {
    "NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS": "steps are issued one at a time, and their errors belong to them",
    "NEURON_RT_INSPECT_ENABLE": "every execution is profiled",
}


def check_variables(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Findings on NEURON_*; a harmless environment is one finding."""
    wanted = cores_wanted(settings)
    if not wanted:
        return
    found = [
        *(
            fail(_CHECK, f"{name} is set: {why}", f"unset {name}")
            for name, why in _BREAKS.items()
            if environment.get(name)
        ),
        *(
            warn(_CHECK, f"{name} is set: {why}", f"unset {name}")
            for name, why in _SLOWS.items()
            if environment.get(name)
        ),
        *_cores(wanted, environment),
        *_others(settings, environment),
    ]
    yield from found or [ok(_CHECK, "no variable is set that changes how the runtime or the compiler works")]


def _cores(wanted: int, environment: Mapping[str, str]) -> Iterator[Finding]:
    visible = environment.get("NEURON_RT_VISIBLE_CORES", "")
    number = environment.get("NEURON_RT_NUM_CORES", "")
    if visible:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", visible)
        if match is None:
            yield fail(
                _CHECK,
                f"NEURON_RT_VISIBLE_CORES = {visible!r} is no contiguous range",
                f'unset it, or use "0-{wanted - 1}"',
            )
        elif (count := int(match[2] or match[1]) - int(match[1]) + 1) < wanted:
            yield fail(
                _CHECK, f"NEURON_RT_VISIBLE_CORES = {visible!r} shows {count} of the {wanted} cores wanted", "unset it"
            )
    elif number.isdigit() and int(number) < wanted:
        yield fail(_CHECK, f"NEURON_RT_NUM_CORES = {number}, the configuration wants {wanted}", "unset it")


def _others(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    timeout = environment.get("NEURON_RT_EXEC_TIMEOUT", "")
    if timeout and not timeout.isdigit():
        yield fail(_CHECK, f"NEURON_RT_EXEC_TIMEOUT = {timeout!r} is no number of seconds", "unset it")
    elif timeout and int(timeout) >= settings.worker.step_timeout:
        yield warn(
            _CHECK,
            f"NEURON_RT_EXEC_TIMEOUT = {timeout} is not below worker.step_timeout = {settings.worker.step_timeout:g}: "
            "a hang ends without the runtime's own diagnosis",
            "unset it: the worker sets one that fits its model",
        )
    if environment.get("NEURON_RT_RESET_CORES") == "0":
        yield warn(
            _CHECK,
            "NEURON_RT_RESET_CORES = 0: a core that a killed worker left running is not reset",
            "unset NEURON_RT_RESET_CORES",
        )
    if "--no_cache" in environment.get("NEURON_CC_FLAGS", ""):
        yield warn(_CHECK, "NEURON_CC_FLAGS has --no_cache: interrupted compilations start anew", "remove the flag")
