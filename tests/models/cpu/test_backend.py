"""What the CPU backend refuses, and what it says of itself. Its steps: tests/models/test_backend_contract.py."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backend import ConfigurationError, OutOfMemoryError, StepError
from models.cpu import host
from models.cpu.backend import CpuBackend
from models.protocol import CpuOptions, SlotInput

ROOT = Path(__file__).parents[3]


def _ignore(*report: object) -> None:
    """A listener that does not care about progress."""


def _options(**changes: Any) -> CpuOptions:
    return CpuOptions(**{"slots": 2, "n_positions": 64, "chunk": 16, "threads": 1, **changes})


def _stage_refusal(directory: Path, options: CpuOptions) -> str:
    with pytest.raises(ConfigurationError) as refusal:
        CpuBackend(directory, options).stage(_ignore)
    return str(refusal.value)


@pytest.fixture
def damaged(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """damaged(name, tensor): a checkpoint in which one tensor is replaced."""

    def make(name: str, tensor: torch.Tensor) -> Path:
        shutil.copytree(tiny_checkpoint("llama3"), tmp_path / "checkpoint")
        file = tmp_path / "checkpoint" / "model.safetensors"
        save_file({**load_file(file), name: tensor}, file)
        return tmp_path / "checkpoint"

    return make


# --- staging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slots": 0}, "slots is 0: it must be at least 1"),
        ({"chunk": 0}, "chunk is 0: it must be at least 1"),
        ({"n_positions": 1, "chunk": 1}, "n_positions is 1: it must be at least 2"),
        ({"threads": -1}, "threads is -1: it must be at least 0"),
        ({"n_positions": 512}, "n_positions 512 is over the model's max_position_embeddings 256"),
    ],
)
def test_options_out_of_range_are_refused(
    tiny_checkpoint: Callable[..., Path], changes: dict[str, Any], says: str
) -> None:
    assert says in _stage_refusal(tiny_checkpoint("llama3"), _options(**changes))


def test_a_sliding_window_caps_the_positions_of_a_slot(tiny_checkpoint: Callable[..., Path]) -> None:
    backend = CpuBackend(tiny_checkpoint("mistral", sliding_window=48), _options())
    backend.stage(_ignore)
    description = backend.load(_ignore)
    assert (description.n_positions, description.token_buckets) == (48, (48,))
    assert max(description.context_buckets) <= 48


def test_a_checkpoint_that_does_not_fit_its_config_is_refused(damaged: Callable[..., Path]) -> None:
    directory = damaged("model.norm.weight", torch.ones(3))
    assert "model.norm.weight is (3,), config.json makes it (64,)" in _stage_refusal(directory, _options())


def test_importing_the_backend_does_not_import_torch() -> None:
    code = "import sys, models.cpu.backend, models.cpu.embedded; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_threads_and_pages_are_chosen_before_torch_is_imported(tmp_path: Path) -> None:
    """A torch that says what it sees when it is imported stands in for the real one."""
    ours = {"GOMP_SPINCOUNT": "2000"}
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        ours["THP_MEM_ALLOC_ENABLE"] = "1"
    theirs = {"GOMP_SPINCOUNT": "7", "THP_MEM_ALLOC_ENABLE": "0"}
    (tmp_path / "torch.py").write_text("import os\nprint(os.environ.copy())\nset_num_threads = print\n")
    bare = {key: value for key, value in os.environ.items() if key not in (*theirs, "OMP_WAIT_POLICY")}
    bare["PYTHONPATH"] = f"{tmp_path}:{ROOT}"
    for environment, expected in ((bare, ours), (bare | theirs, theirs)):
        code = "from models.cpu.host import import_torch; import_torch(1)"
        run = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
        seen = ast.literal_eval(run.stdout.splitlines()[0].decode())
        assert {key: seen.get(key) for key in theirs} == {key: expected.get(key) for key in theirs}


# --- loading ---------------------------------------------------------------------------------------------------------


def test_describes_its_capabilities_and_measured_times(
    tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]
) -> None:
    described = load_cpu(tiny_checkpoint("codellama"), n_positions=48, chunk=16).description
    assert (described.chunk, described.prefill_logprobs, described.candidates) == (16, True, 0)
    assert (described.context_buckets, described.token_buckets) == ((16,), (48,))
    assert described.load_s > 0
    assert min(*described.feed_s, *described.step_s) > 0
    assert described.device == host.cpu_name() != ""


@pytest.mark.parametrize(
    ("layout", "dtype", "exact"),
    [("fixed", "float32", True), ("packed", "float32", False), ("fixed", "bfloat16", False)],
)
def test_promises_exact_replay_in_the_guaranteed_mode_only(
    tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any], layout: str, dtype: str, exact: bool
) -> None:
    described = load_cpu(tiny_checkpoint("llama3"), layout=layout, dtype=dtype).description
    assert (described.exact_replay, described.dtype) == (exact, dtype)


def test_auto_takes_bfloat16_only_where_the_processor_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, chosen in (("avx2 fma", "float32"), ("avx512f avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16")):
        monkeypatch.setattr(host, "_cpu_flags", lambda flags=flags: set(flags.split()))
        assert host.compute_dtype("auto") == chosen
        assert host.compute_dtype("float32") == "float32"


def test_small_weights_are_for_float32_only(tiny_checkpoint: Callable[..., Path]) -> None:
    backend = CpuBackend(tiny_checkpoint("llama3"), _options(weights="float16", dtype="bfloat16"))
    with pytest.raises(ConfigurationError, match='float16 weights are multiplied in float32, and dtype is "bfloat16"'):
        backend.stage(_ignore)


def test_weights_that_give_no_numbers_are_refused_by_the_warm_up(damaged: Callable[..., Path]) -> None:
    weight = torch.ones(64)
    weight[5] = float("nan")
    backend = CpuBackend(damaged("model.layers.1.input_layernorm.weight", weight), _options())
    backend.stage(_ignore)
    with pytest.raises(ConfigurationError, match="not finite"):
        backend.load(_ignore)


def test_what_cannot_fit_in_memory_is_refused_with_the_numbers(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = CpuBackend(tiny_checkpoint("llama3"), _options(slots=8))
    backend.stage(_ignore)
    monkeypatch.setattr("models.cpu.backend.available_bytes", lambda: 400_000)
    with pytest.raises(OutOfMemoryError, match=r"8 slots of 64 positions; 0\.0 GB are available"):
        backend.load(_ignore)


def test_an_allocation_that_fails_is_an_out_of_memory_error(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own error: the allocator is asked for more than an address space holds."""
    directory = tiny_checkpoint("llama3", max_position_embeddings=2**40)
    backend = CpuBackend(directory, _options(slots=2**8, n_positions=2**38))
    backend.stage(_ignore)
    monkeypatch.setattr("models.cpu.backend.available_bytes", lambda: 2**80)
    with pytest.raises(OutOfMemoryError):
        backend.load(_ignore)


