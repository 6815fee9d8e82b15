"""Waiting for SQLite's write lock, and sharing the commit that it allows.

The lock is waited for here, in short jittered steps: SQLite's own busy handler backs off in long ones, which starves
enqueues beside a busy worker for a second and more.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import aiosqlite
from sqlalchemy import Engine

from .driver import Parameters, Row, Run


class SharedCommit:
    """Lets threads that write at the same moment share one commit, and so one fsync.

    Each puts its statement into the line and takes the lock. Whoever gets it first runs all that stand in line and
    commits; the others find their statement done. All writes go through one connection, made when it is needed:
    there is one writer at a time anyway, and a pool costs an enqueue more than all the rest of its Python.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], lock_timeout: float) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._lock_timeout = lock_timeout
        self._lock = threading.Lock()
        self._line: deque[_Statement] = deque()

    def write(self, sql: str, parameters: Parameters) -> list[Row]:
        """Run one statement, alone or together with those of other threads."""
        statement = _Statement(sql, parameters)
        self._line.append(statement)
        with self._lock:
            if not statement.done:
                self._lead()
        if statement.error is not None:
            raise statement.error
        return statement.rows

    @contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """The connection, for a transaction that is not shared."""
        with self._lock:
            yield self._connected()

    def close(self) -> None:
        """Close the connection, after what is being written; the next write makes a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._connection.in_transaction:
            # Its rollback has failed, and nobody else is in here.
            self._connection.close()
            self._connection = None
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _lead(self) -> None:
        together = [self._line.popleft() for _ in range(len(self._line))]
        try:
            self._run_together(self._connected(), together)
        except BaseException as error:
            # Each thread raises it in its own line.
            failure = error if isinstance(error, Exception) else _interrupted()
            for statement in together:
                statement.error = statement.error or failure
            if failure is not error:
                raise
        finally:
            for statement in together:
                statement.done = True

    def _run_together(self, connection: sqlite3.Connection, together: Sequence[_Statement]) -> None:
        if len(together) == 1:
            (statement,) = together
            statement.rows = patiently(connection, statement.sql, statement.parameters, self._lock_timeout)
            return
        with Transaction(connection, self._lock_timeout) as run:
            for statement in together:
                statement.run(run)
                if not connection.in_transaction:
                    # Some errors, such as that of a full disk, undo all of it.
                    raise statement.error or sqlite3.OperationalError("the transaction has ended early")


def _interrupted() -> Exception:
    return sqlite3.OperationalError("the thread that wrote for several was interrupted")


class _Statement:
    """A statement in line, and what came of it."""

    __slots__ = ("done", "error", "parameters", "rows", "sql")

    def __init__(self, sql: str, parameters: Parameters) -> None:
        self.sql = sql
        self.parameters = parameters
        self.rows: list[Row] = []
        self.error: Exception | None = None
        self.done = False

    def run(self, run: Run) -> None:
        # A failing statement undoes itself alone; the others of the transaction stand (sqlite.org/lang_conflict.html).
        try:
            self.rows = run(self.sql, self.parameters)
        except Exception as error:  # noqa: BLE001 - a value that SQLite cannot hold raises errors of other kinds
            self.error = error


class Transaction:
    """``BEGIN IMMEDIATE … COMMIT`` on a sync connection, waiting for the lock."""

    def __init__(self, connection: sqlite3.Connection, lock_timeout: float) -> None:
        self._connection = connection
        self._lock_timeout = lock_timeout

    def __enter__(self) -> Run:
        patiently(self._connection, "BEGIN IMMEDIATE", {}, self._lock_timeout)
        return self._run

    def _run(self, sql: str, parameters: Parameters) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def __exit__(self, exception_type: object, *_: object) -> None:
        if exception_type is None:
            try:
                self._connection.execute("COMMIT")
                return
            except BaseException:
                self._roll_back()
                raise
        self._roll_back()

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


class Lent:
    """A pooled driver connection for the length of a with block."""

    __slots__ = ("_engine", "_fairy")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> sqlite3.Connection:
        self._fairy = self._engine.raw_connection()
        return cast(sqlite3.Connection, self._fairy.driver_connection)

    def __exit__(self, *_: object) -> None:
        self._fairy.close()


def plainly(connection: sqlite3.Connection, sql: str, parameters: Parameters) -> list[Row]:
    """One statement; raises at once where the lock is taken."""
    return connection.execute(sql, parameters).fetchall()


def patiently(connection: sqlite3.Connection, sql: str, parameters: Parameters, lock_timeout: float) -> list[Row]:
    """One statement, waiting for the lock."""
    started = time.monotonic()
    while True:
        try:
            return connection.execute(sql, parameters).fetchall()
        except sqlite3.OperationalError as error:
            time.sleep(_next_step(error, started, lock_timeout))


async def patiently_async(
    connection: aiosqlite.Connection, sql: str, parameters: Parameters, lock_timeout: Callable[[], float]
) -> list[Row]:
    """As :func:`patiently`, on an event loop; *lock_timeout* may change meanwhile."""
    started = time.monotonic()
    while True:
        try:
            return await fetch(connection, sql, parameters)
        except sqlite3.OperationalError as error:
            await asyncio.sleep(_next_step(error, started, lock_timeout()))


def _next_step(error: sqlite3.OperationalError, started: float, lock_timeout: float) -> float:
    """How long to wait before the next try: short at first, so that the lock goes round; longer once it is plain
    that somebody keeps it. Raises *error* when it is another error, or when the time is over."""
    waited = time.monotonic() - started
    # Errors of Python's own layer have no code.
    if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or waited > lock_timeout:
        raise error
    longest = 0.0005 if waited < 1 else 0.02
    return random.uniform(longest / 5, longest)


async def fetch(connection: aiosqlite.Connection, sql: str, parameters: Parameters) -> list[Row]:
    """One statement with all its rows: never ``execute``, which keeps the lock until they are fetched."""
    return cast(list[Row], await connection.execute_fetchall(sql, cast(Any, parameters)))
