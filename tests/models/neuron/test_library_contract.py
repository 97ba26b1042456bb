"""What the driver relies on in transformers-neuronx, asked of the real library and of the fake alike.

The driver's own tests run on the fake, so every behaviour that they lean on is here, and both must answer the same.
The real library takes part where it can be imported; test_emulator.py runs this file in such an interpreter.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SLOTS = 4
CONTEXT_BUCKETS = [8, 16]
TOKEN_BUCKETS = [16, 32]
PROMPT = [5, 17, 200, 31, 9]
LIBRARIES = ["fake", "real"] if importlib.util.find_spec("transformers_neuronx") else ["fake"]

pytestmark = pytest.mark.filterwarnings("ignore")  # the real library's own

Build = Callable[..., Any]


@pytest.fixture(scope="module", params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.getfixturevalue(f"{request.param}_neuron_library")
    return module


@pytest.fixture(scope="module")
def build(library: ModuleType, tiny_checkpoint: Callable[..., Path]) -> Build:
    """Constructs a model that is not on the device yet."""

    def construct(checkpoint: dict[str, Any] | None = None, **options: Any) -> Any:
        continuous = library.ContinuousBatchingConfig(max_num_seqs=SLOTS)
        defaults: dict[str, Any] = {
            "batch_size": SLOTS,
            "amp": "f32",
            "tp_degree": 2,
            "n_positions": TOKEN_BUCKETS,
            "context_length_estimate": CONTEXT_BUCKETS,
            "neuron_config": library.NeuronConfig(
                continuous_batching=continuous, attention_layout="BSH", fuse_qkv=True, compilation_worker_count=1
            ),
        }
        directory = str(tiny_checkpoint("llama3", **(checkpoint or {})))
        return library.LlamaForSampling.from_pretrained(directory, **{**defaults, **options})

    return construct


@pytest.fixture(scope="module")
def model(build: Build) -> Iterator[Any]:
    built = build()
    built.to_neuron()
    with torch.inference_mode():
        yield built


def _prefill(model: Any, slot: int, tokens: list[int]) -> torch.Tensor:
    return _call(model, [tokens], [list(range(len(tokens)))], [slot])


def _decode(model: Any, *rows: tuple[int, int, int]) -> torch.Tensor:
    """Rows of (slot, token, position)."""
    return _call(model, [[token] for _, token, _ in rows], [[at] for _, _, at in rows], [slot for slot, _, _ in rows])


def _call(model: Any, tokens: list[list[int]], positions: list[list[int]], slots: list[int]) -> torch.Tensor:
    result = model(torch.tensor(tokens), cache_ids=torch.tensor(positions), start_ids=torch.tensor(slots))
    assert isinstance(result, torch.Tensor)
    return result.clone()


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.allclose(left, right, atol=1e-4)


# --- one call ---------------------------------------------------------------------------------------------------


def test_a_prefill_answers_float32_logits_of_its_last_token(model: Any) -> None:
    logits = _prefill(model, 0, PROMPT)
    assert logits.shape == (1, model.config.vocab_size)
    assert logits.dtype == torch.float32
    shorter = _prefill(model, 1, PROMPT[:-1])
    assert not _same(logits, shorter)
    assert _same(_decode(model, (1, PROMPT[-1], len(PROMPT) - 1)), logits)


def test_decode_rows_come_back_in_the_order_of_the_call(model: Any) -> None:
    for slot in range(SLOTS):
        _prefill(model, slot, [slot + 3, *PROMPT])
    rows = [(slot, 40 + slot, len(PROMPT) + 1) for slot in range(SLOTS)]
    ordered = _decode(model, *rows)
    assert ordered.shape == (SLOTS, model.config.vocab_size)
    assert _same(_decode(model, rows[2], rows[0], rows[3], rows[1]), ordered[[2, 0, 3, 1]])


def test_a_decode_step_is_idempotent(model: Any) -> None:
    _prefill(model, 0, PROMPT)
    first = _decode(model, (0, 7, len(PROMPT)))
    assert _same(_decode(model, (0, 7, len(PROMPT))), first)


# --- traps ------------------------------------------------------------------------------------------------------


def test_a_slot_left_out_of_a_decode_loses_its_first_token(model: Any) -> None:
    _prefill(model, 0, PROMPT)
    undamaged = _decode(model, (0, 7, len(PROMPT)))
    _decode(model, (1, 1, 0))
    assert not _same(_decode(model, (0, 7, len(PROMPT))), undamaged)
    _prefill(model, 0, [0, *PROMPT[1:]])
    assert not _same(_decode(model, (0, 7, len(PROMPT))), undamaged)


def test_a_prefill_harms_no_other_slot(model: Any) -> None:
    _prefill(model, 0, PROMPT)
    undamaged = _decode(model, (0, 7, len(PROMPT)))
    _prefill(model, 1, [3] * max(CONTEXT_BUCKETS))
    assert _same(_decode(model, (0, 7, len(PROMPT))), undamaged)


def test_a_prompt_of_one_column_harms_other_slots_and_of_two_columns_does_not(model: Any) -> None:
    _prefill(model, 0, PROMPT)
    undamaged = _decode(model, (0, 7, len(PROMPT)))
    padded = _call(model, [[9, 0]], [[0, 0]], [1])
    assert _same(_decode(model, (0, 7, len(PROMPT))), undamaged)
    column = _call(model, [[9]], [[0]], [1])
    assert _same(padded, column)
    assert not _same(_decode(model, (0, 7, len(PROMPT))), undamaged)


def test_tokens_and_positions_of_a_decode_must_be_of_one_integer_type(model: Any) -> None:
    with pytest.raises(RuntimeError, match="scatter"):
        model(
            torch.tensor([[1]], dtype=torch.int32),
            cache_ids=torch.tensor([[5]], dtype=torch.int64),
            start_ids=torch.tensor([0]),
        )


def test_a_prompt_above_the_largest_context_bucket_is_an_assertion_error(model: Any) -> None:
    length = max(CONTEXT_BUCKETS) + 1
    with pytest.raises(AssertionError, match=rf"invalid input prompt length \({length} <= {length - 1}\)"):
        _prefill(model, 0, [1] * length)


def test_a_prefill_must_start_at_position_0(model: Any) -> None:
    with pytest.raises(AssertionError):
        _call(model, [[1, 2]], [[4, 5]], [0])


def test_the_last_position_works_and_the_next_is_a_bare_stop_iteration(model: Any) -> None:
    _prefill(model, 0, PROMPT)
    assert _decode(model, (0, 7, max(TOKEN_BUCKETS) - 1)).isfinite().all()
    with pytest.raises(StopIteration):
        _decode(model, (0, 7, max(TOKEN_BUCKETS)))


def test_a_prefill_into_a_slot_that_does_not_exist_is_not_noticed(model: Any) -> None:
    _prefill(model, 0, PROMPT)
    undamaged = _decode(model, (0, 7, len(PROMPT)))
    _prefill(model, SLOTS, [3] * len(PROMPT))
    assert not _same(_decode(model, (0, 7, len(PROMPT))), undamaged)


def test_a_decode_of_a_slot_that_does_not_exist_is_a_runtime_error(model: Any) -> None:
    with pytest.raises(RuntimeError):
        _decode(model, (SLOTS, 1, 0))


# --- sampling on the device -------------------------------------------------------------------------------------


def _settings(**change: Any) -> dict[str, Any]:
    """Greedy for every slot; `change` gives one list or more."""
    lists = {"top_k": [1] * SLOTS, "top_p": [1.0] * SLOTS, "temperature": [1.0] * SLOTS}
    return {
        "do_sample": True,
        "dynamic": True,
        "per_batch_line": True,
        "global_top_k": 256,
        "top_p_min_tokens": [1] * SLOTS,
        **lists,
        **change,
    }


@pytest.fixture(scope="module")
def drawing(build: Build, library: ModuleType) -> Iterator[Any]:
    """A model that draws for itself, greedy to begin with."""
    built = build(
        neuron_config=library.NeuronConfig(
            continuous_batching=library.ContinuousBatchingConfig(max_num_seqs=SLOTS),
            attention_layout="BSH",
            fuse_qkv=True,
            on_device_generation=library.GenerationConfig(**_settings()),
            compilation_worker_count=1,
        )
    )
    built.to_neuron()
    with torch.inference_mode():
        yield built


def test_a_top_k_of_one_draws_the_best_token(drawing: Any, model: Any, library: ModuleType) -> None:
    drawing.update_generation_config(library.GenerationConfig(**_settings()))
    drawn = _prefill(drawing, 2, PROMPT)
    assert (drawn.shape, drawn.dtype) == ((1, 1), torch.int32)
    assert drawn.item() == _prefill(model, 2, PROMPT).argmax().item()
    _prefill(drawing, 0, PROMPT[1:])
    _prefill(model, 0, PROMPT[1:])
    rows = [(2, 7, len(PROMPT)), (0, 9, len(PROMPT) - 1)]
    assert _decode(drawing, *rows).flatten().tolist() == _decode(model, *rows).argmax(-1).tolist()


def test_settings_belong_to_the_slot_in_prefill_and_decode(drawing: Any, library: ModuleType) -> None:
    wild = _settings(top_k=[1, 50, 1, 1], temperature=[1.0, 9.0, 1.0, 1.0])
    drawing.update_generation_config(library.GenerationConfig(**wild))
    assert len({_prefill(drawing, 1, PROMPT).item() for _ in range(20)}) > 3
    assert len({_prefill(drawing, 0, PROMPT).item() for _ in range(5)}) == 1
    draws = [_decode(drawing, (1, 7, len(PROMPT)), (0, 7, len(PROMPT))).flatten().tolist() for _ in range(20)]
    assert len({tame for _, tame in draws}) == 1
    assert len({wild for wild, _ in draws}) > 3


def test_the_best_token_alone_survives_a_small_top_p(drawing: Any, model: Any, library: ModuleType) -> None:
    narrow = _settings(top_k=[256] * SLOTS, top_p=[1e-6] * SLOTS)
    drawing.update_generation_config(library.GenerationConfig(**narrow))
    expected = _prefill(model, 1, PROMPT).argmax().item()
    assert {_prefill(drawing, 1, PROMPT).item() for _ in range(10)} == {expected}


def test_lists_must_have_an_entry_for_each_slot(drawing: Any, library: ModuleType) -> None:
    with pytest.raises(AssertionError, match="same size"):
        drawing.update_generation_config(library.GenerationConfig(**_settings(top_k=[1])))


# --- building ---------------------------------------------------------------------------------------------------


def test_the_batch_size_must_be_the_number_of_slots(build: Build) -> None:
    with pytest.raises(AssertionError, match="batch_size_for_shared_caches"):
        build(batch_size=SLOTS + 1)


def test_an_unknown_rope_scaling_is_a_value_error(build: Build) -> None:
    with pytest.raises(ValueError, match="ropes scaling"):
        build(checkpoint={"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}})


def test_an_unknown_option_is_an_assertion_error(library: ModuleType) -> None:
    with pytest.raises(AssertionError, match="keyword arguments"):
        library.NeuronConfig(no_such_option=True)


def test_the_configuration_carries_rope_theta(build: Build) -> None:
    assert build().config.rope_theta == 500000.0


def test_layers_are_nullified_and_graphs_set_up_on_the_way_to_the_device(build: Build) -> None:
    built = build()
    calls: list[str] = []

    def noted(name: str, call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            call()
            calls.append(name)

        return run

    for name, objects in (("nullify", built.chkpt_model.model.layers), ("setup", built.nbs_objs)):
        for each in objects:
            setattr(each, name, noted(name, getattr(each, name)))
    built.to_neuron()
    assert calls == ["nullify"] * 2 + ["setup"] * (len(CONTEXT_BUCKETS) + 1)


def test_artifacts_fit_the_programs_that_they_were_compiled_for(build: Build, model: Any, tmp_path: Path) -> None:
    model.save(str(tmp_path))
    assert len(list(tmp_path.glob("*.neff"))) == len(CONTEXT_BUCKETS) + len(TOKEN_BUCKETS)
    again = build()
    again.load(str(tmp_path))
    again.to_neuron()
    with torch.inference_mode():
        assert _same(_prefill(again, 0, PROMPT), _prefill(model, 0, PROMPT))
    fewer = build(n_positions=TOKEN_BUCKETS[1:])
    fewer.load(str(tmp_path))
    fewer.to_neuron()
    other = build(n_positions=[24, 32])
    other.load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Could not find a matching NEFF"):
        other.to_neuron()
