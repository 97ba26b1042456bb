"""What the driver asks of transformers-neuronx, on the fake; test_backend_contract.py has what it promises."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import torch

from models.backend import ConfigurationError, DeviceError, OutOfMemoryError
from models.neuron.tnx import NeuronBackend
from models.protocol import NeuronOptions, SlotInput

OPTIONS = NeuronOptions(slots=4, n_positions=64, amp="f32", context_buckets=(16, 32), token_buckets=(32, 64))

Checkpoint = Callable[..., Path]


def _silent(*report: object) -> None:
    pass


def _staged(directory: Path, **change: Any) -> NeuronBackend:
    backend = NeuronBackend(directory, msgspec.structs.replace(OPTIONS, **change))
    backend.stage(_silent)
    return backend


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, faked: ModuleType) -> list[Any]:
    """The options of each model that is built, and the model: [options, model, ...]."""
    seen: list[Any] = []
    original = faked.LlamaForSampling.from_pretrained

    def noted(path: str, **options: Any) -> Any:
        seen.extend([options, original(path, **options)])
        return seen[-1]

    monkeypatch.setattr(faked.LlamaForSampling, "from_pretrained", noted)
    return seen


# --- staging ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama3", "mistral", "codellama"])
def test_every_family_runs_through_the_llama_class(built: list[Any], tiny_checkpoint: Checkpoint, family: str) -> None:
    backend = _staged(tiny_checkpoint(family))
    backend.load(_silent)
    options, _ = built
    assert options["batch_size"] == 4
    assert options["n_positions"] == [32, 64]
    assert options["context_length_estimate"] == [16, 32]
    assert (options["amp"], options["tp_degree"]) == ("f32", 2)


def test_continuous_batching_in_the_layouts_that_work(built: list[Any], tiny_checkpoint: Checkpoint) -> None:
    _staged(tiny_checkpoint("llama3"))
    config = built[0]["neuron_config"]
    assert config.continuous_batching.max_num_seqs == 4
    assert (config.attention_layout, config.collectives_layout) == ("BSH", "BSH")
    assert (config.cache_layout, config.group_query_attention) == (None, None)
    assert config.fuse_qkv is True
    assert config.compilation_worker_count == 1
    assert config.quant is None


def test_int8_weights_are_dequantised_to_the_compute_type(built: list[Any], tiny_checkpoint: Checkpoint) -> None:
    backend = _staged(tiny_checkpoint("llama3"), amp="bf16", quant="s8")
    quant = built[0]["neuron_config"].quant
    assert (quant.quant_dtype, quant.dequant_dtype) == ("s8", "bf16")
    assert backend.load(_silent).dtype == "bfloat16+s8"


def test_each_model_gets_a_configuration_of_its_own(built: list[Any], tiny_checkpoint: Checkpoint) -> None:
    for _ in range(2):
        _staged(tiny_checkpoint("llama3"))
    assert built[0]["neuron_config"] is not built[2]["neuron_config"]


@pytest.mark.usefixtures("faked")
def test_the_runtime_gets_its_cores_and_a_time_limit(tiny_checkpoint: Checkpoint) -> None:
    _staged(tiny_checkpoint("llama3"), tp_degree=1)
    assert os.environ["NEURON_RT_NUM_CORES"] == "1"
    assert os.environ["NEURON_RT_EXEC_TIMEOUT"] == "60"


@pytest.mark.usefixtures("faked")
def test_the_operators_own_runtime_settings_win(tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "2-3")
    monkeypatch.setenv("NEURON_RT_EXEC_TIMEOUT", "30")
    _staged(tiny_checkpoint("llama3"))
    assert "NEURON_RT_NUM_CORES" not in os.environ
    assert os.environ["NEURON_RT_EXEC_TIMEOUT"] == "30"


@pytest.mark.parametrize("source", [None, 'raise ImportError("WRONG PACKAGE. Please install it from AWS")'])
def test_a_missing_library_and_its_placeholder_say_where_to_get_it(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str | None
) -> None:
    if source is None:
        monkeypatch.setitem(sys.modules, "transformers_neuronx", None)
    else:
        (tmp_path / "transformers_neuronx.py").write_text(source)
        monkeypatch.delitem(sys.modules, "transformers_neuronx", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=r"AWS's Neuron package index"):
        _staged(tiny_checkpoint("llama3"))


def test_a_rope_theta_that_the_library_did_not_see_is_refused(
    built: list[Any], tiny_checkpoint: Checkpoint, faked: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = faked.LlamaForSampling.from_pretrained

    def forgetful(path: str, **options: Any) -> Any:
        model = original(path, **options)
        model.config.rope_theta = 10000
        return model

    monkeypatch.setattr(faked.LlamaForSampling, "from_pretrained", forgetful)
    with pytest.raises(ConfigurationError, match=r"took rope_theta 10000.0 .* config.json has 500000.0"):
        _staged(tiny_checkpoint("llama3"))


def test_a_rope_scaling_that_the_library_did_not_see_is_refused(built: list[Any], tiny_checkpoint: Checkpoint) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    with pytest.raises(ConfigurationError, match="rope_scaling None"):
        _staged(tiny_checkpoint("llama3", rope_parameters=scaling))


@pytest.mark.usefixtures("faked")
def test_artifacts_that_are_not_there_are_refused_before_the_device_is_touched(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        _staged(tiny_checkpoint("llama3"), artifacts=str(tmp_path / "nowhere"))


# --- loading ----------------------------------------------------------------------------------------------------


def test_compiled_artifacts_are_loaded(built: list[Any], tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    _staged(tiny_checkpoint("llama3")).load(_silent)
    built[1].save(str(tmp_path))
    assert _staged(tiny_checkpoint("llama3"), artifacts=str(tmp_path)).load(_silent).slots == 4
    with pytest.raises(ConfigurationError, match="compiled artifacts do not fit"):
        _staged(tiny_checkpoint("llama3"), artifacts=str(tmp_path), tp_degree=1).load(_silent)


@pytest.mark.usefixtures("faked")
def test_load_reports_layers_then_graphs_then_warm_up_steps(tiny_checkpoint: Checkpoint) -> None:
    reports: list[tuple[str, int, int]] = []
    _staged(tiny_checkpoint("llama3")).load(lambda *report: reports.append(report))
    assert [report for report in reports if report[0] == "weights"] == [("weights", done, 2) for done in range(3)]
    assert [report for report in reports if report[0] == "graphs"] == [("graphs", done, 3) for done in range(1, 4)]
    assert [report for report in reports if report[0] == "warm-up"] == [("warm-up", done, 4) for done in range(5)]


def test_the_warm_up_runs_every_program(built: list[Any], tiny_checkpoint: Checkpoint) -> None:
    backend = _staged(tiny_checkpoint("llama3"))
    model = built[1]
    calls: list[tuple[int, int]] = []

    class Noting(type(model)):  # type: ignore[misc]
        def __call__(self, input_ids: Any, cache_ids: Any, start_ids: Any) -> Any:
            calls.append((input_ids.shape[1], int(cache_ids.max())))
            return super().__call__(input_ids, cache_ids, start_ids)

    model.__class__ = Noting
    description = backend.load(_silent)
    assert set(calls) == {(16, 15), (32, 31), (1, 31), (1, 63)}
    assert (len(description.feed_s), len(description.step_s)) == (2, 2)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("nrt_tensor_allocate status=4"), OutOfMemoryError),
        (RuntimeError("NeuronCore(s) not available"), DeviceError),
        (AssertionError("unmatched batch_sizes"), ConfigurationError),
    ],
)
def test_a_load_that_fails_is_typed(
    built: list[Any], tiny_checkpoint: Checkpoint, error: Exception, kind: type[Exception]
) -> None:
    backend = _staged(tiny_checkpoint("llama3"))

    def fail() -> None:
        raise error

    built[1].to_neuron = fail
    with pytest.raises(kind):
        backend.load(_silent)


@pytest.mark.parametrize("position", [15, 63])
def test_numbers_that_are_not_finite_fail_the_load(
    built: list[Any], tiny_checkpoint: Checkpoint, position: int
) -> None:
    backend = _staged(tiny_checkpoint("llama3"))
    _spoil(built[1], lambda at: float("nan") if at == position else 0.0)
    with pytest.raises(DeviceError, match=r"bucket .* not finite"):
        backend.load(_silent)


# --- stepping ---------------------------------------------------------------------------------------------------


def test_a_step_that_fails_is_typed_whatever_it_raises(built: list[Any], tiny_checkpoint: Checkpoint) -> None:
    backend = _staged(tiny_checkpoint("llama3"))
    backend.load(_silent)

    def stop(position: int) -> float:
        raise StopIteration

    _spoil(built[1], stop)
    with pytest.raises(DeviceError, match="StopIteration"):
        backend.feed(0, [1, 2, 3])
    with pytest.raises(DeviceError, match="StopIteration"):
        backend.decode([SlotInput(0, 1, 3)])


def test_a_row_that_is_not_finite_is_left_to_the_sampler(built: list[Any], tiny_checkpoint: Checkpoint) -> None:
    backend = _staged(tiny_checkpoint("llama3"))
    backend.load(_silent)
    _spoil(built[1], lambda at: float("nan"))
    scores = backend.feed(0, [1, 2, 3])
    assert torch.tensor(scores.rows).isnan().all()  # type: ignore[union-attr]


def _spoil(model: Any, summand: Callable[[int], float]) -> None:
    """Add to the model's logits what `summand` says for the largest position of a call."""

    class Spoilt(type(model)):  # type: ignore[misc]
        def __call__(self, input_ids: Any, cache_ids: Any, start_ids: Any) -> Any:
            return super().__call__(input_ids, cache_ids, start_ids) + summand(int(cache_ids.max()))

    model.__class__ = Spoilt
