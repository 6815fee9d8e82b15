"""SQLite: a pooled sync face over sqlite3, an async face over aiosqlite.

Connections are in autocommit mode; each write is one statement or ``BEGIN IMMEDIATE … COMMIT``, since a deferred
transaction that reads and then writes fails at once with "database is locked", whatever its timeout. The lock is
waited for here, in short jittered steps: SQLite's own busy handler backs off in long ones, which starves enqueues
beside a busy worker for a second and more.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import QueuePool

from ..errors import NotSupported, SchemaError, StoreError
from ..jobs import NewJob
from .driver import AsyncRun, Parameters, Row, Run
from .forks import Connection, after_fork_in_child
from .live import LiveDirectory, LivePresence, supported
from .migrations import found_version, is_ready, prepare_schema
from .statements import SQLITE, add_job_plainly

T = TypeVar("T")
log = logging.getLogger(__name__)
# At DEBUG aiosqlite logs every statement with its values: results, tracebacks, the text of mails.
_chatty = logging.getLogger("aiosqlite")
if _chatty.level == logging.NOTSET:
    _chatty.setLevel(logging.INFO)

OLDEST = (3, 35, 0)
"""UPDATE … RETURNING came with SQLite 3.35."""

CHECKPOINT_BYTES = 4 * 1024 * 1024
"""A write-ahead log above this size is copied back into the database."""

CHECKPOINT_PATIENCE = 0.5
"""Seconds to wait for the write lock: a checkpoint can be put off."""

CHECKPOINT_ENQUEUES = 256
"""An enqueuing process looks at the log's size once in so many writes."""


