"""Waiting for SQLite's write lock, and sharing the commit that it allows.

The lock is waited for here, in short jittered steps: SQLite's own busy handler backs off in long ones, which starves
enqueues beside a busy worker for a second and more.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import cast

from sqlalchemy import Engine

from ...errors import StoreError
from ..driver import Parameters, Row, Run
from .turnstile import Turn

Patience = Callable[[], float]
"""How many seconds to wait for the lock; asked while waiting, since a stop shortens it."""

_ANSWERS = (sqlite3.Error, StoreError)
"""What a statement may raise. Anything else was raised beside it, by a signal handler: a TimeoutError for example."""


class SharedCommit:
    """Lets threads that write at the same moment share one commit, and so one fsync.

    Each puts its statement into the line and takes the lock. The first thread that gets it runs all that stand in line,
    and commits; the others find their statement done. All writes go through one connection, made when it is needed:
    there is one writer at a time anyway, and a pool's share in an enqueue is more than a third of its Python.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], patience: Patience) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._patience = patience
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._line: deque[_Statement] = deque()
        self._must_close = False

    def write(self, sql: str, parameters: Parameters) -> list[Row]:
        """Run one statement, alone or together with those of other threads."""
        self._refuse_nested()
        statement = _Statement(sql, parameters)
        self._line.append(statement)
        try:
            with self._lock:
                # A leader that was interrupted may have taken it out of the line and not run it.
                while not statement.done:
                    self._lead(statement)
        finally:
            if self._must_close:
                self.close()
        if statement.error is not None:
            raise statement.error
        return statement.rows

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is not shared, on the connection."""
        self._refuse_nested()
        started = time.monotonic()
        try:
            with self._lock:
                self._owner = get_ident()
                try:
                    connection = self._connected()
                    with WriteTransaction(connection, self._patience, started):
                        yield connection
                finally:
                    self._owner = None
        finally:
            if self._must_close:
                self.close()

    def _refuse_nested(self) -> None:
        """Signal handlers and finalizers run inside whatever their thread does; they would wait for themselves."""
        if self._owner == get_ident() and self._lock.locked():
            raise sqlite3.OperationalError(
                "this thread is in the middle of a write. A signal handler, or a __del__, must not enqueue: have it "
                "set a flag, or start a thread"
            )

    def close(self) -> None:
        """Close the connection, at once or after what is being written; the next write makes a new one.

        Never waits: finalizers call it, inside whatever their thread does, and so does the end of the process.
        """
        self._must_close = True
        if self._lock.acquire(blocking=False):
            try:
                self._must_close = False
                self._drop()
            finally:
                self._lock.release()

    def _drop(self) -> None:
        # In this order: a closed connection must not stay here.
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._connection.in_transaction:
            # Its rollback has failed, and no other thread is in here.
            self._drop()
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _lead(self, own: _Statement) -> None:
        if own not in self._line:
            self._line.append(own)
        together: list[_Statement] = []
        transaction: WriteTransaction | None = None
        self._owner = get_ident()
        try:
            while self._line:
                together.append(self._line.popleft())
            connection = self._connected()
            # The thread that came last has the most time left.
            started = together[-1].started
            if len(together) == 1:
                own.rows = patiently(connection, own.sql, own.parameters, self._patience, started)
            else:
                transaction = WriteTransaction(connection, self._patience, started)
                with transaction as run:
                    for statement in together:
                        statement.run(run)
                        if not transaction.is_open:
                            # Some errors, such as that of a full disk, undo all of it.
                            raise statement.error or sqlite3.OperationalError("the transaction has ended early")
        except BaseException as error:
            # Each thread raises it in its own line. An interruption often comes right after the commit.
            if transaction is None or not transaction.committed:
                failure = error if isinstance(error, _ANSWERS) else _interrupted()
                for statement in together:
                    statement.error = statement.error or failure
            # What a signal handler raises is for this thread alone, and says nothing about the commit.
            if not isinstance(error, _ANSWERS):
                raise
        finally:
            # Before the lock is free: the number may be another thread's then.
            self._owner = None
            for statement in together:
                statement.done = True


def _interrupted() -> Exception:
    return sqlite3.OperationalError("the thread that wrote for several was interrupted")


class _Statement:
    """A statement in line, and what came of it."""

    __slots__ = ("done", "error", "parameters", "rows", "sql", "started")

    def __init__(self, sql: str, parameters: Parameters) -> None:
        self.started = time.monotonic()
        self.sql = sql
        self.parameters = parameters
        self.rows: list[Row] = []
        self.error: Exception | None = None
        self.done = False

    def run(self, run: Run) -> None:
        # A failing statement undoes itself alone; the others of the transaction stand (sqlite.org/lang_conflict.html).
        try:
            self.rows = run(self.sql, self.parameters)
        except (*_ANSWERS, ValueError, OverflowError) as error:  # the latter two for values that SQLite cannot hold
            self.error = error


class WriteTransaction:
    """``BEGIN IMMEDIATE … COMMIT`` on a sync connection, waiting for the lock.

    *started*: since when the caller has waited (``time.monotonic``); now, where it is not given.
    """

    def __init__(self, connection: sqlite3.Connection, patience: Patience, started: float | None = None) -> None:
        self._connection = connection
        self._patience = patience
        self._started = started
        self.committed: bool = False
        """Whether it is stored, whatever was raised since."""

    @property
    def is_open(self) -> bool:
        """Whether it has neither been committed nor undone."""
        return self._connection.in_transaction

    def __enter__(self) -> Run:
        try:
            patiently(self._connection, "BEGIN IMMEDIATE", {}, self._patience, self._started)
        except BaseException:
            # An interruption right after it must not leave the lock with an unused connection.
            self._roll_back()
            raise
        return self._run

    def _run(self, sql: str, parameters: Parameters) -> list[Row]:
        return self._connection.execute(sql, parameters).fetchall()

    def __exit__(self, exception_type: object, *_: object) -> None:
        if exception_type is not None:
            self._roll_back()
            return
        try:
            self._connection.execute("COMMIT")
            self.committed = True
        except _ANSWERS:
            self._roll_back()
            raise
        except BaseException:
            # A signal handler has raised: before the commit, or after it.
            self.committed = not self.is_open
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


class PooledConnection:
    """A pooled driver connection for the length of a with block."""

    __slots__ = ("_engine", "_fairy")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> sqlite3.Connection:
        self._fairy = self._engine.raw_connection()
        return cast(sqlite3.Connection, self._fairy.driver_connection)

    def __exit__(self, *_: object) -> None:
        if self._fairy.driver_connection is not None and self._fairy.driver_connection.in_transaction:
            self._fairy.invalidate()
        self._fairy.close()


def plainly(connection: sqlite3.Connection, sql: str, parameters: Parameters) -> list[Row]:
    """One statement; raises at once where the lock is taken."""
    return connection.execute(sql, parameters).fetchall()


def patiently(
    connection: sqlite3.Connection, sql: str, parameters: Parameters, patience: Patience, started: float | None = None
) -> list[Row]:
    """One statement, waiting for the lock. *started*: since when the caller waits (``time.monotonic``)."""
    started = time.monotonic() if started is None else started
    turn: Turn | None = None
    try:
        while True:
            try:
                return connection.execute(sql, parameters).fetchall()
            except sqlite3.OperationalError as error:
                step = _next_step(error, started, patience())
            if turn is None:
                turn = Turn(getattr(connection, "directory", ""))
            turn.wait(step)
    finally:
        if turn is not None:
            turn.end()


def _next_step(error: sqlite3.OperationalError, started: float, lock_timeout: float) -> float:
    """How long to wait before the next try: short at first, so that the lock goes round; longer once it is plain
    that another connection keeps it. Raises *error* when it is another error, or when the time is over."""
    waited = time.monotonic() - started
    # Errors of Python's own layer have no code.
    if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or waited > lock_timeout:
        raise error
    longest = 0.0005 if waited < 1 else 0.02
    return random.uniform(longest / 5, longest)
