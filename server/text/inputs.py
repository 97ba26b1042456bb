"""The prompt of a native request: its inputs as tokens, with the gap that a model of code is to fill.

Knows no request and no limits.
"""

from __future__ import annotations

from models.families import Infilling
from server.text.tokenizer import Tokenizer

# In front of a text, it keeps the tokenizer from adding the space that sentencepiece starts every text with. Meta's own
# code for CodeLlama uses the same character: it is a token, and part of no other.
_SHIELD = "☺"


def encode_inputs(
    tokenizer: Tokenizer, inputs: str, *, add_special_tokens: bool, truncate: int | None = None
) -> tuple[int, ...]:
    """Token ids of `inputs`; `truncate` keeps the last n. ValueError for a gap that cannot be filled.

    Without `add_special_tokens`, as in a chat, the text brings its own special tokens, and a gap's mark is plain text.
    """
    if not add_special_tokens:
        return tokenizer.encode(inputs, add_special_tokens=False, truncate=truncate)
    gap = tokenizer.infilling.split(inputs) if tokenizer.infilling else None
    if tokenizer.infilling and gap and gap[1]:
        ids = _infilling_prompt(tokenizer, tokenizer.infilling, *gap)
        return ids if truncate is None else ids[max(len(ids) - truncate, 0) :]
    text = gap[0] if gap else inputs  # nothing behind the gap: the text is to be continued
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)  # Chat UI 0.8 writes it out
    return tokenizer.encode(text, add_special_tokens=not has_bos, truncate=truncate)


def _infilling_prompt(tokenizer: Tokenizer, infilling: Infilling, before: str, behind: str) -> tuple[int, ...]:
    """As transformers' CodeLlamaTokenizer: the two texts are tokenised apart, the second without a leading space."""
    prefix, suffix, middle = (
        _special(tokenizer, infilling, name) for name in (infilling.prefix, infilling.suffix, infilling.middle)
    )
    start = tokenizer.encode("", add_special_tokens=True)[:1]
    text = tokenizer.encode(before.removeprefix(tokenizer.bos_token), add_special_tokens=False)
    return (*start, prefix, *text, suffix, *_without_leading_space(tokenizer, behind), middle)


def _special(tokenizer: Tokenizer, infilling: Infilling, name: str) -> int:
    token = tokenizer.token_id(name)
    if token is None:
        raise ValueError(f"`inputs` holds {infilling.mark}, but this model fills no gaps: it has no token {name}")
    return token


def _without_leading_space(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    shield = tokenizer.encode(_SHIELD, add_special_tokens=False)
    shielded = tokenizer.encode(_SHIELD + text, add_special_tokens=False)
    if shielded[: len(shield)] != shield:
        raise ValueError(f"this tokenizer joins {_SHIELD} with what follows it, so the text behind a gap has no start")
    return shielded[len(shield) :]
