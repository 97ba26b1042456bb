"""Which ids have known shapes."""

from __future__ import annotations

import pytest

from models.planner.shapes import published_spec


@pytest.mark.parametrize(
    ("model_id", "parameters", "kib_a_token"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248, 128),
        ("NousResearch/Meta-Llama-3-8B", 8_030_261_248, 128),
        ("mistralai/Mistral-7B-Instruct-v0.2", 7_241_732_096, 128),
        ("codellama/CodeLlama-7b-Instruct-hf", 6_738_546_688, 512),
    ],
)
def test_the_three_models_and_copies_of_them_have_published_shapes(
    model_id: str, parameters: int, kib_a_token: int
) -> None:
    spec = published_spec(model_id)
    assert spec is not None
    assert spec.parameters() == parameters
    assert spec.kv_bytes_per_token(2) == kib_a_token * 1024


@pytest.mark.parametrize("model_id", ["codellama/CodeLlama-7b-Python-hf", "meta-llama/Meta-Llama-3-70B", "mine"])
def test_others_are_not_guessed(model_id: str) -> None:
    assert published_spec(model_id) is None
