"""Who watches the models: every model once, then every change of state and progress, until the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

from server.swap.model import ModelEntry


class Changes:
    """A stream of entries to each subscriber. A slow one's queue is bounded by how long its connection lives."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[ModelEntry | None]] = set()
        self._ended = False

    async def subscribe(self, now: Iterable[ModelEntry]) -> AsyncGenerator[ModelEntry, None]:
        """`now`, then what is published from now on."""
        queue: asyncio.Queue[ModelEntry | None] = asyncio.Queue()
        for entry in now:
            queue.put_nowait(entry)
        if self._ended:
            queue.put_nowait(None)
        self._queues.add(queue)
        try:
            while (entry_or_end := await queue.get()) is not None:
                yield entry_or_end
        finally:
            self._queues.discard(queue)

    def publish(self, entry: ModelEntry) -> None:
        for queue in self._queues:
            queue.put_nowait(entry)

    def end(self) -> None:
        """No more changes: every stream ends behind what it was sent."""
        self._ended = True
        for queue in self._queues:
            queue.put_nowait(None)
