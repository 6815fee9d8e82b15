"""The database as one session of a test sees it: what the test has not committed included, and rolled back with it.

Many tests run inside a transaction that is rolled back at their end. With this driver jobs are written, looked at and
run through that transaction's connection, so that they see its rows and go with it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

from sqlalchemy import Connection
from sqlalchemy.orm import Session, scoped_session

from ..client.sessions import CallerTransaction
from ..client.threads import ThreadPool
from ..core.rows import NewJob
from ..store.driver import Added, Driver, LoopLink, Parameters, Row, Run
from ..store.migrations import found_version, is_ready, prepare_schema
from ..store.statements import jobs as job_statements

T = TypeVar("T")


class SessionDriver:
    """Stands for *driver*. *session*: as in ``task.using(session=…)``, on the same database. Safe from any thread.

    It is also the presence of its workers: no other process knows of them.
    """

    server_started_at: int | None = None

    def __init__(self, driver: Driver, session: object) -> None:
        self.real = driver
        self.dialect: job_statements.Dialect = driver.dialect
        self.key: str = driver.key
        given = session() if isinstance(session, scoped_session) else session
        bound = given.get_bind() if isinstance(given, Session) else given
        # The connection of a session that is bound to an engine changes with each of its transactions.
        self._source = bound if isinstance(bound, Connection) else given
        self.gate: threading.Lock = threading.Lock()
        """Held while a job runs: its session may be on the same connection, which the worker then leaves alone."""
        self._lock = threading.RLock()
        self._is_ready = False

    def _call(self, call: Callable[[Run], T], *, within_savepoint: bool) -> T:
        with self._lock:
            if isinstance(self._source, Connection):
                _begin(self._source)
            transaction = CallerTransaction(self._source)
            with transaction.connection.begin_nested() if within_savepoint else nullcontext():
                return call(transaction.run)

    # -- the database ------------------------------------------------------------------------------------------------

    def prepare(self, *, patience: float | None = None) -> None:
        """Make the tables in the session's transaction if there are none."""
        if not self._is_ready:
            if not self._call(lambda run: is_ready(self.dialect, run), within_savepoint=False):
                self._call(lambda run: prepare_schema(self.dialect, run), within_savepoint=True)
            self._is_ready = True

    def schema_version(self) -> int | None:
        """The version of the tables that are there."""
        return self._call(lambda run: found_version(self.dialect, run), within_savepoint=False)

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        return self._call(lambda run: run(sql, parameters), within_savepoint=False)

    def write(self, sql: str, parameters: Parameters) -> list[Row]:
        """One statement, in a savepoint."""
        return self._call(lambda run: run(sql, parameters), within_savepoint=True)

    def transaction(self, body: Callable[[Run], T]) -> T:
        """Run *body* in a savepoint."""
        return self._call(body, within_savepoint=True)

    def add_batch(self, jobs: Sequence[NewJob], also: Callable[[Run], Added] | None = None) -> list[int]:
        """Insert many jobs and return their ids in order."""

        def body(run: Run) -> list[int]:
            added = also(run) if also is not None else None
            ids = [run(job_statements.ADD_JOB, {**job._asdict(), "state": job.state})[0][0] for job in jobs]
            if added is not None:
                added(list(zip(ids, jobs, strict=True)))
            return ids

        return self.transaction(body)

    # -- a worker ------------------------------------------------------------------------------------------------------

    async def connect(self) -> LoopLink:
        """The connection of a worker."""
        return LoopLink(WorkerLink(self, self.gate), _Thread())

    def connect_light(self) -> WorkerLink:
        """That of its heartbeat, and of a job that sends mails."""
        return WorkerLink(self, nullcontext())

    def presence(self, worker_id: str) -> SessionDriver:
        """The presence of a worker."""
        return self

    def is_dead(self, other: object) -> bool:
        """Nothing is known of workers elsewhere."""
        return False

    def _nothing(self, *args: Any, **options: Any) -> None:
        """What only other processes need."""

    def free_bytes(self) -> int | None:
        """What is left on the disk of the database."""
        return self.real.free_bytes()

    upkeep: ClassVar[Callable[..., None]] = _nothing
    check_platform: ClassVar[Callable[..., None]] = _nothing
    wake_others: ClassVar[Callable[..., None]] = _nothing
    listen: ClassVar[Callable[..., None]] = _nothing
    renew: ClassVar[Callable[..., None]] = _nothing
    forget: ClassVar[Callable[..., None]] = _nothing
    hurry: ClassVar[Callable[..., None]] = _nothing
    close: ClassVar[Callable[..., None]] = _nothing
    abandon: ClassVar[Callable[..., None]] = _nothing


class WorkerLink:
    """The connection as a worker has it: while *gate* is held, none of its statements comes between those of a job."""

    def __init__(self, driver: SessionDriver, gate: AbstractContextManager[object]) -> None:
        self._driver = driver
        self._gate = gate

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        with self._gate:
            return self._driver.read(sql, parameters)

    def write(self, sql: str, parameters: Parameters, *, durable: bool = True) -> list[Row]:
        """One statement, in a savepoint."""
        with self._gate:
            return self._driver.write(sql, parameters)

    def transaction(self, body: Callable[[Run], T], *, durable: bool = True) -> T:
        """Run *body* in a savepoint."""
        with self._gate:
            return self._driver.transaction(body)

    def hurry(self, seconds: float) -> None:
        """Nothing: no lock is waited for."""

    def close(self) -> None:
        """Nothing: the connection is the test's."""


class _Thread:
    """Where a worker's statements run."""

    def __init__(self) -> None:
        self._pool = ThreadPool(1, "taskworker-db")

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call there."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


def _begin(connection: Connection) -> None:
    if not connection.in_transaction():
        connection.begin()
    raw: Any = connection.connection.dbapi_connection
    if isinstance(raw, sqlite3.Connection) and not raw.in_transaction:
        # The driver begins a transaction with the first write only, which would make a savepoint the outermost.
        connection.exec_driver_sql("BEGIN")
