"""The decoder's numbers, held against Hugging Face transformers on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.backend import FloatRows
from models.cpu.hugging_face import HuggingFaceDecoder
from models.cpu.plain import PlainDecoder
from models.protocol import SlotInput

TOLERANCE = 1e-3

LLAMA_3_1_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3 (GQA, theta 5e5, odd vocabulary)": ("llama3", {}),
    "llama3 with llama3 rope scaling": ("llama3", {"rope_scaling": LLAMA_3_1_SCALING, "head_dim": 32}),
    "llama3 tied": ("llama3", {"tie_word_embeddings": True}),
    "llama3 in shards": ("llama3", {"shards": 3}),
    "llama3 with one KV head": ("llama3", {"num_key_value_heads": 1}),
    "llama3 with biases": ("llama3", {"attention_bias": True, "mlp_bias": True}),
    "llama3 of uneven sizes": ("llama3", {"hidden_size": 60, "intermediate_size": 100, "num_attention_heads": 6}),
    "mistral (GQA, theta 1e6)": ("mistral", {}),
    "mistral with its own head_dim": ("mistral", {"head_dim": 24}),
    "mistral within its sliding window": ("mistral", {"sliding_window": 64}),
    "codellama (MHA, theta 1e6)": ("codellama", {}),
}


def _reference(directory: Path, tokens: list[int]) -> FloatRows:
    """transformers' logits of every position, from one pass over all tokens."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        rows: FloatRows = model(torch.tensor([tokens])).logits[0].numpy()
    return rows


def _tokens(count: int, vocab_size: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(7).integers(0, vocab_size, count).tolist()
    return tokens


@pytest.mark.parametrize(("family", "overrides"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_every_prefill_and_every_decode_logit(
    family: str, overrides: dict[str, Any], tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]
) -> None:
    directory = tiny_checkpoint(family, **overrides)
    loaded = load_cpu(directory)
    tokens = _tokens(60, loaded.description.vocab_size)
    expected = _reference(directory, tokens)
    fed = loaded.feed(2, tokens[:30])
    stepped = [loaded.decode((2, token, position))[0] for position, token in enumerate(tokens[30:], start=30)]
    computed = np.concatenate((fed, stepped))
    assert computed.shape == expected.shape
    assert np.abs(computed - expected).max() < TOLERANCE
    assert np.abs(expected).max() > 1


@pytest.mark.parametrize("overrides", [{}, {"attention_bias": True, "mlp_bias": True}], ids=["", "with biases"])
def test_every_logit_of_the_packed_layout(
    overrides: dict[str, Any], tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]
) -> None:
    directory = tiny_checkpoint("llama3", **overrides)
    loaded = load_cpu(directory, layout="packed")
    tokens = _tokens(60, loaded.description.vocab_size)
    expected = _reference(directory, tokens)
    fed = [loaded.feed(slot, tokens[:30]) for slot in (2, 0)]
    for position, token in enumerate(tokens[30:], start=30):
        rows = loaded.decode((2, token, position), (0, token, position))
        assert np.abs(rows - expected[position]).max() < TOLERANCE
    assert np.abs(fed - expected[:30]).max() < TOLERANCE


@pytest.mark.parametrize("layout", ["fixed", "packed"])
def test_the_scores_of_the_last_token_alone(
    layout: str, tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]
) -> None:
    """A feed that is not asked for all rows takes only the last ones through the last layer."""
    directory = tiny_checkpoint("llama3")
    loaded = load_cpu(directory, layout=layout, n_positions=256, chunk=200)
    tokens = _tokens(220, loaded.description.vocab_size)
    expected = _reference(directory, tokens)
    for start, stop in ((0, 170), (170, 171), (171, 220)):
        row = loaded.backend.feed(1, tokens[start:stop], start).rows
        assert row.shape == (1, loaded.description.vocab_size)
        assert np.abs(row - expected[stop - 1]).max() < TOLERANCE


@pytest.mark.parametrize("piece", [1, 2, 7, 16, 31])
def test_a_prompt_in_pieces_scores_as_the_whole(
    piece: int, tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]
) -> None:
    directory = tiny_checkpoint("llama3")
    loaded = load_cpu(directory)
    tokens = _tokens(61, loaded.description.vocab_size)
    assert np.abs(loaded.feed(1, tokens, piece) - _reference(directory, tokens)).max() < TOLERANCE


