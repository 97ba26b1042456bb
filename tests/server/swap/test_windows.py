"""The configured slots, cut to their models' sliding windows: what follows of limits, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from models.protocol import NeuronOptions
from server.observe.metrics import Metrics
from server.settings import ModelSettings, Settings
from server.swap.model import Model
from server.swap.windows import within_windows

OPTIONS = NeuronOptions(n_positions=256, context_buckets=(64, 200), token_buckets=(128, 256))


CONFIG = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip


@pytest.fixture
def mistral(tmp_path: Path) -> Callable[..., Path]:
    """mistral(sliding_window=..): a directory with a config.json and nothing else."""

    def write(**changes: int | None) -> Path:
        directory = tmp_path / "-".join(map(str, changes.values()))
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
        return directory

    return write


def settings(*directories: str | Path) -> Settings:
    return Settings(
        models=tuple(
            ModelSettings(id=f"org/m{index}", path=str(directory), device=OPTIONS)
            for index, directory in enumerate(directories)
        )
    )


def test_a_window_caps_the_limits_that_clients_are_told(mistral: Callable[..., Path]) -> None:
    found, notes = within_windows(settings(mistral(sliding_window=96)))
    limits = Model(found.models[0], found, Metrics(), lambda: None).limits
    assert (limits.max_total_tokens, limits.max_input_tokens) == (96, 95)
    assert [note.partition(": beyond")[0] for note in notes] == [
        "org/m0: n_positions 256 is cut to the model's sliding_window, 96"
    ]


def test_other_models_stay_as_they_are_configured(mistral: Callable[..., Path]) -> None:
    given = settings(mistral(sliding_window=None), mistral(sliding_window=256), "/nowhere")
    found, notes = within_windows(given)
    assert msgspec.to_builtins(found) == msgspec.to_builtins(given)
    assert notes == ()
