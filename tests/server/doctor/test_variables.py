"""Variables that break or slow a worker, and the values that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("name", "value", "level", "text"),
    [
        ("NEURONX_DUMP_TO", "/tmp/dump", "fail", "no compiled artifact fits"),
        ("HLO_SNAPSHOT_PATH", "/tmp/hlo", "fail", "every step writes"),
        ("NEURON_RANK_ID", "0", "fail", "wait for other machines"),
        ("NEURON_LOCAL_TP", "2", "fail", "several machines"),
        ("NEURON_PP_STAGES", "2", "fail", "several machines"),
        ("NEURON_RT_VISIBLE_CORES", "0", "fail", "shows 1 of the 2 cores"),
        ("NEURON_RT_VISIBLE_CORES", "0,1", "fail", "no contiguous range"),
        ("NEURON_RT_NUM_CORES", "1", "fail", "the configuration wants 2"),
        ("NEURON_RT_EXEC_TIMEOUT", "soon", "fail", "no number of seconds"),
        ("NEURON_RT_EXEC_TIMEOUT", "600", "warn", "not below worker.step_timeout = 60"),
        ("NEURON_RT_RESET_CORES", "0", "warn", "not reset"),
        ("NEURON_RT_INSPECT_ENABLE", "1", "warn", "profiled"),
        ("NEURON_CC_FLAGS", "-O1 --no_cache", "warn", "start anew"),
    ],
)
def test_a_variable_that_does_harm(inf2: Any, name: str, value: str, level: str, text: str) -> None:
    found = inf2.trouble(environment={name: value})
    assert (found.level, found.check) == (level, "environment")
    assert text in found.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NEURONX_DUMP_TO", ""),
        ("NEURON_RT_VISIBLE_CORES", "0-1"),
        ("NEURON_RT_NUM_CORES", "2"),
        ("NEURON_RT_EXEC_TIMEOUT", "5"),
        ("NEURON_CC_FLAGS", "-O1"),
    ],
)
def test_a_variable_that_does_none(inf2: Any, name: str, value: str) -> None:
    assert inf2.troubles(environment={name: value}) == []


def test_one_core_is_enough_for_a_model_on_one(inf2_with: Callable[..., Any]) -> None:
    assert inf2_with(tp_degree=1, quant="s8").troubles(environment={"NEURON_RT_VISIBLE_CORES": "1"}) == []


def test_where_nothing_runs_on_neuron_its_variables_do_not_matter(laptop: Any) -> None:
    assert laptop.troubles(environment={"NEURONX_DUMP_TO": "/tmp/dump", "NEURON_RT_VISIBLE_CORES": "9"}) == []