@pytest.mark.parametrize(("family", "overrides"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_the_decoder_that_benchmarks_measure_against(
    family: str, overrides: dict[str, Any], tiny_checkpoint: Callable[..., Path]
) -> None:
    directory = tiny_checkpoint(family, **overrides)
    decoder = PlainDecoder(directory, torch.float32, slots=4, n_positions=64)
    vocabulary = len(decoder.feed(0, [1]).rows[0])
    first, second = _tokens(60, vocabulary), _tokens(59, vocabulary)[::-1]
    expected = [_reference(directory, tokens) for tokens in (first, second)]
    fed = [decoder.feed(slot, tokens[:count]).rows[0] for slot, tokens, count in ((3, first, 30), (1, second, 20))]
    assert np.abs(fed[0] - expected[0][29]).max() < TOLERANCE
    assert np.abs(fed[1] - expected[1][19]).max() < TOLERANCE
    for step in range(30):
        live = [SlotInput(3, first[30 + step], 30 + step), SlotInput(1, second[20 + step], 20 + step)]
        rows = decoder.decode(live).rows
        assert np.abs(rows - [expected[0][30 + step], expected[1][20 + step]]).max() < TOLERANCE


def test_steps_of_the_library_s_modules_are_cut_back(tiny_checkpoint: Callable[..., Path]) -> None:
    """Benchmarks time one step again and again, of streams that stay as long as their prompts."""
    directory = tiny_checkpoint("llama3")
    decoder = HuggingFaceDecoder(directory, torch.float32)
    vocabulary = len(decoder.feed(0, [1]).rows[0])
    prompts = [_tokens(31, vocabulary), _tokens(31, vocabulary)[::-1]]
    for tokens in (prompts, prompts[::-1]):  # the slots are fed anew then
        expected = [_reference(directory, each) for each in tokens]
        for slot in (0, 1):
            assert np.abs(decoder.feed(slot, tokens[slot][:30]).rows[0] - expected[slot][29]).max() < TOLERANCE
        for _ in range(2):
            rows = decoder.decode([SlotInput(slot, tokens[slot][30], 30) for slot in (0, 1)]).rows
            assert np.abs(rows - [each[30] for each in expected]).max() < TOLERANCE
    with pytest.raises(ValueError, match="behind prompts of one length"):
        decoder.decode([SlotInput(0, 1, 31)])


def test_bfloat16_stays_near(tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]) -> None:
    directory = tiny_checkpoint("mistral")
    loaded = load_cpu(directory, dtype="bfloat16", layout="packed")
    assert (loaded.description.dtype, loaded.description.exact_replay) == ("bfloat16", False)
    tokens = _tokens(40, loaded.description.vocab_size)
    fed = loaded.feed(0, tokens[:30])
    stepped = [loaded.decode((0, token, position))[0] for position, token in enumerate(tokens[30:], start=30)]
    difference = np.concatenate((fed, stepped)) - _reference(directory, tokens)
    assert np.abs(difference).mean() < 0.05


def test_float16_weights_stay_nearer(tiny_checkpoint: Callable[..., Path], load_cpu: Callable[..., Any]) -> None:
    directory = tiny_checkpoint("llama3")
    loaded = load_cpu(directory, weights="float16", layout="packed")
    assert (loaded.description.dtype, loaded.description.exact_replay) == ("float32+float16", False)
    tokens = _tokens(40, loaded.description.vocab_size)
    fed = loaded.feed(0, tokens[:30])
    stepped = [loaded.decode((0, token, position))[0] for position, token in enumerate(tokens[30:], start=30)]
    difference = np.concatenate((fed, stepped)) - _reference(directory, tokens)
    assert np.abs(difference).mean() < 0.005


def test_the_embedded_model_scores_as_transformers_does(embedded_model: Path, load_cpu: Callable[..., Any]) -> None:
    loaded = load_cpu(embedded_model, n_positions=512, chunk=64)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    text = "The 3 largest cities of France are Paris, Marseille and Lyon. 东京是日本的首都。 def f(a): return a"
    tokens = tokenizer(text * 2).input_ids
    prompt = len(tokens) // 2
    expected = _reference(embedded_model, tokens)
    fed = loaded.feed(3, tokens[:prompt])
    steps = enumerate(tokens[prompt:], start=prompt)
    stepped = [loaded.decode((3, token, position))[0] for position, token in steps]
    assert np.abs(np.concatenate((fed, stepped)) - expected).max() < TOLERANCE


def test_the_embedded_model_writes_what_transformers_writes(embedded_model: Path, load_cpu: Callable[..., Any]) -> None:
    loaded = load_cpu(embedded_model, n_positions=512, chunk=64)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    model = AutoModelForCausalLM.from_pretrained(embedded_model, dtype=torch.float32)
    for slot, question in enumerate(("What is the capital of France?", "Write a haiku about rain.")):
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        ids = torch.tensor([prompt])
        written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
        expected = written[0, len(prompt) :].tolist()
        tokens = [int(loaded.feed(slot, prompt)[-1].argmax())]
        while len(tokens) < len(expected):
            rows = loaded.decode((slot, tokens[-1], len(prompt) + len(tokens) - 1))
            tokens.append(int(rows[0].argmax()))
        assert tokenizer.decode(tokens) == tokenizer.decode(expected)
