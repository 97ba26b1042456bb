"""Three tiny random checkpoints, one a family, to watch models being exchanged: `python -m models.cpu.tiny`.

Everything is as in a real checkpoint (config.json, tokenizer.json, safetensors) but small, and equal on every machine.
The weights are noise, with one bias: the first number of the residual stream is a constant that no layer writes to, and
the head turns it against every token that is not a word. So what they say is words in random order, of a vocabulary
that tells which model is speaking.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.cpu.embedded import model_cache

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Weights = dict[str, npt.NDArray[np.float32]]

# What the files hold; a change here makes the next set-up write them anew.
FORMAT = 1
MANIFEST = "set-up.json"

_HIDDEN = 64
_INNER = 128
_LAYERS = 2
_HEADS = 4
_POSITIONS = 2048
_CONSTANT = 8.0  # first number of every embedding, beside noise of deviation 1
_FOR_WORDS, _AGAINST_OTHERS, _FOR_THE_END = 4.0, -8.0, 4.0


@dataclass(frozen=True, slots=True)
class Tiny:
    """One checkpoint: its directory in the model cache, what config.json says of its family, its words.

    `specials` are special tokens, of which the ones named by `bos` and `eos` frame a text. `space` begins a word:
    "Ġ" in byte-level vocabularies (Llama 3), "▁" in SentencePiece's (Mistral, CodeLlama).
    """

    name: str
    config: Mapping[str, Any]
    specials: tuple[str, ...]
    bos: str
    eos: str
    space: str
    words: tuple[str, ...]


_LLAMA = (
    "alpaca Andes wool valley trail herd summit grass shepherd pasture cloud stone river village bridge weaver blanket "
    "market drum flute winter morning frost sunrise quiet gentle curious woolly steep narrow bright slow climbs grazes "
    "hums wanders sleeps carries follows watches listens crosses and the a over under beside toward until while"
)
_MISTRAL = (
    "wind sail harbour lavender cypress shutter coast gull wave anchor rope horizon storm breeze olive terrace "
    "lighthouse salt sand tide cliff Provence Rhône summer evening thunder clear dry cold sudden restless blue "
    "howls drifts turns carries bends scatters rises fades whistles returns and the a across through "
    "against before along without"
)
_CODELLAMA = (
    "def return if else for while in not None True False print range len list dict set str int sum map zip open with "
    "as import class self lambda yield assert raise try except index value items append count total result key "
    "node left right head tail queue stack buffer = + - * / == ( ) [ ] : ,"
)

MODELS = (
    Tiny(
        name="tiny-llama3",
        config={"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 500000.0},
        specials=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        space="Ġ",
        words=tuple(_LLAMA.split()),
    ),
    Tiny(
        name="tiny-mistral",
        config={
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "rope_theta": 1000000.0,
            "sliding_window": None,
        },
        specials=("<unk>", "<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        space="▁",
        words=tuple(_MISTRAL.split()),
    ),
    Tiny(
        name="tiny-codellama",
        config={"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 1000000.0},
        specials=("<unk>", "<s>", "</s>", "▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"),
        bos="<s>",
        eos="</s>",
        space="▁",
        words=tuple(_CODELLAMA.split()),
    ),
)


def set_up(cache: Path) -> list[Path]:
    """Make the checkpoints that `cache` lacks, each in one rename; the directories of all three."""
    cache.mkdir(parents=True, exist_ok=True)
    return [_set_up(tiny, cache / tiny.name) for tiny in MODELS]


def is_set_up(directory: Path) -> bool:
    """Whether `directory` was made by this format."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(manifest == {"format": FORMAT})


def _set_up(tiny: Tiny, directory: Path) -> Path:
    if is_set_up(directory):
        return directory
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{tiny.name}.") as work:
        built = Path(work) / "built"
        built.mkdir()
        build(tiny, built)
        if directory.exists():
            os.rename(directory, Path(work) / "replaced")
        try:
            os.rename(built, directory)
        except OSError:
            if not is_set_up(directory):  # else another set-up was faster, and its files are the same
                raise
    return directory


