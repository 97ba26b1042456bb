"""The worker's end of the socket: blocking frames in, frames out. Knows no model."""

from __future__ import annotations

import socket
import time

from models.protocol import HEADER_BYTES, Command, Progress, Report, decode_command, encode, frame_length

PROGRESS_INTERVAL_S = 0.1


class Link:
    """Frames over a stream socket, one thread."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._reader = stream.makefile("rb")
        self._progress_sent = 0.0
        self._phase = ""

    def receive(self) -> Command | None:
        """The next command; None when the API process closed its end."""
        header = self._reader.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return None
        length = frame_length(header)
        body = self._reader.read(length)
        return decode_command(body) if len(body) == length else None

    def send(self, report: Report) -> None:
        """Blocks until the kernel took the frame; BrokenPipeError when the API process is gone."""
        self._stream.sendall(encode(report))

    def progress(self, phase: str, done: int, total: int) -> None:
        """Report progress, at most ten times a second within a phase, its first and last value always."""
        now = time.monotonic()
        if phase == self._phase and done < total and now - self._progress_sent < PROGRESS_INTERVAL_S:
            return
        self._phase, self._progress_sent = phase, now
        self.send(Progress(phase, done, total))  # type: ignore[arg-type]  # a backend's phase is checked by the reader
