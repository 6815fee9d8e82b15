"""PostgreSQL 13 and newer. Needs the extra ``postgres``.

A pool of connections for any thread, and one connection each for a worker's loop, heartbeat, presence and ear. Other
machines are woken by NOTIFY.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import psycopg
from sqlalchemy.engine import URL
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from ...core.loggers import Logger, get_logger
from ...core.rows import NewJob
from ...errors import ConnectionLost, NotSupported, StoreError
from ..driver import Added, LoopLink, Parameters, Presence, Ready, Row, Run
from ..migrations import STEPS, Step, found_version, prepare_schema
from ..statements import jobs as job_statements
from ..statements.jobs import POSTGRESQL, add_alike, alike_pieces, batch_of, in_pieces
from .connections import (
    LAST_PATIENCE,
    DaemonCallThread,
    PatientConnection,
    PostgresqlLink,
    PostgresqlServer,
    fetch,
    has_ended,
    postgresql_errors,
)
from .presence import CHANNEL, AdvisoryPresence, BeatsOnly, payload_of

T = TypeVar("T")
log: Logger = get_logger("store")

OLDEST = 130_000
_SCHEMA_LOCK = 0x7461736B
"""The advisory lock under which processes that start at once make the schema, one after the other."""

NOTIFY_INTERVAL = 0.005
"""Seconds: bursts of news from one process become one NOTIFY in this time."""

_POOL_SIZE = 8
_POOL_MOST = 72


class PostgresqlDriver:
    """One PostgreSQL database. The sync face is safe from any thread."""

    dialect = POSTGRESQL

    def __init__(self, url: URL, *, listen: bool) -> None:
        self._server = PostgresqlServer(url, prepares=listen)
        self.key: str = self._server.key
        self._listen = listen
        self._prepared = False
        self._preparing = threading.Lock()
        self._fresh()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self._pool = self._new_pool()
        self._notifier = Notifier(self._notify)

    def _new_pool(self) -> QueuePool:
        # A returned connection has ended its transaction: a rollback at each return would be a round trip.
        return QueuePool(
            cast(Any, self._server.open),
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_MOST - _POOL_SIZE,
            reset_on_return=None,
        )

    # -- the sync face ----------------------------------------------------------------------------------------------

    def prepare(self, *, patience: float | None = None) -> None:
        """Create the tables or check them. Many processes may do so at once."""
        if self._pid != os.getpid():
            # uWSGI forks without Python's hooks.
            self.abandon()
        if not self._prepared:
            with self._preparing:
                self._prepare_once()

    def _prepare_once(self) -> None:
        if not self._prepared:
            if self._listen:
                with _Pooled(self._pool) as connection, postgresql_errors():
                    self._server.check_session(connection)
            self.transaction(make_schema)
            self._prepared = True

    def schema_version(self) -> int | None:
        """The version of the tables that are there; None where there are none. Makes nothing."""
        return found_version(POSTGRESQL, self.read)

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT. A connection that turns out to be broken is replaced once."""
        try:
            return self.write(sql, parameters)
        except ConnectionLost:
            return self.write(sql, parameters)

    def write(self, sql: str, parameters: Parameters) -> list[Row]:
        """One statement, committed when this returns. Raises ConnectionLost when that is unknown."""
        return self._write(sql, parameters, None)

    def _write(self, sql: str, parameters: Parameters, answer_within: Callable[[], float] | None) -> list[Row]:
        with _Pooled(self._pool, answer_within) as connection, postgresql_errors():
            return fetch(connection, sql, parameters)

    def transaction(self, body: Callable[[Run], T]) -> T:
        """Run *body* in one write transaction."""
        with _Pooled(self._pool) as connection, postgresql_errors(), connection.transaction():
            return body(functools.partial(fetch, connection))

    def add_batch(self, jobs: Sequence[NewJob], also: Callable[[Run], Added] | None = None) -> list[int]:
        """Insert many jobs in one transaction and return their ids in order; a repeat finds what the first stored."""
        ids: dict[str, int] = {}
        parts = list(alike_pieces(jobs))

        def body(run: Run) -> None:
            added = also(run) if also is not None else None
            for part in parts:
                # Each is written down when its turn comes: all of them may be a gigabyte.
                batch = batch_of([(job.uid, job.args) for job in part])
                values = {**part[0]._asdict(), "state": part[0].state, "batch": batch}
                ids.update({uid: job_id for job_id, uid in run(add_alike(POSTGRESQL), values)})
            if added is not None:
                # Those that were stored before have what belongs to them.
                added([(ids[job.uid], job) for job in jobs if job.uid in ids])

        body(self.write) if len(parts) == 1 and also is None else self.transaction(body)
        if len(ids) < len(jobs):
            for piece in in_pieces(jobs, lambda job: len(job.uid)):
                known = {"batch": batch_of([(job.uid,) for job in piece])}
                ids.update({uid: job_id for job_id, uid in self.read(job_statements.jobs_by_uid(POSTGRESQL), known)})
        return [ids[job.uid] for job in jobs]

    def upkeep(self) -> None:
        """Nothing: the server looks after itself."""

    # -- the worker's faces -----------------------------------------------------------------------------------------

    def free_bytes(self) -> int | None:
        """Only the server knows."""
        return None

    def check_platform(self) -> None:
        """Raise NotSupported on Windows: psycopg cannot use the event loop there, which knows no signals either."""
        if sys.platform == "win32":
            raise NotSupported("Workers do not run on Windows. Enqueueing works here; run the worker on UNIX or WSL 2.")

    async def connect(self) -> LoopLink:
        """A connection for a worker's loop, in a thread of its own."""
        link, thread = PostgresqlLink(self._server, repeats=False), DaemonCallThread()
        try:
            await thread.run(link.connected)
        except BaseException:
            await thread.close()
            raise
        return LoopLink(link, thread)

    def connect_light(self) -> PostgresqlLink:
        """A connection for a heartbeat thread."""
        return PostgresqlLink(self._server, repeats=True)

    def presence(self, worker_id: str) -> Presence:
        """Take the advisory lock of a new worker."""
        return AdvisoryPresence(self._server, worker_id) if self._listen else BeatsOnly()

    def wake_others(self, ready: Ready = (), *, at_once: bool = False) -> None:
        """Tell the workers of other processes and machines that there is news; if not *at_once*, soon and in a thread.

        Also from behind a pooler, which lets notifications out, if not in: others may hear them.
        """
        if at_once:
            self._notify(ready)
        else:
            self._notifier.news(ready)

    def _notify(self, ready: Ready) -> None:
        try:
            # A process that ends sends its last news: not for longer than that.
            self._write(_NOTIFY, {"payload": payload_of(ready)}, lambda: LAST_PATIENCE)
        except StoreError as error:
            log.debug("no worker was notified; workers look by themselves: %s", error)

    def close(self) -> None:
        """Send what is to be notified and close pooled connections; they are opened again when needed."""
        self._notifier.close()
        pool, self._pool = self._pool, self._new_pool()
        pool.dispose()

    def abandon(self) -> None:
        """After a fork, in the child: the connections are the parent's."""
        _inherited.append(self._pool)
        self._preparing = threading.Lock()
        self._fresh()


