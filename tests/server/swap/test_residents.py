"""Which models can be on the device side by side, and the proof that as many as configured fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.planner.hardware import GIB
from models.protocol import CpuOptions, DeviceOptions, NeuronOptions, SimulatedOptions
from server.errors import ConfigurationError
from server.settings import ModelSettings, Settings, SwapSettings
from server.swap.residents import check_fit, rivals

ONE_CORE = NeuronOptions(tp_degree=1, cores="0", quant="s8", slots=4, context_buckets=(256, 1024, 2048))
LLAMA_3_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
}


@pytest.mark.parametrize(
    ("one", "other", "are_rivals"),
    [
        (NeuronOptions(cores="0"), NeuronOptions(cores="1"), False),
        (NeuronOptions(cores="0-1"), NeuronOptions(cores="1"), True),
        (NeuronOptions(cores="0,2-3"), NeuronOptions(cores="1"), False),
        (NeuronOptions(), NeuronOptions(cores="1"), True),
        (NeuronOptions(), CpuOptions(), False),
        (CpuOptions(), CpuOptions(), False),
        (SimulatedOptions(), SimulatedOptions(), False),
    ],
)
def test_models_that_share_a_core_are_rivals(one: DeviceOptions, other: DeviceOptions, are_rivals: bool) -> None:
    assert rivals(one, other) is rivals(other, one) is are_rivals


def settings(directory: Path, *devices: DeviceOptions, residents: int = 2) -> Settings:
    (directory / "config.json").write_text(json.dumps(LLAMA_3_8B))
    models = tuple(ModelSettings(id=f"m{i}", path=str(directory), device=each) for i, each in enumerate(devices))
    return Settings(models=models, swap=SwapSettings(residents=residents))


def test_two_models_of_a_core_each_fit_where_the_host_has_room(tmp_path: Path) -> None:
    other = NeuronOptions(tp_degree=1, cores="1", quant="s8", slots=4, context_buckets=(256, 1024, 2048))
    check_fit(settings(tmp_path, ONE_CORE, other), 120 * GIB)


def test_a_model_that_overfills_its_core_is_refused_with_the_numbers(tmp_path: Path) -> None:
    other = NeuronOptions(tp_degree=1, cores="1", quant="none")
    with pytest.raises(ConfigurationError, match=r"m1 cannot be served: .* GiB of .* fits with slots = 7"):
        check_fit(settings(tmp_path, ONE_CORE, other), 120 * GIB)


def test_on_the_cpu_the_memory_of_the_host_decides(tmp_path: Path) -> None:
    both = settings(tmp_path, CpuOptions(dtype="bfloat16"), CpuOptions(dtype="bfloat16"))
    check_fit(both, 200 * GIB)
    with pytest.raises(ConfigurationError, match=r"together they need .* GiB of the host .* Set swap.residents = 1"):
        check_fit(both, 20 * GIB)


def test_models_that_exchange_need_room_for_one_at_a_time(tmp_path: Path) -> None:
    both = settings(tmp_path, CpuOptions(dtype="bfloat16"), CpuOptions(dtype="bfloat16"), residents=1)
    check_fit(both, 20 * GIB)
    with pytest.raises(ConfigurationError, match=r"m0 cannot be served: .*GiB"):
        check_fit(both, 2 * GIB)