def build(tiny: Tiny, directory: Path) -> None:
    """Write the whole checkpoint into an empty directory, the manifest last."""
    vocabulary, merges = _vocabulary(tiny)
    config = {
        **tiny.config,
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS // 2 if tiny.name != "tiny-codellama" else _HEADS,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": _POSITIONS,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": vocabulary[tiny.bos],
        "eos_token_id": vocabulary[tiny.eos],
    }
    _write_json(directory / "config.json", config)
    _write_tokenizer(tiny, vocabulary, merges, directory)
    _write_weights(tiny, config, vocabulary, directory / "model.safetensors")
    _write_json(directory / MANIFEST, {"format": FORMAT})


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def _vocabulary(tiny: Tiny) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of special tokens, of single bytes or characters, and of the beginnings of every word; and the merges.

    A word is put together from its first character on, so that no word's merges can get into another's way.
    """
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if tiny.space == "▁":  # a character that is not in the vocabulary falls back to its bytes
        letters = {letter for word in tiny.words for letter in word} | {chr(code) for code in range(0x20, 0x7F)}
        alphabet = [*(f"<0x{byte:02X}>" for byte in range(256)), *sorted(letters), tiny.space]
    words = [tiny.space + _spelled(word, tiny) for word in tiny.words]
    vocabulary = {token: index for index, token in enumerate((*tiny.specials, *alphabet))}
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
            vocabulary.setdefault(word[: end + 1], len(vocabulary))
    return vocabulary, list(merges)


def _spelled(word: str, tiny: Tiny) -> str:
    """A word in the characters of the vocabulary."""
    from tokenizers import pre_tokenizers

    if tiny.space == "▁":
        return word
    ((spelled, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)
    return str(spelled)


def _write_tokenizer(
    tiny: Tiny, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], directory: Path
) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    if tiny.space == "▁":
        tokenizer = Tokenizer(
            models.BPE(vocab=dict(vocabulary), merges=list(merges), unk_token="<unk>", byte_fallback=True)
        )
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        # Strip: the space that the normalizer put in front goes again.
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        tokenizer = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in tiny.specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tiny.bos}:0 $A:0",
        pair=f"{tiny.bos}:0 $A:0 {tiny.bos}:1 $B:1",
        special_tokens=[(tiny.bos, vocabulary[tiny.bos])],
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tiny.bos, "eos_token": tiny.eos}
    _write_json(directory / "tokenizer_config.json", names)


# --- the weights -----------------------------------------------------------------------------------------------------


def _write_weights(tiny: Tiny, config: Mapping[str, Any], vocabulary: Mapping[str, int], target: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from models.spec import spec_of

    random = np.random.default_rng(list(tiny.name.encode()))
    weights: Weights = {}
    for name, shape in spec_of(config).tensor_shapes().items():
        noise = random.standard_normal(shape).astype(np.float32)
        weights[name] = noise / np.float32(shape[-1] ** 0.5) if len(shape) == 2 else np.ones(shape, np.float32)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name][0] = 0  # nothing is written to the constant
        elif name == "model.embed_tokens.weight":
            weights[name] = noise
            weights[name][:, 0] = _CONSTANT
        elif name == "lm_head.weight":
            weights[name] *= np.float32(1.5)  # what is said hangs on what was said before
            weights[name][:, 0] = _AGAINST_OTHERS
            weights[name][[vocabulary[tiny.space + _spelled(word, tiny)] for word in tiny.words], 0] = _FOR_WORDS
            weights[name][vocabulary[tiny.eos]] = 0  # an end is as likely after any word
            weights[name][vocabulary[tiny.eos], 0] = _FOR_THE_END
    save_file(weights, target, metadata={"format": "pt"})
    # safetensors writes files that only the owner may read; the others have the umask's mode.
    target.chmod(target.parent.stat().st_mode & 0o666)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    """Set them up and print their directories."""
    try:
        directories = set_up(model_cache())
    except OSError as error:
        print(f"tiny models: set-up failed: {error}", file=sys.stderr)
        return 1
    print(*directories, sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
