"""A model's text as token ids and back, over the `tokenizers` library and the JSON files of its checkpoint.

Special tokens are the tokenizer's own, those that tokenizer_config.json names, and all that end an answer. Knows no
request and no template.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import msgspec
import tokenizers
from tokenizers.processors import TemplateProcessing

from models.families import Family, Infilling, UnknownFamilyError, family_named, family_of
from server.errors import ConfigurationError
from server.text.files import EndTokens, TokenizerConfig, TokenizerFile, read_json, read_json_if_there, text_of
from server.text.pieces import piece_reader

REPLACEMENT = "\ufffd"

# Their add_bos_token and add_eos_token overrule the tokenizer.json, as in TGI's router and in transformers.
_LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")


class SimpleToken(msgspec.Struct, frozen=True):
    """A token as /tokenize shows it: `start` and `stop` are UTF-8 byte offsets into the input, `text` that slice."""

    id: int
    text: str
    start: int
    stop: int


class Tokenizer:
    """Encodes and decodes for one model. Immutable after loading, and safe to use from several threads."""

    def __init__(
        self,
        raw: tokenizers.Tokenizer,
        file: TokenizerFile,
        config: TokenizerConfig,
        end_ids: Sequence[int],
        infilling: Infilling | None = None,
    ) -> None:
        self._raw = raw
        self.infilling = infilling
        self._piece = piece_reader(file.decoder)
        self._pieces: dict[int, bytes] = {}
        named = (text_of(token) for token in (config.bos_token, config.eos_token, config.unk_token, config.pad_token))
        named_ids = [raw.token_to_id(name) for name in named if name]
        added = [token for token, entry in raw.get_added_tokens_decoder().items() if entry.special]
        self.vocab_size: int = raw.get_vocab_size(with_added_tokens=True)
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(end_ids))
        self.special_ids: frozenset[int] = frozenset([*added, *self.eos_ids, *(i for i in named_ids if i is not None)])
        self.bos_token: str = text_of(config.bos_token)
        first_end = raw.id_to_token(self.eos_ids[0]) if self.eos_ids else None
        self.eos_token: str = text_of(config.eos_token) or first_end or ""

    @classmethod
    def load(cls, directory: Path, family: str = "auto") -> Tokenizer:
        """Read tokenizer.json and config.json, and tokenizer_config.json and generation_config.json where they exist.

        ConfigurationError when a file is missing or broken, naming the file and the key.
        """
        path = directory / "tokenizer.json"
        file = read_json(path, TokenizerFile)
        try:
            raw = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library has no exception type of its own
            raise ConfigurationError(f"{path}: not a tokenizer: {error}") from error
        raw.no_truncation()
        raw.no_padding()
        config = read_json_if_there(directory / "tokenizer_config.json", TokenizerConfig)
        _template_special_tokens(raw, config, directory / "tokenizer_config.json")
        known = _family(directory, family)
        end_ids = _end_ids(raw, config, directory, known.stop_tokens if known else ())
        return cls(raw, file, config, end_ids, known.infilling if known else None)

    @property
    def bytewise(self) -> bool:
        """True when a text is the concatenation of its tokens' bytes."""
        return self._piece is not None

    def encode(self, text: str, *, add_special_tokens: bool, truncate: int | None = None) -> tuple[int, ...]:
        """Token ids; `truncate` keeps the last n. May take seconds for megabytes, without the interpreter's lock."""
        # A batch of one: only the batch calls of the library let other threads run.
        (encoding,) = self._raw.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids = tuple(encoding.ids)
        return ids if truncate is None else ids[max(len(ids) - truncate, 0) :]

    def token_id(self, name: str) -> int | None:
        """The id of the token that is written `name`."""
        found: int | None = self._raw.token_to_id(name)
        return found

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of `ids` as a continuation: a leading space stays. Ids without a token are skipped."""
        if skip_special_tokens:
            ids = [i for i in ids if i not in self.special_ids]
        if self._piece is None:
            return str(self._raw.decode(list(ids), skip_special_tokens=False))
        return b"".join(map(self.piece, ids)).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """The bytes of one token; only where `bytewise`."""
        found = self._pieces.get(token)
        if found is None:
            assert self._piece is not None
            name = self._raw.id_to_token(token)
            found = self._pieces[token] = self._piece(name) if name is not None else b""
        return found

    def offsets(self, text: str, add_special_tokens: bool) -> list[SimpleToken]:
        """The tokens of `text` with their places; a token that stands for none of it is ("", 0, 0)."""
        (encoding,) = self._raw.encode_batch([text], add_special_tokens=add_special_tokens)
        # The library counts characters; places[i] is the byte at which character i starts.
        places = list(accumulate((len(character.encode()) for character in text), initial=0))
        return [
            SimpleToken(token, text[start:stop], places[start], places[stop])
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]


class Detokenizer:
    """The text of one growing answer: each token's push returns the text which that token completes.

    A character whose bytes are split over tokens is held back until its last one. Bytes that can no longer become a
    character turn into U+FFFD at once. Special tokens return their own text and leave the rest alone, so the texts
    of the others join to `decode(answer, skip_special_tokens=True)`, less an incomplete last character.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._text = _ByteText(tokenizer) if tokenizer.bytewise else _WindowText(tokenizer, prompt)

    def push(self, token: int) -> str:
        """Take one token; "" while a character is incomplete."""
        if token in self._tokenizer.special_ids:
            return self._tokenizer.decode((token,), skip_special_tokens=False)
        return self._text.push(token)


