"""The one bound on admitted work: MAX_CONCURRENT_REQUESTS sequences over all models, waiting, running and parked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Overloaded


class Admission:
    """Permits, one a sequence, held from validation to the last byte."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    @contextmanager
    def permit(self, count: int = 1) -> Iterator[None]:
        """Hold `count` permits at once; Overloaded, with none held, when fewer are free."""
        if self.held + count > self.limit:
            raise Overloaded
        self.held += count
        try:
            yield
        finally:
            self.held -= count
