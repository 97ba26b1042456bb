"""A configured model as the server shows it: its decode steps beside what they cannot fall below."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from models.planner.shapes import published_spec
from models.planner.timing import decode_step
from models.protocol import CpuOptions, Description, DeviceOptions, NeuronOptions, SimulatedOptions
from server.errors import Unavailable
from server.observe.metrics import Metrics
from server.settings import ModelSettings, Settings
from server.swap.model import DecodeStep, Model

LOADED = Description(slots=8, n_positions=4096, vocab_size=128256, dtype="bf16", device="neuron")


def model_on(device: DeviceOptions, directory: Path) -> Model:
    settings = ModelSettings(id="org/model", path=str(directory), device=device)
    return Model(settings, Settings(models=(settings,)), Metrics(), lambda: None)


@pytest.fixture
def llama3(tmp_path: Path) -> Path:
    """A directory with the config.json of Meta-Llama-3-8B."""
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rms_norm_eps": 1e-05,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_before_a_load_nothing_is_measured(llama3: Path) -> None:
    assert model_on(NeuronOptions(), llama3).decode_steps() == []


def test_on_neuron_the_planners_floor_stands_beside_each_bucket(llama3: Path) -> None:
    options = NeuronOptions()
    model = model_on(options, llama3)
    model.description = replace(LOADED, token_buckets=(1024, 4096), step_s=(0.030, 0.036))
    spec = published_spec("meta-llama/Meta-Llama-3-8B")
    assert spec is not None
    floors = [decode_step(spec, options, bucket).floor for bucket in (1024, 4096)]
    assert 0.015 < floors[0] < floors[1] < 0.030
    assert model.decode_steps() == [DecodeStep(1024, 0.030, floors[0]), DecodeStep(4096, 0.036, floors[1])]


def test_how_fast_a_cpu_could_be_is_not_known(llama3: Path) -> None:
    model = model_on(CpuOptions(), llama3)
    model.description = replace(LOADED, token_buckets=(2048,), step_s=(0.05,))
    assert model.decode_steps() == [DecodeStep(2048, 0.05, None)]


def test_a_simulated_device_takes_the_time_it_is_told(llama3: Path) -> None:
    model = model_on(SimulatedOptions(step_s=0.02), llama3)
    model.description = replace(LOADED, token_buckets=(2048,), step_s=(0.02,))
    assert model.decode_steps() == [DecodeStep(2048, 0.02, 0.02)]


def test_a_model_that_is_not_there_says_how_it_comes_there(tmp_path: Path) -> None:
    async def read() -> None:
        await model_on(NeuronOptions(), tmp_path / "absent").text()

    with pytest.raises(Unavailable, match=r"absent: there is no such directory: neuronx-serve models pull org/model"):
        asyncio.run(read())
