"""PostgreSQL 13 and newer: a pooled sync face and an async face over psycopg 3. Needs the extra ``postgres``.

Differs from SQLite in what a server brings. Connections come and go: whatever may or may not have been committed when
one broke is told as :class:`ConnectionLost`. Other machines are woken by NOTIFY. A worker's presence is a session's
advisory lock; a restarted server frees them all, so its absence alone proves nothing.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.pool import QueuePool

from ..errors import ConnectionLost, NotSupported, StoreError
from ..jobs import NewJob
from . import statements
from .driver import AsyncRun, Other, Parameters, Row, Run
from .migrations import prepare_schema
from .statements import POSTGRESQL, batch_of

T = TypeVar("T")
log = logging.getLogger(__name__)

OLDEST = 130_000
CHANNEL = "taskworker"
_SCHEMA_LOCK = 0x7461736B
"""The advisory lock under which processes that start at once make the schema, one after the other."""

NOTIFY_INTERVAL = 0.005
"""Seconds: bursts of news from one process become one NOTIFY in so much time."""

SUSPECT_BEATS = 2
"""A worker whose lock was absent in so many of the observer's beats, and that did not beat meanwhile, is dead."""

_LISTEN_BACK_OFF = (0.1, 5.0)


class PostgresqlDriver:
    """One PostgreSQL database. The sync face is safe from any thread."""

    dialect = POSTGRESQL

    def __init__(self, url: URL, *, listen: bool) -> None:
        self.key = url.set(password=None).render_as_string()
        self._conninfo = _conninfo(url)
        self._listen = listen
        self._prepared = False
        self._preparing = threading.Lock()
        self._fresh()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self.engine = self._engine()
        self._notifier = Notifier(self._notify)

    def _engine(self) -> Engine:
        # Whoever returns a connection has ended its transaction: a rollback at each return would be a round trip.
        return create_engine(
            "postgresql+psycopg://",
            creator=self._open,
            poolclass=QueuePool,
            pool_size=8,
            max_overflow=64,
            pool_reset_on_return=None,
        )

    def _open(self) -> psycopg.Connection[Any]:
        # Prepared statements need a session of one's own, which PgBouncer in transaction mode does not give.
        return psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=5 if self._listen else None)

    # -- the sync face ----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Create the tables or check them. Many processes may do so at once."""
        if self._pid != os.getpid():
            # uWSGI forks without Python's hooks.
            self.abandon()
        if not self._prepared:
            with self._preparing:
                self._prepare_once()

    def _prepare_once(self) -> None:
        if not self._prepared:
            self.transaction(_make_schema)
            self._prepared = True

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT. A connection that turns out to be broken is replaced once."""
        try:
            return self.write(sql, parameters)
        except ConnectionLost:
            return self.write(sql, parameters)

    def write(self, sql: str, parameters: Parameters) -> list[Row]:
        """One statement, committed when this returns. Raises ConnectionLost when that is unknown."""
        with translated(), _Lent(self.engine) as connection:
            return _fetch(connection, sql, parameters)

    def transaction(self, body: Callable[[Run], T]) -> T:
        """Run *body* in one write transaction."""
        with translated(), _Lent(self.engine) as connection, connection.transaction():
            return body(functools.partial(_fetch, connection))

    def add_batch(self, jobs: Sequence[NewJob]) -> list[int]:
        """Insert many jobs in one statement and return their ids in order; a repeat finds what the first one stored."""
        batch = batch_of([(*job, job.state) for job in jobs])
        rows = self.write(statements.add_jobs(POSTGRESQL), {"batch": batch})
        if len(rows) < len(jobs):
            rows = self.read(statements.jobs_by_uid(POSTGRESQL), {"batch": batch_of([(job.uid,) for job in jobs])})
        ids = {uid: job_id for job_id, uid in rows}
        return [ids[job.uid] for job in jobs]

    def upkeep(self) -> None:
        """Nothing: the server looks after itself."""

    # -- the worker's faces -----------------------------------------------------------------------------------------

    def check_platform(self) -> None:
        """Raise NotSupported on Windows: psycopg cannot use the event loop there, which knows no signals either."""
        if sys.platform == "win32":
            raise NotSupported("Workers do not run on Windows. Enqueueing works here; run the worker on UNIX or WSL 2.")

    async def connect(self) -> PostgresqlLink:
        """A connection for a worker's loop."""
        link = PostgresqlLink(self._conninfo, prepare_threshold=5 if self._listen else None)
        await link.open()
        return link

    def connect_thread(self) -> ThreadLink:
        """A connection for a heartbeat thread."""
        return ThreadLink(self._open)

    def presence(self, worker_id: str) -> PostgresqlPresence:
        """Take the advisory lock of a new worker."""
        return PostgresqlPresence(self._open, self._conninfo, worker_id, listen=self._listen)

    def wake_others(self) -> None:
        """Tell the workers of other processes and machines that there is news, soon and in a thread."""
        if self._listen:
            self._notifier.news()

    def _notify(self) -> None:
        try:
            self.write(f"NOTIFY {CHANNEL}", {})
        except StoreError as error:
            log.debug("nobody was notified; workers look by themselves: %s", error)

    def close(self) -> None:
        """Send what is to be notified and close pooled connections."""
        self._notifier.close()
        self.engine.dispose()

    def abandon(self) -> None:
        """After a fork, in the child: the connections are the parent's."""
        _inherited.append(self.engine.pool)
        self.engine.dispose(close=False)
        self._preparing = threading.Lock()
        self._fresh()


