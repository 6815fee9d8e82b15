"""A worker's connection as its event loop sees it: every call ends in a thread of its own, whatever the loop does.

Jobs run on that loop, and one that blocks it, by a plain ``enqueue()`` for example, must find no transaction of ours
half done: it would wait for a lock that only the blocked loop could release.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

from .driver import Driver, Link, Parameters, Row, Run

T = TypeVar("T")
_Call = tuple[asyncio.Future[Any], Callable[[], Any]]


class LoopLink:
    """For one loop only. Calls run one after another. Errors come as StoreError."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._link: Link

    @classmethod
    async def open(cls, driver: Driver) -> LoopLink:
        """Connect. Raises StoreError."""
        opened = cls()
        threading.Thread(target=opened._work, name="taskworker-db", daemon=True).start()
        try:
            opened._link = await opened._call(driver.connect)
        except BaseException:
            opened._calls.put(None)
            raise
        return opened

    async def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        return await self._call(lambda: self._link.read(sql, parameters))

    async def write(self, sql: str, parameters: Parameters, *, durable: bool = True) -> list[Row]:
        """One statement in a transaction of its own, committed when this returns.

        Without *durable* a power cut may undo it, together with all that was committed after it; the death of a
        process does not. Enough for a claim: after a power cut nobody runs the job, and it is claimed again.
        """
        return await self._call(lambda: self._link.write(sql, parameters, durable=durable))

    async def transaction(self, body: Callable[[Run], T]) -> T:
        """Run *body*, in the connection's thread, in one write transaction."""
        return await self._call(lambda: self._link.transaction(body))

    def hurry(self, seconds: float) -> None:
        """The worker stops: wait for a database that is locked no longer than that."""
        self._link.hurry(seconds)

    async def close(self) -> None:
        """Close the connection and end its thread."""
        try:
            await self._call(self._link.close)
        finally:
            self._calls.put(None)

    async def _call(self, call: Callable[[], T]) -> T:
        """A cancellation of the caller is raised when the call has ended."""
        answer: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((answer, call))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            await asyncio.wait([answer])
            # Looked at, or asyncio would complain that it was never retrieved.
            answer.exception()
            raise

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            answer, call = item
            try:
                settle, value = answer.set_result, call()
            except BaseException as error:  # noqa: BLE001 - raised where the call was made
                settle, value = cast(Any, answer.set_exception), error
            # The loop may have been closed meanwhile.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(settle, value)
            del item, answer, call, settle, value
