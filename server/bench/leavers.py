"""Clients that disturb: some hang up at a random token, some read a byte a second. Plain sockets, no client library.

As a program it takes a Storm on the first line of stdin, and prints what became of it once its leavers have left and
stdin has ended, which is when the slow readers hang up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
from collections.abc import AsyncIterator

import msgspec

MOST_TOKENS_READ = 12
ANSWER_S = 60.0  # a leaver waits no longer than this for the tokens after which it leaves
_BUFFER = 2048  # bytes that the kernel holds for a reader, before the server has to


class Storm(msgspec.Struct, frozen=True):
    """`leavers` come at random within `seconds`; `slow` readers come at once. Each asks for `tokens`."""

    port: int
    leavers: int
    slow: int
    seconds: float
    tokens: int
    seed: int = 0


class Left(msgspec.Struct, frozen=True):
    """`leavers` that had their tokens and hung up; `slow_bytes` that all slow readers took together."""

    leavers: int
    slow_bytes: int


@contextlib.asynccontextmanager
async def _asked(storm: Storm, number: int) -> AsyncIterator[asyncio.StreamReader]:
    """The answer to a request that was sent; behind the block, the connection is dropped without a word."""
    body = msgspec.json.encode({"inputs": f"{number:>8}", "parameters": {"max_new_tokens": storm.tokens}})
    head = f"POST /generate_stream HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", storm.port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=_BUFFER)
        try:
            writer.write(head.encode() + b"\r\n\r\n" + body)
            yield reader
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)  # the transport closes in the loop's next turn


async def _leaves(storm: Storm, number: int) -> bool:
    """Whether it had the tokens after which it wanted to leave."""
    chance = random.Random(f"{storm.seed} {number}")
    await asyncio.sleep(chance.uniform(0, storm.seconds))
    try:
        async with _asked(storm, number) as reader:
            for _ in range(chance.randrange(min(MOST_TOKENS_READ, storm.tokens))):
                await asyncio.wait_for(reader.readuntil(b"data:"), ANSWER_S)
    except (OSError, EOFError, asyncio.TimeoutError, asyncio.LimitOverrunError):
        return False
    return True


async def _reads_slowly(storm: Storm, number: int, over: asyncio.Event) -> int:
    """Bytes that it got, one a second, until the storm is over."""
    got = 0
    async with _asked(storm, number) as reader:
        while not over.is_set():
            got += len(await reader.read(1))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(over.wait(), 1)
    return got


async def rage(storm: Storm) -> Left:
    """The whole storm, until the end of stdin."""
    over = asyncio.Event()
    slow = [asyncio.create_task(_reads_slowly(storm, storm.leavers + i, over)) for i in range(storm.slow)]
    left = asyncio.gather(*(_leaves(storm, number) for number in range(storm.leavers)))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    leavers = sum(await left)
    over.set()
    return Left(leavers, sum(await asyncio.gather(*slow)))


def main() -> int:
    """See the module."""
    storm = msgspec.json.decode(sys.stdin.buffer.readline(), type=Storm)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(rage(storm))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