_inherited: list[Any] = []
"""Pools that a fork brought along: kept, since the garbage collector would close their connections."""


class Notifier:
    """Turns bursts of news into single notifications, in a thread that starts with the first."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def news(self) -> None:
        """Notify soon. Safe from any thread."""
        self._news.set()
        if self._thread is None:
            with self._lock:
                self._start_thread()

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="taskworker-notify", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while not self._closing.is_set():
            self._news.wait()
            self._flush()
            self._closing.wait(NOTIFY_INTERVAL)

    def _flush(self) -> None:
        if self._news.is_set():
            self._news.clear()
            self._notify()

    def close(self) -> None:
        """Notify what is pending, then end the thread; it starts again when needed."""
        self._flush()
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._closing.set()
                self._news.set()
                thread.join()
                self._news.clear()
                self._closing.clear()


class PostgresqlLink:
    """The worker's connection. One statement at a time; it reconnects when it is used after a loss."""

    def __init__(self, conninfo: str, *, prepare_threshold: int | None) -> None:
        self._conninfo = conninfo
        self._prepare_threshold = prepare_threshold
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def open(self) -> None:
        """Connect."""
        with translated():
            await self._connected()

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, prepare_threshold=self._prepare_threshold
            )
        return self._connection

    async def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        return await self.write(sql, parameters)

    async def write(self, sql: str, parameters: Parameters, *, durable: bool = True) -> list[Row]:
        """One statement in a transaction of its own, which a cancellation of the caller does not interrupt."""
        return await _shielded(self._write(sql, parameters))

    async def _write(self, sql: str, parameters: Parameters) -> list[Row]:
        with translated():
            async with self._one_at_a_time:
                return await self._fetch(sql, parameters)

    async def transaction(self, body: Callable[[AsyncRun], Awaitable[T]]) -> T:
        """Run *body* in one transaction, which a cancellation of the caller does not interrupt."""
        return await _shielded(self._transaction(body))

    async def _transaction(self, body: Callable[[AsyncRun], Awaitable[T]]) -> T:
        with translated():
            async with self._one_at_a_time, (await self._connected()).transaction():
                return await body(self._fetch)

    async def _fetch(self, sql: str, parameters: Parameters) -> list[Row]:
        cursor = await (await self._connected()).execute(cast(Any, _translate(sql)), parameters)
        return await cursor.fetchall() if cursor.description else []

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()


