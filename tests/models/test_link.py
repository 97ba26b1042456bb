"""The worker's end of the socket, over a real pair of sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from models.link import Link
from models.protocol import HEADER_BYTES, Decode, Fault, Report, Staged, Stepped, decode_report, encode, frame_length

FAULT = Fault(kind="device", message="gone")
# More than any socket buffers.
LONG = tuple(float(number) for number in range(1 << 20))


@pytest.fixture
def ends() -> Iterator[tuple[Link, socket.socket]]:
    """A link, and the socket that its API process would hold."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        yield Link(theirs), ours


def reports(stream: socket.socket, count: int) -> list[Report]:
    with stream.makefile("rb") as reader:
        return [decode_report(reader.read(frame_length(reader.read(HEADER_BYTES)))) for _ in range(count)]


def test_what_is_sent_comes_behind_what_was_posted(ends: tuple[Link, socket.socket]) -> None:
    link, ours = ends
    link.send(Staged())
    for step in range(100):
        link.post(Stepped(step=step))
    link.send(FAULT)
    assert reports(ours, 102) == [Staged(), *(Stepped(step=step) for step in range(100)), FAULT]


def test_posting_waits_for_no_reader(ends: tuple[Link, socket.socket]) -> None:
    link, ours = ends
    posted = [Stepped(step=step, prompt_logprobs=LONG) for step in range(3)]
    for report in posted:
        link.post(report)
    ours.sendall(encode(Decode(step=3, live=())))
    assert link.receive() == Decode(step=3, live=())
    assert reports(ours, 3) == posted


def test_without_a_reader_what_is_posted_is_dropped_and_what_is_sent_tells(ends: tuple[Link, socket.socket]) -> None:
    link, ours = ends
    ours.close()
    for step in range(3):
        link.post(Stepped(step=step))
    assert link.receive() is None
    with pytest.raises(BrokenPipeError):
        link.send(FAULT)
