"""The three models that the server is made for."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from models.planner.shapes import published_spec
from models.spec import ModelSpec

IDS = {
    "llama3": "meta-llama/Meta-Llama-3-8B-Instruct",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.2",
    "codellama": "codellama/CodeLlama-7b-Instruct-hf",
}


@pytest.fixture(scope="session")
def specs() -> Mapping[str, ModelSpec]:
    """By family; their shapes as published."""
    found = {family: published_spec(model_id) for family, model_id in IDS.items()}
    return {family: spec for family, spec in found.items() if spec is not None}
