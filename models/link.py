"""The worker's end of the socket: blocking frames in, frames out. Knows no model."""

from __future__ import annotations

import queue
import socket
import threading
import time

from models.protocol import HEADER_BYTES, Command, Progress, Report, decode_command, encode, frame_length

PROGRESS_INTERVAL_S = 0.1


class Link:
    """Frames over a stream socket. One thread may use it; it keeps a second one for what is posted."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._reader = stream.makefile("rb")
        self._posted: queue.SimpleQueue[Report | threading.Event] = queue.SimpleQueue()
        self._sender: threading.Thread | None = None
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
        """Blocks until the kernel took the frame, behind all that was posted; BrokenPipeError when nobody reads."""
        if self._sender is not None:
            posted = threading.Event()
            self._posted.put(posted)
            posted.wait()
        self._stream.sendall(encode(report))

    def post(self, report: Report) -> None:
        """Send it soon, in order, without waiting; a frame that nobody reads is dropped, `receive` tells the end.

        A report wakes the API process up, and the kernel likes to run that in the place of its waker, on its
        processor: sent by this thread, it would hold the next step up for as long as the delivery of this one takes.
        The sender runs while this thread waits for the device.
        """
        if self._sender is None:
            self._sender = threading.Thread(target=self._send_posted, name="reports", daemon=True)
            self._sender.start()
        self._posted.put(report)

    def _send_posted(self) -> None:
        while True:
            posted = self._posted.get()
            if isinstance(posted, threading.Event):
                posted.set()
                continue
            try:
                self._stream.sendall(encode(posted))
            except (BrokenPipeError, ConnectionResetError):
                continue

    def progress(self, phase: str, done: int, total: int) -> None:
        """Report progress, at most ten times a second within a phase, its first and last value always."""
        now = time.monotonic()
        if phase == self._phase and done < total and now - self._progress_sent < PROGRESS_INTERVAL_S:
            return
        self._phase, self._progress_sent = phase, now
        self.send(Progress(phase, done, total))  # type: ignore[arg-type]  # a backend's phase is checked by the reader
