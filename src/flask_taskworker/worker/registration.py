"""A worker's place among the others: its id, its lock, its row and its heartbeat."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection

from ..store.driver import Presence
from ..store.sql import Store
from .liveness import Heartbeat, News


class WorkerRegistration:
    """One worker's. For its loop only, unless said."""

    def __init__(
        self,
        store: Store,
        loop: asyncio.AbstractEventLoop,
        in_thread: Callable[[Callable[[], None]], Awaitable[None]],
        *,
        news: News,
        on_wake: Callable[[Collection[tuple[str, str]]], None],
        info: Callable[[], dict[str, object]],
    ) -> None:
        self._store = store
        self._loop = loop
        self._in_thread = in_thread
        self._news = news
        self._on_wake = on_wake
        self._info = info
        self._presence: Presence | None = None
        self._heartbeat: Heartbeat | None = None

    @property
    def is_failing(self) -> bool:
        """Whether the last beat did not reach the database. Safe from any thread."""
        return self._heartbeat is not None and self._heartbeat.is_failing

    @property
    def is_current(self) -> bool:
        """Whether jobs may begin: False after a gap of a lease, until a beat has reached the database again."""
        return self._heartbeat is not None and self._heartbeat.is_current

    def give_up(self, *, declare: bool) -> None:
        """Beat no more: others get the jobs, at once where *declare* is set. Safe from any thread."""
        if self._heartbeat is not None:
            self._heartbeat.give_up(declare=declare)

    async def join(self) -> str:
        """Take a lock, then register: so no registered worker lacks its lock. Returns the new id. Raises StoreError."""
        worker_id = secrets.token_hex(6)
        # A server may take its time.
        await self._in_thread(lambda: self._take_presence(worker_id))
        presence = self._presence
        assert presence is not None
        presence.listen(self._loop, self._on_wake)
        try:
            self._heartbeat = Heartbeat(self._store, presence, worker_id, self._news, self._info)
            await self._in_thread(self._heartbeat.start)
        except BaseException:
            self.leave(holding=False)
            raise
        return worker_id

    def _take_presence(self, worker_id: str) -> None:
        self._presence = self._store.driver.presence(worker_id)

    async def stop_beating(self, *, holding: bool) -> None:
        """End the heartbeat, and deregister unless the worker still holds jobs."""
        heartbeat = self._heartbeat
        assert heartbeat is not None
        await self._in_thread(lambda: heartbeat.stop(holding=holding))

    def leave(self, *, holding: bool) -> None:
        """Free the lock; while jobs are held it stays until the process ends.

        A lock that is free would tell the others that they may run the jobs which a thread still runs here.
        """
        if self._presence is not None:
            self._presence.close(keep_lock=holding)
            self._presence = None

    def abandon(self) -> None:
        """After a fork, in the child: this place is the parent's. Its lock stays with the parent."""
        if self._presence is not None:
            self._presence.abandon()
