"""A TCP proxy before a PostgreSQL server that loses replies, cuts connections or lets them hang, on demand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from sqlalchemy.engine import make_url


class Proxy:
    """Listens on 127.0.0.1 in a thread of its own; for a with block. *upstream*: the server's UNIX socket."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._lose: bytes | None = None
        self._vanishes = False
        self._open = asyncio.Event()
        self._refusing = False
        self.lost = 0
        """How many replies were lost."""

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._server: Any = self._call(self._listen)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.hang(False)
        self.cut()
        self._call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def url(self, url: str) -> str:
        """The same database, through the proxy."""
        parsed = make_url(url)
        options = quote(str(parsed.query.get("options", "")))
        return (
            f"postgresql://postgres@127.0.0.1:{self.port}/{parsed.database}"
            f"?options={options}&sslmode=disable&gssencmode=disable"
        )

    # -- faults -----------------------------------------------------------------------------------------------------

    def lose_reply_to(self, words: str, *, and_vanish: bool = False) -> None:
        """The next message that holds these words reaches the server; its reply reaches no one, and both are cut.

        *and_vanish*: all other connections are cut, too, and new ones refused.
        """
        self._lose, self._vanishes = words.encode(), and_vanish

    def cut(self) -> None:
        """Cut all connections."""
        self._call(self._cut)

    def refuse(self, refusing: bool) -> None:
        """Take no new connections, or take them again."""
        self._refusing = refusing

    def hang(self, hanging: bool) -> None:
        """Let nothing through either way, or let it through again. Neither side is notified."""
        self._loop.call_soon_threadsafe(self._open.clear if hanging else self._open.set)

    # -- on the loop ------------------------------------------------------------------------------------------------

    def _call(self, function: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(function(), self._loop).result(10)

    async def _listen(self) -> Any:
        self._open.set()
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            upstream, downstream = await asyncio.open_unix_connection(str(self._upstream))
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(self)
        self._writers |= {writer, downstream}
        try:
            await asyncio.gather(pair.forward(reader, downstream), pair.back(upstream, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers -= {writer, downstream}
            writer.transport.abort()
            downstream.transport.abort()


class _Pair:
    """One connection, both ways."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._losing = False

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._proxy._open.wait()
            wanted = self._proxy._lose
            if wanted is not None and wanted in data:
                self._proxy._lose = None
                self._losing = True
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._proxy._open.wait()
            if self._losing:
                self._proxy.lost += 1
                if self._proxy._vanishes:
                    self._proxy.refuse(True)
                    await self._proxy._cut()
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError
