"""uvicorn's HTTP protocol with one more promise: an app can drop a connection whose reader has stalled.

Closing such a connection politely waits for the reader; scope["extensions"]["connection"]["abort"] does not.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Connection(HttpToolsProtocol):
    """To be given to uvicorn.Config as `http`."""

    def on_message_begin(self) -> None:
        """A request begins: its scope learns to drop the connection."""
        super().on_message_begin()
        self.scope["extensions"] = {"connection": {"abort": self.transport.abort}}