def test_reports_bytes_of_weights_and_steps_of_the_warm_up(tiny_checkpoint: Callable[..., Path]) -> None:
    directory = tiny_checkpoint("mistral")
    backend = CpuBackend(directory, _options(slots=5))
    reports: list[tuple[str, int, int]] = []
    backend.stage(lambda *report: reports.append(report))
    backend.load(lambda *report: reports.append(report))
    last = {phase: (done, total) for phase, done, total in reports}
    assert list(last) == ["staging", "weights", "warm-up"]
    assert all(done == total for done, total in last.values())
    stored = sum(tensor.nbytes for tensor in load_file(directory / "model.safetensors").values())
    assert last["weights"] == (stored, stored)


@pytest.mark.parametrize("layout", ["fixed", "packed"])
def test_the_warm_up_leaves_nothing_behind(layout: str, tiny_checkpoint: Callable[..., Path]) -> None:
    backend = CpuBackend(tiny_checkpoint("llama3"), _options(layout=layout))
    backend.stage(_ignore)
    backend.load(_ignore)
    cache = backend._cache
    assert cache is not None
    assert not any(layer.any() for layer in cache.layers)


# --- steps -----------------------------------------------------------------------------------------------------------


def test_a_gap_behind_what_a_slot_holds_is_refused(
    tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]
) -> None:
    backend = load_cpu(tiny_checkpoint("llama3")).backend
    backend.feed(0, [1, 2, 3])
    with pytest.raises(StepError, match="slot 0 holds 3 tokens: position 4 would leave a gap"):
        backend.decode([SlotInput(0, 5, 4)])
    with pytest.raises(StepError, match="position 7 would leave a gap"):
        backend.feed(0, [5, 6], 7)
    backend.decode([SlotInput(0, 5, 3)])