# A crash of the server ends its listeners' connections too, and a worker that listens again looks: no disk needed.
_NOTIFY = f"SELECT set_config('synchronous_commit', 'off', true), pg_notify('{CHANNEL}', :payload)"

_inherited: list[Any] = []
"""Pools that a fork brought along: kept, since the garbage collector would close their connections."""


class Notifier:
    """Turns bursts of news into single notifications, in a thread that starts with the first."""

    def __init__(self, notify: Callable[[Ready], None]) -> None:
        self._notify = notify
        self._adding = threading.Lock()
        self._ready: set[tuple[str, str]] = set()
        self._is_more = False
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def news(self, ready: Ready = ()) -> None:
        """Notify soon; *ready* is all that there is to know, if it says anything. Safe from any thread."""
        with self._adding:
            self._ready.update(ready)
            self._is_more |= not ready
        self._news.set()
        if self._thread is None:
            with self._lock:
                self._start_thread()

    def _start_thread(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._work, name="taskworker-notify", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # What is to be told is stored already: its caller must not be told otherwise.
            log.debug("no thread to notify in: %s", error)
            self._flush()
        else:
            self._thread = thread

    def _work(self) -> None:
        while not self._closing.is_set():
            self._news.wait()
            self._flush()
            self._closing.wait(NOTIFY_INTERVAL)

    def _flush(self) -> None:
        if self._news.is_set():
            self._news.clear()
            with self._adding:
                ready, self._ready = self._ready, set()
                is_more, self._is_more = self._is_more, False
            if ready or is_more:
                self._notify(() if is_more else ready)

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


class _Pooled:
    """A pooled connection for the length of a with block; a broken one is thrown away."""

    __slots__ = ("_answer_within", "_fairy", "_pool")

    def __init__(self, pool: QueuePool, answer_within: Callable[[], float] | None = None) -> None:
        self._pool = pool
        self._answer_within = answer_within

    def __enter__(self) -> psycopg.Connection[Any]:
        while True:
            try:
                self._fairy: Any = self._pool.connect()
            except PoolTimeout as error:
                raise StoreError(
                    f"PostgreSQL: {_POOL_MOST} threads of this process wait for the server at once. Look whether it "
                    "hangs."
                ) from error
            connection = cast(PatientConnection, self._fairy.driver_connection)
            connection.answer_within = self._answer_within
            if not has_ended(connection):
                return connection
            self._fairy.invalidate()

    def __exit__(self, *_: object) -> None:
        if self._fairy.driver_connection.closed:
            self._fairy.invalidate()
        self._fairy.close()


def make_schema(run: Run, steps: Sequence[Step] = STEPS) -> None:
    """Make the tables or take them to this version, one process after the other. Inside a transaction."""
    ((version, encoding),) = run(
        "SELECT current_setting('server_version_num')::integer, current_setting('server_encoding')", {}
    )
    if version < OLDEST:
        raise NotSupported(f"PostgreSQL {version // 10_000} is too old: {OLDEST // 10_000} or newer is needed.")
    if encoding != "UTF8":
        raise NotSupported(f"The database's encoding is {encoding}: UTF8 is needed. Create one: createdb -E UTF8 NAME")
    run("SELECT pg_advisory_xact_lock(:key)", {"key": _SCHEMA_LOCK})
    # A change of a table that waits for a transaction has everything else wait behind it. It is tried again later.
    run("SELECT set_config('lock_timeout', '2s', true)", {})
    prepare_schema(POSTGRESQL, run, steps)