class SqliteDriver:
    """One SQLite file. The sync face is safe from any thread."""

    dialect = SQLITE

    def __init__(self, path: Path, *, durability: str, lock_timeout: float) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            raise NotSupported(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 or newer is needed.")
        self.path = path
        self.key = str(path)
        self._synchronous = durability.upper()
        self._lock_timeout = lock_timeout
        self._live = LiveDirectory(path)
        self._prepared = False
        self._preparing = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self._fresh()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self.engine = self._engine()
        self._commits = SharedCommit(self._lock_timeout)
        self._writes = 0

    def _engine(self) -> Engine:
        # Whoever returns a connection has ended its transaction: a rollback at each return would be a wasted call.
        return create_engine(
            "sqlite://",
            creator=self._open,
            poolclass=QueuePool,
            pool_size=8,
            max_overflow=64,
            pool_reset_on_return=None,
        )

    def _open(self) -> sqlite3.Connection:
        return _connect(self.path, self._synchronous, self._lock_timeout)

    # -- the sync face ----------------------------------------------------------------------------------------------

    def prepare(self, *, patience: float | None = None) -> None:
        """Create the file and its tables, or check them. Many processes may do so at once."""
        if self._pid != os.getpid():
            # uWSGI forks without Python's hooks.
            self.abandon()
        if self._prepared:
            self._check_identity()
        else:
            with self._preparing, translated(self.path):
                self._prepare_once(self._lock_timeout if patience is None else patience)

    def _prepare_once(self, lock_timeout: float) -> None:
        if self._prepared:
            return
        _create_file(self.path)
        connection = self._open()
        try:
            if not self._is_ready(connection):
                self._make_ready(connection, lock_timeout)
        finally:
            connection.close()
        self._identity = _identity(self.path)
        self._prepared = True

    def _make_ready(self, connection: sqlite3.Connection, lock_timeout: float) -> None:
        try:
            _enter_wal(connection, lock_timeout)
            with Transaction(connection, lock_timeout) as run:
                prepare_schema(SQLITE, run)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise StoreError(
                f"The tables for jobs are not yet in {self.path}, and somebody holds its lock, perhaps the transaction "
                "in which this was called. Make them beforehand, once: flask tasks db init"
            ) from error

    def _is_ready(self, connection: sqlite3.Connection) -> bool:
        """Looks only: the caller's own transaction may hold the write lock, and would wait for itself."""
        ((mode,),) = _plainly(connection, "PRAGMA journal_mode", {})
        return mode == "wal" and is_ready(SQLITE, functools.partial(_plainly, connection))

    def schema_version(self) -> int | None:
        """The version of the tables that are there; None where there are none. Makes nothing."""
        if not self.path.exists():
            return None
        with translated(self.path), closing(self._open()) as connection:
            return found_version(SQLITE, functools.partial(_plainly, connection))

    def _check_identity(self) -> None:
        """Refuse to write into a file that is no longer the one at this path: nobody would ever read it."""
        try:
            same = _identity(self.path) == self._identity
        except OSError:
            same = False
        if not same:
            raise SchemaError(
                f"The database file {self.path} was deleted or replaced while in use. Put the file back, or restart "
                "this process to work with the new one."
            )

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        with translated(self.path), _Lent(self.engine) as connection:
            return _patiently(connection, sql, parameters, self._lock_timeout)

    def write(self, sql: str, parameters: Parameters) -> list[Row]:
        """One statement, committed when this returns; threads that write at once share a commit."""
        with translated(self.path):
            rows = self._commits.write(self.engine, sql, parameters)
        self._look_after_log()
        return rows

    def transaction(self, body: Callable[[Run], T]) -> T:
        """Run *body* in one write transaction."""
        with translated(self.path), self._commits.alone(), _Lent(self.engine) as connection:
            with Transaction(connection, self._lock_timeout) as run:
                return body(run)

    def add_batch(self, jobs: Sequence[NewJob]) -> list[int]:
        """Insert many jobs in one transaction and return their ids in order.

        The write lock is held from the first row to the last, so AUTOINCREMENT numbers them without a gap.
        """
        with translated(self.path), self._commits.alone(), _Lent(self.engine) as connection:
            with Transaction(connection, self._lock_timeout):
                connection.executemany(_ADD_BATCH, [(*job, job.state) for job in jobs])
                ((last,),) = connection.execute("SELECT last_insert_rowid()").fetchall()
        self._look_after_log()
        return list(range(last - len(jobs) + 1, last + 1))

    def _look_after_log(self) -> None:
        """With no worker alive nobody else keeps the write-ahead log short."""
        self._writes += 1
        if self._writes % CHECKPOINT_ENQUEUES == 1:
            try:
                self.upkeep()
            except StoreError as error:
                # What was written stands; its caller must not be told otherwise.
                log.warning("the write-ahead log could not be shortened: %s", error)

    def upkeep(self) -> None:
        """Copy a long write-ahead log back into the database.

        SQLite up to 3.51.2 can corrupt a file when two checkpoints race with a commit that resets the log
        (sqlite.org/wal.html, "the WAL-reset bug"). So automatic checkpoints are off, and this one holds the write lock.
        """
        try:
            size = os.stat(f"{self.path}-wal").st_size
        except OSError:
            return
        if size > CHECKPOINT_BYTES:
            with translated(self.path), _Lent(self.engine) as lock, _Lent(self.engine) as worker:
                with Transaction(lock, CHECKPOINT_PATIENCE):
                    worker.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    # -- the worker's faces -----------------------------------------------------------------------------------------

    def check_platform(self) -> None:
        """Raise NotSupported, with the reason, where workers cannot run."""
        supported()

    async def connect(self) -> SqliteLink:
        """A link for a worker's loop, its connections in threads of their own."""
        with translated(self.path):
            durable = await self._connect_async(self._synchronous)
            try:
                light = await self._connect_async("NORMAL")
            except BaseException:
                await durable.close()
                raise
        return SqliteLink(durable, light, self.path, self._lock_timeout)

    async def _connect_async(self, synchronous: str) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(_uri(self.path), **_OPTIONS)
        connection.text_factory = _any_text
        try:
            for pragma in _pragmas(synchronous):
                await _patiently_async(connection, pragma, {}, self._lock_timeout)
        except BaseException:
            await connection.close()
            raise
        return connection

    def connect_thread(self) -> ThreadLink:
        """A connection for a heartbeat thread. Beats need no fsync: after a power cut nobody is alive."""
        with translated(self.path):
            return ThreadLink(_connect(self.path, "NORMAL", self._lock_timeout), self.path)

    def presence(self, worker_id: str) -> LivePresence:
        """Take the lock of a new worker and open its ear."""
        with translated(self._live.path):
            return LivePresence(self._live, worker_id)

    def wake_others(self) -> None:
        """Tell the workers of other processes that there is news."""
        self._live.wake_others()

    def close(self) -> None:
        """Close pooled connections."""
        self.engine.dispose()
        self._live.close()

    def abandon(self) -> None:
        """After a fork, in the child: begin anew with connections of its own."""
        after_fork_in_child()
        _inherited.append(self.engine.pool)
        self.engine.dispose(close=False)
        self._live.abandon()
        self._preparing = threading.Lock()
        self._fresh()


_inherited: list[Any] = []
"""Pools that a fork brought along. Where it came in the middle of a transaction, nothing may close them."""


class SharedCommit:
    """Lets threads that write at the same moment share one commit, and so one fsync.

    Each puts its statement into the line and takes the lock. Whoever gets it first runs all that stand in line and
    commits; the others find their statement done.
    """

    def __init__(self, lock_timeout: float) -> None:
        self._lock_timeout = lock_timeout
        self._lock = threading.Lock()
        self._line: deque[_Statement] = deque()

    def write(self, engine: Engine, sql: str, parameters: Parameters) -> list[Row]:
        """Run one statement, alone or together with those of other threads."""
        statement = _Statement(sql, parameters)
        self._line.append(statement)
        with self._lock:
            if not statement.done:
                self._lead(engine)
        if statement.error is not None:
            raise statement.error
        return statement.rows

    def alone(self) -> threading.Lock:
        """The lock, for a transaction that is not shared."""
        return self._lock

    def _lead(self, engine: Engine) -> None:
        together = [self._line.popleft() for _ in range(len(self._line))]
        failure: Exception = sqlite3.OperationalError("the thread that wrote for several was interrupted")
        done = False
        try:
            with _Lent(engine) as connection:
                self._run_together(connection, together)
            done = True
        except Exception as error:  # noqa: BLE001 - each thread raises it in its own line
            failure = error
        finally:
            for statement in together:
                statement.error = statement.error or (None if done else failure)
                statement.done = True

    def _run_together(self, connection: sqlite3.Connection, together: Sequence[_Statement]) -> None:
        if len(together) == 1:
            together[0].run(lambda sql, p: _patiently(connection, sql, p, self._lock_timeout))
            return
        with Transaction(connection, self._lock_timeout) as run:
            for statement in together:
                statement.run(run)
                if not connection.in_transaction:
                    # Some errors, such as that of a full disk, undo all of it.
                    raise statement.error or sqlite3.OperationalError("the transaction has ended early")


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
        _patiently(self._connection, "BEGIN IMMEDIATE", {}, self._lock_timeout)
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


class _Lent:
    """A pooled driver connection for the length of a with block."""

    __slots__ = ("_engine", "_fairy")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> sqlite3.Connection:
        self._fairy = self._engine.raw_connection()
        return cast(sqlite3.Connection, self._fairy.driver_connection)

    def __exit__(self, *_: object) -> None:
        self._fairy.close()


class SqliteLink:
    """The worker's connections. One statement at a time; only ``execute_fetchall``, which never leaves the lock held.

    ``synchronous`` belongs to a connection, so there are two: the light one commits without waiting for the disk.
    """

    def __init__(
        self, durable: aiosqlite.Connection, light: aiosqlite.Connection, path: Path, lock_timeout: float
    ) -> None:
        self._durable = durable
        self._light = light
        self._path = path
        self._lock_timeout = lock_timeout
        self._one_at_a_time = asyncio.Lock()

    async def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        with translated(self._path):
            async with self._one_at_a_time:
                return await _patiently_async(self._light, sql, parameters, self._lock_timeout)

    async def write(self, sql: str, parameters: Parameters, *, durable: bool = True) -> list[Row]:
        """One statement in a transaction of its own, waiting for the lock."""
        connection = self._durable if durable else self._light
        with translated(self._path):
            async with self._one_at_a_time:
                return await _patiently_async(connection, sql, parameters, self._lock_timeout)

    async def transaction(self, body: Callable[[AsyncRun], Awaitable[T]]) -> T:
        """Run *body* in ``BEGIN IMMEDIATE … COMMIT``; a cancellation of the caller is looked at afterwards."""
        task = asyncio.ensure_future(self._transaction(body))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    async def _transaction(self, body: Callable[[AsyncRun], Awaitable[T]]) -> T:
        with translated(self._path):
            async with self._one_at_a_time:
                await _patiently_async(self._durable, "BEGIN IMMEDIATE", {}, self._lock_timeout)
                run = functools.partial(_fetch, self._durable)
                try:
                    result = await body(run)
                    await run("COMMIT", {})
                    return result
                finally:
                    if self._durable.in_transaction:
                        await run("ROLLBACK", {})

    async def close(self) -> None:
        """Close the connections and end their threads."""
        try:
            await self._light.close()
        finally:
            await self._durable.close()


async def _fetch(connection: aiosqlite.Connection, sql: str, parameters: Parameters) -> list[Row]:
    return cast(list[Row], await connection.execute_fetchall(sql, cast(Any, parameters)))


class ThreadLink:
    """A heartbeat thread's connection. It waits for the lock no longer than a beat."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        with translated(self._path):
            return _patiently(self._connection, sql, parameters, lock_timeout=1.0)

    def write(self, sql: str, parameters: Parameters) -> list[Row]:
        """One statement in a transaction of its own."""
        with translated(self._path):
            return _patiently(self._connection, sql, parameters, lock_timeout=1.0)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


_ADD_BATCH = re.sub(r":\w+", "?", add_job_plainly())
"""Positional parameters, which executemany takes twice as fast; they stand in the order of a NewJob and its state."""


# -- connections -----------------------------------------------------------------------------------------------------


_OPTIONS: dict[str, Any] = {
    "uri": True,
    "isolation_level": None,
    "timeout": 0,
    "check_same_thread": False,
    "factory": Connection,
}


def _connect(path: Path, synchronous: str, lock_timeout: float) -> sqlite3.Connection:
    connection: sqlite3.Connection = sqlite3.connect(_uri(path), **_OPTIONS)
    connection.text_factory = _any_text
    try:
        # The first of them reads the file, which is locked while another process opens it after a crash, or was the
        # last to close it.
        for pragma in _pragmas(synchronous):
            _patiently(connection, pragma, {}, lock_timeout)
    except BaseException:
        connection.close()
        raise
    return connection


def _any_text(content: bytes) -> str:
    """Text that is no UTF-8 must harm its own row alone, not all that are read with it."""
    return content.decode("utf-8", "backslashreplace")


def _uri(path: Path) -> str:
    # A file that is gone must be an error, never an empty queue in its place.
    return f"{path.as_uri()}?mode=rw"


def _pragmas(synchronous: str) -> tuple[str, ...]:
    return (
        f"PRAGMA synchronous = {synchronous}",
        "PRAGMA wal_autocheckpoint = 0",
        f"PRAGMA journal_size_limit = {CHECKPOINT_BYTES}",
        "PRAGMA mmap_size = 0",
        "PRAGMA trusted_schema = OFF",
        "PRAGMA cache_size = -16384",
    )


def _create_file(path: Path) -> None:
    """Make an empty file for its owner alone; SQLite gives its companions the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return


def _enter_wal(connection: sqlite3.Connection, lock_timeout: float) -> None:
    ((mode,),) = _patiently(connection, "PRAGMA journal_mode = WAL", {}, lock_timeout)
    if mode != "wal":
        raise NotSupported(
            f"SQLite cannot use a write-ahead log here (journal mode {mode!r}). "
            "Put the database on a local file system."
        )


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


# -- waiting for the lock --------------------------------------------------------------------------------------------


def _plainly(connection: sqlite3.Connection, sql: str, parameters: Parameters) -> list[Row]:
    return connection.execute(sql, parameters).fetchall()


def _patiently(connection: sqlite3.Connection, sql: str, parameters: Parameters, lock_timeout: float) -> list[Row]:
    started = time.monotonic()
    while True:
        try:
            return connection.execute(sql, parameters).fetchall()
        except sqlite3.OperationalError as error:
            time.sleep(_next_step(error, started, lock_timeout))


async def _patiently_async(
    connection: aiosqlite.Connection, sql: str, parameters: Parameters, lock_timeout: float
) -> list[Row]:
    started = time.monotonic()
    while True:
        try:
            return await _fetch(connection, sql, parameters)
        except sqlite3.OperationalError as error:
            await asyncio.sleep(_next_step(error, started, lock_timeout))


def _next_step(error: sqlite3.OperationalError, started: float, lock_timeout: float) -> float:
    """How long to wait before the next try: short at first, so that the lock goes round; longer once it is plain
    that somebody keeps it. Raises *error* when it is another error, or when the time is over."""
    waited = time.monotonic() - started
    # Errors of Python's own layer have no code.
    if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or waited > lock_timeout:
        raise error
    longest = 0.0005 if waited < 1 else 0.02
    return random.uniform(longest / 5, longest)


class translated:
    """Turns SQLite's errors into ours, with what to do about them."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, exception_type: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"SQLite at {self._path}: {error}. {_remedy(error)}") from error
        if isinstance(error, OSError):
            remedy = (
                _CHECK_PATH if error.filename is not None else "Look at the limits of this process and at the disk."
            )
            raise StoreError(f"{self._path}: {error.strerror or error}. {remedy}") from error


_CHECK_PATH = "Check that the path in TASKER_DATABASE_URI exists and that this user may write there."

_REMEDIES = {
    sqlite3.SQLITE_BUSY: "Another process kept the write lock beyond TASKER_LOCK_TIMEOUT: find it, or wait longer.",
    sqlite3.SQLITE_FULL: "Free some disk space.",
    sqlite3.SQLITE_READONLY: "Make the file and its folder writable for this user.",
    sqlite3.SQLITE_CANTOPEN: _CHECK_PATH,
    sqlite3.SQLITE_NOTADB: "The file is not a database: move it away, or set TASKER_DATABASE_URI to another.",
    sqlite3.SQLITE_CORRUPT: "The file is damaged: stop all processes and restore it from a backup.",
    sqlite3.SQLITE_IOERR: "Check the disk.",
}


def _remedy(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return _REMEDIES.get(code, "See https://www.sqlite.org/rescode.html for what it means.")