@pytest.mark.parametrize(("live", "position"), [((0, 1, 4), 0), ((0, 1, 3), 6)], ids=["decoded", "fed"])
def test_a_gap_is_refused_in_a_mixed_step_too(
    tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any], live: tuple[int, int, int], position: int
) -> None:
    backend = load_cpu(tiny_checkpoint("llama3"), layout="packed").backend
    backend.feed(0, [1, 2, 3])
    backend.feed(1, [1, 2, 3, 4, 5])
    with pytest.raises(StepError, match="would leave a gap"):
        backend.decode_and_feed([SlotInput(*live)], 1, [6], position)
    backend.decode_and_feed([SlotInput(0, 1, 3)], 1, [6], 5)


def test_the_guaranteed_mode_has_no_mixed_steps(
    tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]
) -> None:
    loaded = load_cpu(tiny_checkpoint("llama3"))
    backend = loaded.backend
    assert not loaded.description.mixed
    backend.feed(0, [1, 2, 3])
    with pytest.raises(StepError, match='the layout "fixed" does not feed and decode in one pass'):
        backend.decode_and_feed([SlotInput(0, 1, 3)], 1, [6])


def test_a_new_prompt_may_go_on_from_what_a_slot_still_holds(
    tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]
) -> None:
    loaded = load_cpu(tiny_checkpoint("llama3"))
    loaded.feed(0, [9, 8, 7, 6, 5, 4])
    expected = loaded.feed(1, [9, 8, 7, 1, 2])
    assert abs(loaded.backend.feed(0, [1, 2], 3).rows[0] - expected[-1]).max() < 1e-4


def test_a_step_before_the_load_is_refused(tiny_checkpoint: Callable[..., Path]) -> None:
    backend = CpuBackend(tiny_checkpoint("llama3"), _options())
    with pytest.raises(StepError, match="not loaded"):
        backend.feed(0, [1])
    with pytest.raises(StepError, match="not loaded"):
        backend.decode([SlotInput(0, 1, 0)])
    with pytest.raises(ConfigurationError, match="load before stage"):
        backend.load(_ignore)


def test_closing_at_any_time_is_fine(tiny_checkpoint: Callable[..., Path]) -> None:
    CpuBackend(tiny_checkpoint("llama3"), _options()).close()
    backend = CpuBackend(tiny_checkpoint("llama3"), _options())
    backend.stage(_ignore)
    backend.close()
    backend.close()


def test_the_config_may_be_of_transformers_5(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = tiny_checkpoint("llama3")
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    config["dtype"] = config.pop("torch_dtype")
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = []
    for each in (directory, tmp_path):
        backend = CpuBackend(each, _options())
        backend.stage(_ignore)
        backend.load(_ignore)
        rows.append(backend.feed(0, [1, 2, 3]).rows)
        backend.close()
    assert (rows[0] == rows[1]).all()
