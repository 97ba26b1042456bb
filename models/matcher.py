"""Follows a grammar through the tokens of one sequence: which tokens may come next. Lives beside the sampler.

The mask of the next token is computed on a thread of its own as soon as the last one is known, so while the device
runs the next step. Knows no logits and no slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.backend import ConfigurationError
from models.grammar import GrammarError, limits, one_line, source_of
from models.protocol import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Mask = npt.NDArray[np.bool_]


class Vocabulary:
    """The tokens of a checkpoint as the grammar library knows them, read once, on the thread of the masks."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "tokenizer.json"
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._tokenizer: Future[LLTokenizer] | None = None

    def begin(self) -> None:
        """Start reading, so that the first grammar need not wait for it. What goes wrong is told when one comes."""
        if self._tokenizer is None:
            self._tokenizer = self.thread.submit(self._read)

    def tokenizer(self) -> LLTokenizer:
        """ConfigurationError when grammars cannot be used here: no library, no or another kind of tokenizer.json."""
        self.begin()
        assert self._tokenizer is not None
        return self._tokenizer.result()

    def _read(self) -> LLTokenizer:
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise ConfigurationError("grammars need the package llguidance in the worker's environment") from error
        try:
            return LLTokenizer(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{self._path}: grammars cannot use this tokenizer: {error}") from error


class Matcher:
    """Where one sequence is in its grammar. `emitted` are its tokens so far (a replay)."""

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar, eos: Sequence[int], emitted: Sequence[int]) -> None:
        """ConfigurationError when grammars cannot be used here."""
        tokenizer = vocabulary.tokenizer()
        self._thread = vocabulary.thread
        self._ends = np.array(sorted(eos), dtype=np.intp)
        # Ends that the library guessed are none unless they are ours.
        self._guessed = np.array(tokenizer.eos_tokens, dtype=np.intp)
        self._next = self._thread.submit(self._begin, tokenizer, grammar, tuple(emitted))

    def failure(self) -> str:
        """Why the grammar cannot be followed any further, for the log; "" while it can."""
        error = self._next.exception()
        if error is not None and not isinstance(error, GrammarError):
            raise error
        return str(error or "")

    def allowed(self, size: int) -> Mask:
        """Which of `size` token ids may come next, bool (size,): at least one, while there is no failure."""
        mask = self._next.result()
        if mask.size < size:
            mask = np.pad(mask, (0, size - mask.size))
        return mask[:size]

    def advance(self, token: int) -> None:
        """Take `token` as the next one, and begin with the mask of the one behind it."""
        if token not in self._ends:
            self._next = self._thread.submit(self._step, token)

    def _begin(self, tokenizer: LLTokenizer, grammar: Grammar, emitted: tuple[int, ...]) -> Mask:
        from llguidance import LLMatcher

        self._state: LLMatcher = LLMatcher(tokenizer, source_of(grammar), log_level=0, limits=limits())
        self._state.consume_tokens(list(emitted))
        return self._mask()

    def _step(self, token: int) -> Mask:
        self._state.consume_token(token)
        return self._mask()

    def _mask(self) -> Mask:
        bits = np.frombuffer(self._state.compute_bitmask(), dtype=np.uint8)
        mask = np.zeros(max([8 * bits.size, *(self._ends + 1)]), dtype=np.bool_)
        mask[: 8 * bits.size] = np.unpackbits(bits, bitorder="little")
        mask[self._guessed] = False
        mask[self._ends] = self._state.is_accepting()
        if self._state.is_error() or not mask.any():
            reason = one_line(self._state.get_error()) or "no token of the vocabulary can come next"
            raise GrammarError(reason)
        return mask
