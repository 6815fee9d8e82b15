"""A worker's presence on PostgreSQL: its advisory lock, which the server frees when the session ends, and its ear.

The lock's absence alone proves nothing: a restarted server frees all of them, and so does an administrator who ends
sessions. Behind a pooler that lends sessions for a transaction there are neither locks nor notifications: then deaths
are noticed by missing beats alone, and news are found by looking.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable

import psycopg

from ...core.loggers import Logger, get_logger
from ...errors import StoreError
from ..driver import Other, Ready
from .connections import PostgresqlLink, PostgresqlServer, in_words

log: Logger = get_logger("store")

CHANNEL = "taskworker"
LONGEST_PAYLOAD = 7000
"""Bytes; the server takes 7,999. What does not fit is left to a look at the database."""

SUSPECT_BEATS = 2
"""A worker whose lock was absent in this many of the observer's beats, and that did not beat meanwhile, is dead."""

_LISTEN_BACK_OFF = (0.1, 4.0)

_LOOK = (
    "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000)::bigint, "
    "ARRAY(SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted "
    "AND objsubid = 1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"
)
# Never waits: a session of ours that the server has not yet missed may still hold it, for hours after a partition.
_TAKE = "SELECT pg_try_advisory_lock(:key)"


class AdvisoryPresence:
    """A worker's lock and ear. All but :meth:`listen` and :meth:`close` is for the heartbeat's thread."""

    def __init__(self, server: PostgresqlServer, worker_id: str) -> None:
        self._server = server
        self._link = PostgresqlLink(server, repeats=True)
        self._key = _lock_key(worker_id)
        self._session = 0
        self._has_lock = False
        self._held: frozenset[int] = frozenset()
        self._seen_held: set[str] = set()
        self._absent: dict[str, tuple[int, int]] = {}
        self._ear: asyncio.Task[None] | None = None
        self._is_closed = False
        self.server_started_at: int | None = None
        self.renew()

    def renew(self) -> None:
        """See who is there, and take the lock again if the session that held it is gone. Raises StoreError."""
        ((self.server_started_at, held),) = self._link.read(_LOOK, {})
        self._held = frozenset(held)
        if self._link.sessions != self._session:
            self._session = self._link.sessions
            self._has_lock = False
            self._seen_held.clear()
            self._absent.clear()
        if not self._has_lock:
            ((self._has_lock,),) = self._link.write(_TAKE, {"key": self._key})

    def is_dead(self, other: Other) -> bool:
        """Whether the lock's absence proves a death.

        It must be absent in beats of ours in which the other's beat did not move. It proves nothing where the server
        was started after the other took its lock; nor, after we have lost our own session, for a worker whose lock we
        have not seen since: what cut us off may have cut it off too.
        """
        if _lock_key(other.id) in self._held:
            self._seen_held.add(other.id)
            self._absent.pop(other.id, None)
            return False
        if other.server_started_at != self.server_started_at:
            return False
        if self._session > 1 and other.id not in self._seen_held:
            return False
        beat, times = self._absent.get(other.id, (other.beat, 0))
        times = times + 1 if beat == other.beat else 1
        self._absent[other.id] = (other.beat, times)
        return times > SUSPECT_BEATS

    def forget(self, worker_id: str) -> None:
        """Nothing is left behind: the server freed the lock."""
        self._absent.pop(worker_id, None)
        self._seen_held.discard(worker_id)

    # -- the ear ----------------------------------------------------------------------------------------------------

    def listen(self, loop: asyncio.AbstractEventLoop, on_wake: Callable[[Ready], None]) -> None:
        """Call *on_wake* when a notification comes, through a connection of its own on *loop*.

        User code that cancels all tasks of the loop ends the task that listens; another one takes its place.
        """
        self._ear = loop.create_task(self._listen(on_wake), name="taskworker-ear")
        self._ear.add_done_callback(lambda _: None if self._is_closed else self.listen(loop, on_wake))

    async def _listen(self, on_wake: Callable[[Ready], None]) -> None:
        shortest, longest = _LISTEN_BACK_OFF
        pause = shortest
        while True:
            try:
                async with await self._server.open_async() as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    pause = shortest
                    # What was notified while the connection was broken is news, too.
                    on_wake(())
                    async for notification in connection.notifies():
                        on_wake(ready_in(notification.payload))
            except (psycopg.Error, StoreError) as error:
                log.warning("not listening for notifications, next try in %.1f s: %s", pause, in_words(error))
            except Exception:
                # A worker that hears nothing would not say so.
                log.exception("not listening for notifications, next try in %.1f s", pause)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, longest)

    def hurry(self, seconds: float) -> None:
        """After *seconds* wait for the server no more than a moment. Safe from any thread."""
        self._link.hurry(seconds)

    def close(self, *, keep_lock: bool = False) -> None:
        """Stop listening and free the lock; or keep it until the process ends."""
        self._is_closed = True
        if self._ear is not None:
            self._ear.cancel()
        if keep_lock:
            _kept.append(self)
        else:
            self._link.close()

    def abandon(self) -> None:
        """After a fork, in the child: the connections are the parent's, kept so that nothing closes them."""
        _kept.append(self)


def payload_of(ready: Ready) -> str:
    """What is ready, in the words of a notification; none where they would be too long."""
    words = json.dumps(sorted(ready), separators=(",", ":")) if ready else ""
    return words if len(words) <= LONGEST_PAYLOAD else ""


def ready_in(payload: str) -> Ready:
    """What is ready according to a notification; nothing where those are not our words: anybody may send one."""
    try:
        ready = {(queue, kind) for queue, kind in json.loads(payload)}
        # No statement takes half of a surrogate pair.
        "".join(queue for queue, _ in ready).encode()
    except (ValueError, TypeError, RecursionError):
        return ()
    return ready if all(kind in ("sync", "async", "held") for _, kind in ready) else ()


_kept: list[AdvisoryPresence] = []
"""Sessions that must last as long as this process, and those that a fork has brought along."""


def _lock_key(worker_id: str) -> int:
    try:
        return int(worker_id, 16)
    except ValueError:
        # No worker of ours made that row: no process holds a lock for it.
        return -1


class BeatsOnly:
    """The presence of a worker behind a pooler in transaction mode: it beats, and there is nothing else to see."""

    server_started_at: int | None = None

    def renew(self) -> None:
        """Nothing: it has no lock."""

    def is_dead(self, other: Other) -> bool:
        """Never proven here; 30 missed beats tell."""
        return False

    def forget(self, worker_id: str) -> None:
        """Nothing is left behind."""

    def listen(self, loop: asyncio.AbstractEventLoop, on_wake: Callable[[Ready], None]) -> None:
        """Nothing: no notification gets through."""

    def hurry(self, seconds: float) -> None:
        """Nothing is waited for."""

    def close(self, *, keep_lock: bool = False) -> None:
        """Nothing to close."""

    def abandon(self) -> None:
        """Nothing to let go."""
