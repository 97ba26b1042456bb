"""Stop strings, matched as TGI does: at the end of a token, over the text of all tokens so far."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one answer. A string that ends inside a token does not match: an answer ends with whole tokens."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._tail = ""

    def push(self, text: str) -> bool:
        """Take the next token's text; True when all text so far ends with a stop string."""
        if not self._stop:
            return False
        self._tail = (self._tail + text)[-self._longest :] if self._longest else ""
        return self._tail.endswith(self._stop)