async def _shielded(call: Awaitable[T]) -> T:
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class ThreadLink:
    """A heartbeat thread's connection; it reconnects when it is used after a loss."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        self._connection: psycopg.Connection[Any] | None = None

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        return self.write(sql, parameters)

    def write(self, sql: str, parameters: Parameters) -> list[Row]:
        """One statement in a transaction of its own."""
        with translated():
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            return _fetch(self._connection, sql, parameters)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


class PostgresqlPresence:
    """A worker's advisory lock, and its ear. All but :meth:`listen` and :meth:`close` is for the heartbeat's thread."""

    def __init__(
        self, connect: Callable[[], psycopg.Connection[Any]], conninfo: str, worker_id: str, *, listen: bool
    ) -> None:
        self._link = ThreadLink(connect)
        self._conninfo = conninfo
        self._key = _lock_key(worker_id)
        self._may_listen = listen
        self._backend: tuple[int, int] | None = None
        self._reconnected = False
        self._seen_held: set[str] = set()
        self._absent: dict[str, tuple[int, int]] = {}
        self._ear: asyncio.Task[None] | None = None
        self.server_started_at: int | None = None
        self.renew()

    def renew(self) -> None:
        """Take the lock again if the session that held it is gone. Raises StoreError while there is no server."""
        ((pid, backend_start, started_at),) = self._link.read(_WHO, {})
        if (pid, backend_start) == self._backend:
            return
        self._link.write("SELECT pg_advisory_lock(:key)", {"key": self._key})
        self._reconnected = self._backend is not None
        self._seen_held.clear()
        self._absent.clear()
        self._backend, self.server_started_at = (pid, backend_start), started_at

    def is_dead(self, other: Other) -> bool:
        """Whether the lock's absence proves a death.

        It must be absent in two of our beats in which the other's beat did not move. It proves nothing where the
        server was started after the other took its lock; nor, after we have lost our own session, for a worker whose
        lock we have not seen since: what cut us off may have cut it off too.
        """
        if self._is_held(other.id):
            self._seen_held.add(other.id)
            self._absent.pop(other.id, None)
            return False
        if other.server_started_at != self.server_started_at:
            return False
        if self._reconnected and other.id not in self._seen_held:
            return False
        beat, times = self._absent.get(other.id, (other.beat, 0))
        times = times + 1 if beat == other.beat else 1
        self._absent[other.id] = (other.beat, times)
        return times > SUSPECT_BEATS

    def _is_held(self, worker_id: str) -> bool:
        key = _lock_key(worker_id)
        return bool(self._link.read(_HOLDS, {"high": key >> 32, "low": key & 0xFFFFFFFF}))

    def forget(self, worker_id: str) -> None:
        """Nothing is left behind: the server freed the lock."""
        self._absent.pop(worker_id, None)
        self._seen_held.discard(worker_id)

    # -- the ear ----------------------------------------------------------------------------------------------------

    def listen(self, loop: asyncio.AbstractEventLoop, on_wake: Callable[[], None]) -> None:
        """Call *on_wake* when a notification comes, through a connection of its own on *loop*."""
        if self._may_listen:
            self._ear = loop.create_task(self._listen(on_wake))

    async def _listen(self, on_wake: Callable[[], None]) -> None:
        shortest, longest = _LISTEN_BACK_OFF
        pause = shortest
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    pause = shortest
                    # What was notified while nobody listened is news, too.
                    on_wake()
                    async for _ in connection.notifies():
                        on_wake()
            except psycopg.Error as error:
                log.warning("not listening for notifications, next try in %.1f s: %s", pause, _words(error))
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, longest)

    def close(self, *, keep_lock: bool = False) -> None:
        """Stop listening and free the lock; or keep it until the process ends."""
        if self._ear is not None:
            self._ear.cancel()
        if keep_lock:
            _kept.append(self)
        else:
            self._link.close()

    def abandon(self) -> None:
        """After a fork, in the child: the connections are the parent's, kept so that nothing closes them."""
        _inherited.append(self)