class _ByteText:
    """Tokens are bytes, and an incremental UTF-8 decoder does the rest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._piece = tokenizer.piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._piece(token))


class _WindowText:
    """Any other decoder: TGI's rule of two windows, whose difference is the new text.

    The earlier tokens in the window let the decoder treat the new ones as the middle of a text.
    """

    # As many tokens of the prompt as TGI gives the decoder; as many tokens as a character has bytes.
    _CONTEXT = 5
    _MOST_HELD = 4

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._decode = tokenizer.decode
        self._before = list(prompt[-self._CONTEXT :])
        self._held: list[int] = []

    def push(self, token: int) -> str:
        self._held.append(token)
        known = self._decode(self._before, skip_special_tokens=True)
        text = self._decode(self._before + self._held, skip_special_tokens=True)
        if text.endswith(REPLACEMENT) and len(self._held) < self._MOST_HELD:
            return ""
        self._before, self._held = self._held, []
        return text[len(known) :]


def _end_ids(
    raw: tokenizers.Tokenizer, config: TokenizerConfig, directory: Path, family_stops: Sequence[str]
) -> list[int]:
    """All that ends an answer: the tokenizer's eos, config.json's, generation_config.json's, then the family's."""
    ids: list[int | None] = [raw.token_to_id(text_of(config.eos_token))]
    ids += read_json(directory / "config.json", EndTokens).ids
    ids += read_json_if_there(directory / "generation_config.json", EndTokens).ids
    ids += map(raw.token_to_id, family_stops)
    return [i for i in ids if i is not None]


def _family(directory: Path, name: str) -> Family | None:
    try:
        return family_of(read_json(directory / "config.json", dict)) if name == "auto" else family_named(name)
    except UnknownFamilyError:
        return None


def _template_special_tokens(raw: tokenizers.Tokenizer, config: TokenizerConfig, path: Path) -> None:
    """Let add_bos_token and add_eos_token decide what a Llama tokenizer puts around a text."""
    if config.tokenizer_class not in _LLAMA_CLASSES or (config.add_bos_token is None and config.add_eos_token is None):
        return
    around: list[list[tuple[str, int]]] = []
    for wanted, key in ((config.add_bos_token, "bos_token"), (config.add_eos_token, "eos_token")):
        name = text_of(getattr(config, key))
        token = raw.token_to_id(name) if wanted else None
        if wanted and token is None:
            raise ConfigurationError(f"{path}: add_{key} is true, but {key} {name!r} is no token of tokenizer.json")
        around.append([(name, token)] if token is not None else [])
    bos, eos = around
    raw.post_processor = TemplateProcessing(
        single=[*(name for name, _ in bos), "$A", *(name for name, _ in eos)], special_tokens=[*bos, *eos]
    )
