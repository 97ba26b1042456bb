"""The JSON files of a checkpoint that describe its text, typed: only the keys that are used.

Every fault is a ConfigurationError that names the file and the key. Knows no tokenizer library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from server.errors import ConfigurationError


class AddedToken(msgspec.Struct, frozen=True):
    content: str


class NamedTemplate(msgspec.Struct, frozen=True):
    name: str
    template: str


SpecialToken = str | AddedToken | None
Templates = str | tuple[NamedTemplate, ...] | None


class TokenizerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """tokenizer_config.json"""

    tokenizer_class: str | None = None
    bos_token: SpecialToken = None
    eos_token: SpecialToken = None
    unk_token: SpecialToken = None
    pad_token: SpecialToken = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    chat_template: Templates = None


class EndTokens(msgspec.Struct, frozen=True, kw_only=True):
    """config.json and generation_config.json, as far as they say what ends an answer."""

    eos_token_id: int | tuple[int, ...] | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        if isinstance(self.eos_token_id, int):
            return (self.eos_token_id,)
        return self.eos_token_id or ()


class TokenizerFile(msgspec.Struct, frozen=True, kw_only=True):
    """tokenizer.json, without what the tokenizers library reads itself."""

    decoder: dict[str, Any] | None = None


class TemplateFile(msgspec.Struct, frozen=True, kw_only=True):
    """chat_template.json and processor_config.json"""

    chat_template: Templates = None


T = TypeVar("T")


def read_text(path: Path) -> str:
    """The text of a file that must be there."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error


def read_json(path: Path, shape: type[T]) -> T:
    """The file as `shape`; ConfigurationError when it is missing, is not JSON or has another shape."""
    try:
        return msgspec.json.decode(read_text(path), type=shape)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def read_json_if_there(path: Path, shape: type[T]) -> T:
    """As read_json; a missing file reads as an empty object."""
    return read_json(path, shape) if path.exists() else shape()


def text_of(token: SpecialToken) -> str:
    """The token's text; "" for none."""
    if isinstance(token, AddedToken):
        return token.content
    return token or ""
