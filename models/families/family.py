"""The description of one model family. Knows no tokenizer."""

from __future__ import annotations

import msgspec


class Infilling(msgspec.Struct, frozen=True, kw_only=True):
    """How a family fills a gap: `mark` stands for it in the inputs, the others are its special tokens' names.

    The prompt is `prefix`, the text before the gap, `suffix`, the text behind it, `middle`; what the model then writes
    belongs between them.
    """

    mark: str
    prefix: str
    suffix: str
    middle: str

    def split(self, inputs: str) -> tuple[str, str] | None:
        """The texts before and behind the gap, None without one; ValueError when there are several."""
        before, *behind = inputs.split(self.mark)
        if len(behind) > 1:
            raise ValueError(f"`inputs` holds {self.mark} {len(behind)} times: one gap can be filled")
        return (before, behind[0]) if behind else None


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """`stop_tokens` end an answer wherever the tokenizer has them, beside the checkpoint's own end tokens.

    `default_template` is the Jinja chat template for a checkpoint that brings none; None: it cannot chat then.
    `infilling` None: the family has no such task.
    """

    name: str
    stop_tokens: tuple[str, ...] = ()
    default_template: str | None = None
    infilling: Infilling | None = None
