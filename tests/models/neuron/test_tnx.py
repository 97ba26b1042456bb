"""What the driver asks of transformers-neuronx, on the fake; test_backend_contract.py has what it promises."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backend import ConfigurationError, DeviceError, OutOfMemoryError
from models.neuron.tnx import WARM_RESERVE, NeuronBackend
from models.protocol import NeuronOptions, SlotInput

OPTIONS = NeuronOptions(
    slots=4, n_positions=64, amp="f32", context_buckets=(16, 32), token_buckets=(32, 64), compile="if-missing"
)

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


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tp_degree", "fused"), [(32, 32, 2, True), (32, 8, 12, True), (32, 32, 12, False)]
)
def test_the_projections_are_fused_where_the_library_can(
    built: list[Any], tiny_checkpoint: Checkpoint, heads: int, kv_heads: int, tp_degree: int, fused: bool
) -> None:
    shapes = {"hidden_size": 256, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    _staged(tiny_checkpoint("llama3", **shapes), tp_degree=tp_degree)
    assert built[0]["neuron_config"].fuse_qkv is fused


def test_int8_weights_are_dequantised_to_the_compute_type(built: list[Any], tiny_checkpoint: Checkpoint) -> None:
    backend = _staged(tiny_checkpoint("llama3"), amp="bf16", quant="s8")
    quant = built[0]["neuron_config"].quant
    assert (quant.quant_dtype, quant.dequant_dtype) == ("s8", "bf16")
    assert backend.load(_silent).dtype == "bfloat16+s8"


def test_each_model_gets_a_configuration_of_its_own(built: list[Any], tiny_checkpoint: Checkpoint) -> None:
    for _ in range(2):
        _staged(tiny_checkpoint("llama3"))
    assert built[0]["neuron_config"] is not built[2]["neuron_config"]


def test_a_sliding_window_caps_the_positions_of_a_slot(built: list[Any], tiny_checkpoint: Checkpoint) -> None:
    backend = _staged(tiny_checkpoint("mistral", sliding_window=48))
    assert (built[0]["n_positions"], built[0]["context_length_estimate"]) == ([32, 48], [16, 32])
    description = backend.load(_silent)
    assert (description.n_positions, description.token_buckets) == (48, (32, 48))


@pytest.mark.usefixtures("faked")
def test_the_runtime_gets_its_cores_and_a_time_limit(tiny_checkpoint: Checkpoint) -> None:
    backend = _staged(tiny_checkpoint("llama3"), tp_degree=1)
    assert os.environ["NEURON_RT_NUM_CORES"] == "1"
    assert os.environ["NEURON_RT_EXEC_TIMEOUT"] == "1"
    assert backend.load(_silent).runtime_timeout_s == 1.0


@pytest.mark.usefixtures("faked")
def test_a_model_gets_the_cores_that_it_is_given(tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "0-1")
    _staged(tiny_checkpoint("llama3"), tp_degree=1, cores="1")
    assert os.environ["NEURON_RT_VISIBLE_CORES"] == "1"
    assert "NEURON_RT_NUM_CORES" not in os.environ


@pytest.mark.usefixtures("faked")
def test_the_operators_own_runtime_settings_win(tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "2-3")
    monkeypatch.setenv("NEURON_RT_EXEC_TIMEOUT", "30")
    backend = _staged(tiny_checkpoint("llama3"))
    assert "NEURON_RT_NUM_CORES" not in os.environ
    assert os.environ["NEURON_RT_EXEC_TIMEOUT"] == "30"
    assert backend.load(_silent).runtime_timeout_s == 30.0


@pytest.mark.usefixtures("faked")
def test_a_time_limit_that_is_no_number_is_refused(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURON_RT_EXEC_TIMEOUT", "2s")
    with pytest.raises(ConfigurationError, match=r"NEURON_RT_EXEC_TIMEOUT is '2s'"):
        _staged(tiny_checkpoint("llama3"))


@pytest.mark.usefixtures("faked")
def test_staging_reads_the_checkpoint_ahead_byte_by_byte(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny_checkpoint("llama3")
    size = (directory / "model.safetensors").stat().st_size
    reports: list[tuple[str, int, int]] = []
    monkeypatch.setattr("models.neuron.tnx.available_bytes", lambda: WARM_RESERVE + size // 2)
    NeuronBackend(directory, OPTIONS).stage(lambda *report: reports.append(report))
    assert reports == [("staging", size // 2, size // 2)]


@pytest.mark.usefixtures("faked")
def test_staging_leaves_the_page_cache_alone_where_memory_is_short(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny_checkpoint("llama3")
    size = (directory / "model.safetensors").stat().st_size
    reports: list[tuple[str, int, int]] = []
    monkeypatch.setattr("models.neuron.tnx.available_bytes", lambda: WARM_RESERVE + size // 4 - 1)
    NeuronBackend(directory, OPTIONS).stage(lambda *report: reports.append(report))
    assert reports == [("staging", 1, 1)]


@pytest.mark.usefixtures("faked")
def test_a_checkpoint_that_config_json_does_not_describe_is_refused(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """A bias that config.json does not name, say: the library would leave it out."""
    shutil.copytree(tiny_checkpoint("llama3"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ConfigurationError, match=r"q_proj.bias"):
        _staged(tmp_path)


@pytest.mark.usefixtures("faked")
def test_a_gguf_file_is_refused(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint("llama3"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.gguf")
    with pytest.raises(ConfigurationError, match=r"no \*\.safetensors"):
        _staged(tmp_path)


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
    with pytest.raises(ConfigurationError, match=r"nowhere.*neuronx-serve compile"):
        _staged(tiny_checkpoint("llama3"), artifacts=str(tmp_path / "nowhere"), compile="never")


# --- loading ----------------------------------------------------------------------------------------------------


def test_compiled_artifacts_are_loaded_and_only_where_they_fit(
    built: list[Any], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    store = str(tmp_path)
    _staged(tiny_checkpoint("llama3"), artifacts=store).load(_silent)
    again = _staged(tiny_checkpoint("llama3"), artifacts=store, compile="never")
    built[-1].compile = None
    assert again.load(_silent).slots == 4
    with pytest.raises(ConfigurationError, match="tp_degree is 2 there and 1 here"):
        _staged(tiny_checkpoint("llama3"), artifacts=store, compile="never", tp_degree=1)


@pytest.mark.usefixtures("faked")
def test_load_reports_layers_then_graphs_then_warm_up_steps(tiny_checkpoint: Checkpoint) -> None:
    reports: list[tuple[str, int, int]] = []
    _staged(tiny_checkpoint("llama3")).load(lambda *report: reports.append(report))
    assert [report for report in reports if report[0] == "weights"] == [("weights", done, 2) for done in range(3)]
    assert [report for report in reports if report[0] == "graphs"] == [("graphs", done, 4) for done in (0, 2, 3, 4)]
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
