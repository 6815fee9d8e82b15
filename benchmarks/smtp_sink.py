"""An SMTP server that takes mails as fast as Python can and throws them away, in a process of its own.

    python -m benchmarks.smtp_sink [ROUND_TRIP_SECONDS]

It prints its port, and goes when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_EHLO = b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 104857600\r\n"
_REPLIES = {b"MAIL": b"250 ok\r\n", b"RCPT": b"250 ok\r\n", b"RSET": b"250 ok\r\n", b"QUIT": b"221 bye\r\n"}


class Sink(asyncio.Protocol):
    """One connection. Replies are held back for a round trip, as a distant server's would be."""

    def __init__(self, round_trip: float) -> None:
        self._round_trip = round_trip
        self._buffer = bytearray()
        self._in_message = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._say(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        replies = b"".join(self._replies())
        if replies:
            self._say(replies)

    def _replies(self) -> Iterator[bytes]:
        while True:
            if self._in_message:
                end = self._buffer.find(b"\r\n.\r\n")
                if end < 0:
                    return
                del self._buffer[: end + 5]
                self._in_message = False
                yield b"250 queued\r\n"
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return
            verb = bytes(self._buffer[:4]).upper()
            del self._buffer[: end + 2]
            if verb == b"DATA":
                self._in_message = True
                yield b"354 go\r\n"
            else:
                yield _EHLO if verb == b"EHLO" else _REPLIES.get(verb, b"500 what\r\n")

    def _say(self, replies: bytes) -> None:
        if self._round_trip:
            asyncio.get_running_loop().call_later(self._round_trip, self._write, replies)
        else:
            self._write(replies)

    def _write(self, replies: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(replies)
            if replies.endswith(b"221 bye\r\n"):
                self._transport.close()


async def serve(round_trip: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Sink(round_trip), "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def sink(round_trip: float = 0.0) -> Iterator[int]:
    """The port of a sink in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(round_trip)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0))