_kept: list[PostgresqlPresence] = []
"""Sessions whose locks must last as long as this process."""

_WHO = (
    "SELECT pid, (extract(epoch FROM backend_start) * 1000)::bigint, "
    "(extract(epoch FROM pg_postmaster_start_time()) * 1000)::bigint FROM pg_stat_activity WHERE pid = pg_backend_pid()"
)
_HOLDS = (
    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid = :high "
    "AND objid = :low AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def _lock_key(worker_id: str) -> int:
    return int(worker_id, 16)


# -- helpers -----------------------------------------------------------------------------------------------------------


def _make_schema(run: Run) -> None:
    ((version,),) = run("SELECT current_setting('server_version_num')::integer", {})
    if version < OLDEST:
        raise NotSupported(f"PostgreSQL {version // 10_000} is too old: 13 or newer is needed.")
    run("SELECT pg_advisory_xact_lock(:key)", {"key": _SCHEMA_LOCK})
    prepare_schema(POSTGRESQL, run)


def _fetch(connection: psycopg.Connection[Any], sql: str, parameters: Parameters) -> list[Row]:
    cursor = connection.execute(cast(Any, _translate(sql)), parameters)
    return cursor.fetchall() if cursor.description else []


_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")


@functools.lru_cache(maxsize=256)
def _translate(sql: str) -> str:
    """``:name`` in psycopg's words."""
    return _PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%"))


class _Lent:
    """A pooled driver connection for the length of a with block; a broken one is thrown away."""

    __slots__ = ("_engine", "_fairy")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> psycopg.Connection[Any]:
        self._fairy = self._engine.raw_connection()
        return cast("psycopg.Connection[Any]", self._fairy.driver_connection)

    def __exit__(self, *_: object) -> None:
        connection = self._fairy.driver_connection
        if connection is not None and connection.closed:
            self._fairy.invalidate()
        self._fairy.close()


class translated:
    """Turns psycopg's errors into ours, with what to do about them."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, exception_type: object, error: BaseException | None, _: object) -> None:
        if not isinstance(error, psycopg.Error):
            return
        words = _words(error)
        if isinstance(error, psycopg.OperationalError) and error.sqlstate in _LOST:
            raise ConnectionLost(f"PostgreSQL: {words}. The connection was lost; try again.") from error
        remedy = _REMEDIES.get((error.sqlstate or "")[:2], "Check TASKER_DATABASE_URI and the server's log.")
        raise StoreError(f"PostgreSQL: {words}. {remedy}") from error


# None: libpq noticed the loss itself. 57P01 to 57P03: the server shuts down, crashed, or starts.
_LOST = frozenset({None, "57P01", "57P02", "57P03", "08000", "08003", "08006"})

_REMEDIES = {
    "28": "Check the user and the password in TASKER_DATABASE_URI.",
    "3D": "Create the database, or correct its name in TASKER_DATABASE_URI.",
    "42": "Give this user the right to create and change tables, or run: flask tasks db sql.",
    "53": "The server is out of disk space, memory or connections: free some.",
    "25": "The server is read-only, perhaps a standby: give TASKER_DATABASE_URI the primary's address.",
}


def _words(error: psycopg.Error) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _conninfo(url: URL) -> str:
    parts = url.translate_connect_args(username="user", database="dbname")
    query = {key: value if isinstance(value, str) else value[0] for key, value in url.query.items()}
    # A peer that vanished without a word must be noticed before its lease ends.
    keepalive = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 15_000}
    defaults = {"connect_timeout": 10, "application_name": "Flask-TaskWorker"}
    return make_conninfo(**{**defaults, **keepalive, **query, **parts})
