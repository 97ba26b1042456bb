"""The numbers of the real library on the emulator, against transformers: every family, type and bucket."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from models.backend import FloatRows, Logits
from models.neuron.tnx import NeuronBackend
from models.protocol import CpuOptions, NeuronOptions, SlotInput

if not importlib.util.find_spec("transformers_neuronx"):
    pytest.skip("this interpreter has no transformers_neuronx: test_emulator.py uses another", allow_module_level=True)

OPTIONS = NeuronOptions(
    slots=3, n_positions=64, amp="f32", context_buckets=(16, 32), token_buckets=(32, 64), compile="if-missing"
)
PROMPTS = ([7, 101, 33, 250, 4, 9, 88], [201], list(range(40, 70)))

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own

Checkpoint = Callable[..., Path]


def _neuron(directory: Path, **change: Any) -> NeuronBackend:
    backend = NeuronBackend(directory, msgspec.structs.replace(OPTIONS, **change))
    backend.stage(lambda *report: None)
    backend.load(lambda *report: None)
    return backend


def _greedy(backend: NeuronBackend, steps: int) -> list[list[int]]:
    """Greedy continuations of all prompts side by side, one in each slot, joining one step after the other."""
    answers: list[list[int]] = []
    for slot, prompt in enumerate(PROMPTS):
        answers.append([_best(backend.feed(slot, prompt))[0]])
        _step(backend, answers)
    for _ in range(steps - 1 - len(answers)):
        _step(backend, answers)
    return [answer[: steps - len(answers)] for answer in answers]


def _step(backend: NeuronBackend, answers: list[list[int]]) -> None:
    live = [SlotInput(slot, answer[-1], len(PROMPTS[slot]) + len(answer) - 1) for slot, answer in enumerate(answers)]
    for answer, token in zip(answers, _best(backend.decode(live)), strict=True):
        answer.append(token)


def _best(scores: object) -> list[int]:
    return [int(row.argmax()) for row in _rows(scores)]


def _rows(scores: object) -> FloatRows:
    assert isinstance(scores, Logits)
    return scores.rows


def _reference(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32).eval()


@torch.inference_mode()
def _reference_greedy(directory: Path, prompt: list[int], steps: int) -> list[int]:
    model, tokens = _reference(directory), list(prompt)
    for _ in range(steps):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("tp_degree", [1, 2])
@pytest.mark.parametrize("family", ["llama3", "mistral", "codellama"])
def test_greedy_tokens_are_those_of_transformers(tiny_checkpoint: Checkpoint, family: str, tp_degree: int) -> None:
    directory = tiny_checkpoint(family)
    answers = _greedy(_neuron(directory, tp_degree=tp_degree), steps=30)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer == _reference_greedy(directory, prompt, len(answer))


@pytest.mark.parametrize("tp_degree", [8, 12, 24])
@pytest.mark.parametrize("kv_heads", [8, 32])
def test_larger_instances_cut_the_heads_finer(tiny_checkpoint: Checkpoint, kv_heads: int, tp_degree: int) -> None:
    """As many heads as the 7B and 8B models have: 12 and 24 cores divide neither, so that the library pads them."""
    directory = tiny_checkpoint("llama3", hidden_size=256, num_attention_heads=32, num_key_value_heads=kv_heads)
    answers = _greedy(_neuron(directory, tp_degree=tp_degree), steps=12)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer == _reference_greedy(directory, prompt, len(answer))


def test_llama_3_1_stretches_its_rotary_frequencies(tiny_checkpoint: Checkpoint) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    directory = tiny_checkpoint("llama3", rope_scaling=scaling, tie_word_embeddings=True)
    answers = _greedy(_neuron(directory), steps=30)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer == _reference_greedy(directory, prompt, len(answer))


def test_greedy_tokens_are_those_of_the_cpu_backend(tiny_checkpoint: Checkpoint) -> None:
    from models.cpu.backend import CpuBackend

    directory = tiny_checkpoint("llama3")
    cpu = CpuBackend(directory, CpuOptions(slots=3, n_positions=64, threads=1, chunk=32))
    cpu.stage(lambda *report: None)
    cpu.load(lambda *report: None)
    assert _greedy(_neuron(directory), steps=30) == _greedy(cpu, steps=30)  # type: ignore[arg-type]


@pytest.mark.parametrize(("change", "error"), [({"amp": "bf16"}, 0.05), ({"amp": "f32", "quant": "s8"}, 0.05)])
@torch.inference_mode()
def test_narrower_numbers_stay_close(tiny_checkpoint: Checkpoint, change: dict[str, str], error: float) -> None:
    directory, prompt = tiny_checkpoint("llama3"), PROMPTS[0]
    exact = _reference(directory)(torch.tensor([prompt])).logits[0, -1].numpy()
    row = _rows(_neuron(directory, **change).feed(0, prompt))[0]
    assert row.dtype == np.float32
    assert 0 < np.abs(row - exact).mean() < error * exact.std()
