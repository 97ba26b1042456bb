"""The description of one model family."""

from __future__ import annotations

import msgspec


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """`stop_tokens` end an answer wherever the tokenizer has them, beside the checkpoint's own end tokens.

    `default_template` is the Jinja chat template for a checkpoint that brings none; None: it cannot chat then.
    """

    name: str
    stop_tokens: tuple[str, ...] = ()
    default_template: str | None = None
