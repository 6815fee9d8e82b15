"""What a database driver offers the Store: a pooled face, connections for workers, a presence and a wake-up.

A second implementation exists for each protocol here, or will not be needed: everything above speaks only these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from ..core.rows import NewJob
from ..errors import StoreError
from .statements.jobs import Dialect

T = TypeVar("T")
Row = tuple[Any, ...]
Parameters = Mapping[str, Any]
Run = Callable[[str, Parameters], list[Row]]
Added = Callable[[Sequence[tuple[int, NewJob]]], None]
"""Told which jobs were stored just now, under which numbers."""
Ready = Collection[tuple[str, str]]
"""Queues with ready jobs, and the kinds of these jobs."""


class RowRefused(StoreError):
    """The database refuses a value in the statement, and will refuse it again: too large, or of no legal form."""


class RowLocked(StoreError):
    """Another session holds the lock of a row in the statement for too long."""


class Other(NamedTuple):
    """Another worker's row, as far as the question whether it lives goes."""

    id: str
    beat: int
    server_started_at: int | None


class Link(Protocol):
    """One connection of one thread at a time. Errors come as StoreError."""

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""

    def write(self, sql: str, parameters: Parameters, *, durable: bool = True) -> list[Row]:
        """One statement in a transaction of its own; without *durable* a power cut may undo it."""

    def transaction(self, body: Callable[[Run], T], *, durable: bool = True) -> T:
        """Run *body* in one write transaction; without *durable* a power cut may undo it."""

    def hurry(self, seconds: float) -> None:
        """From now on wait for a locked database no longer than that. Safe from any thread."""

    def close(self) -> None:
        """Close the connection."""


class CallThread(Protocol):
    """A thread that runs calls one after another."""

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call there, to its end also where the caller is cancelled."""

    async def close(self) -> None:
        """End the thread."""


class LoopLink:
    """A worker's connection as its event loop sees it. For that loop only. Errors come as StoreError.

    Every call ends in a thread of its own, whatever the loop does: jobs run on it, and one that blocks it, by a plain
    ``enqueue()`` for example, would else wait for a lock that only the blocked loop could release.
    """

    def __init__(self, link: Link, thread: CallThread) -> None:
        self._link = link
        self._thread = thread

    async def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        return await self._call(lambda: self._link.read(sql, parameters))

    async def write(self, sql: str, parameters: Parameters, *, durable: bool = True) -> list[Row]:
        """One statement in a transaction of its own, committed when this returns.

        Without *durable* a power cut may undo it, together with all that was committed after it; the death of a
        process does not. Enough for a claim: after a power cut no job runs, and it is claimed again.
        """
        return await self._call(lambda: self._link.write(sql, parameters, durable=durable))

    async def transaction(self, body: Callable[[Run], T], *, durable: bool = True) -> T:
        """Run *body*, in the connection's thread, in one write transaction."""
        return await self._call(lambda: self._link.transaction(body, durable=durable))

    def hurry(self, seconds: float) -> None:
        """The worker stops: wait for a database that is locked no longer than that."""
        self._link.hurry(seconds)

    async def close(self) -> None:
        """Close the connection and end its thread."""
        try:
            await self._call(self._link.close)
        finally:
            await self._thread.close()

    async def _call(self, call: Callable[[], T]) -> T:
        """A cancellation of the caller is raised when the call has ended."""
        try:
            return await self._thread.run(call)
        except asyncio.CancelledError:
            # Its turn comes when the call that was cancelled has ended.
            await self._thread.run(lambda: None)
            raise


class Presence(Protocol):
    """A living worker as other processes see it: a lock that the kernel or the server frees at death, and an ear."""

    def listen(self, loop: asyncio.AbstractEventLoop, on_wake: Callable[[Ready], None]) -> None:
        """Call *on_wake* on *loop* when another process has news: with what is ready, or with nothing: look."""

    server_started_at: int | None
    """When the server started that holds the lock, in epoch milliseconds; None without a server."""

    def renew(self) -> None:
        """Take the lock again if the server lost it. Called with each beat. Raises StoreError."""

    def is_dead(self, other: Other) -> bool:
        """Whether it is proven that the process of that worker has ended. False where that cannot be told."""

    def forget(self, worker_id: str) -> None:
        """Clear away what a dead worker left behind."""

    def hurry(self, seconds: float) -> None:
        """After *seconds* wait for the server no more than a moment. Safe from any thread."""

    def close(self, *, keep_lock: bool = False) -> None:
        """Stop listening and give up the lock; or keep it until the process ends."""

    def abandon(self) -> None:
        """After a fork, in the child: close descriptors without giving up the parent's lock."""


class Driver(Protocol):
    """One database. The sync face is safe from any thread."""

    dialect: Dialect
    key: str
    """Tells one database from another within a process."""

    def prepare(self, *, patience: float | None = None) -> None:
        """Create or check the schema, once; cheap afterwards.

        *patience*: seconds to wait for SQLite's lock, instead of ``TASKER_LOCK_TIMEOUT``.
        """

    def schema_version(self) -> int | None:
        """The version of the tables that are there; None where there are none. Makes nothing."""

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""

    def write(self, sql: str, parameters: Parameters) -> list[Row]:
        """One statement, committed when this returns."""

    def transaction(self, body: Callable[[Run], T]) -> T:
        """Run *body* in one write transaction."""

    def add_batch(self, jobs: Sequence[NewJob], also: Callable[[Run], Added] | None = None) -> list[int]:
        """Insert many jobs without unique keys in one transaction and return their ids in order.

        *also* is called before, and what it returns after that, both in the same transaction.
        """

    def upkeep(self) -> None:
        """What the database needs from time to time; called once a second from a thread of each worker."""

    def free_bytes(self) -> int | None:
        """What is left on the disk of the database; None where that is not known here."""

    def check_platform(self) -> None:
        """Raise NotSupported, with the reason, where no worker of this database can run."""

    async def connect(self) -> LoopLink:
        """A connection for a worker's loop, in a thread of its own."""

    def connect_light(self) -> Link:
        """A connection for what may be said twice and may be undone by a power cut, such as heartbeats."""

    def presence(self, worker_id: str) -> Presence:
        """Take the lock of a new worker and open its ear."""

    def wake_others(self, ready: Ready = (), *, at_once: bool = False) -> None:
        """Tell the workers of other processes that there is news. Never raises, and waits for nothing.

        *at_once*: before this returns, however long that takes: this process ends.

        *ready*: the (queue, kind) of jobs that are ready, where that is all there is to know.
        """

    def close(self) -> None:
        """Close pooled connections."""

    def abandon(self) -> None:
        """After a fork, in the child: drop handles without closing the parent's."""
