"""SQLite: a pooled face for any thread, and connections of their own for workers.

Connections are in autocommit mode; each write is one statement or ``BEGIN IMMEDIATE … COMMIT``, since a deferred
transaction that reads and then writes fails at once with "database is locked", whatever its timeout. How the lock is
waited for is in ``commits.py``; what happens when the file is deleted, replaced or damaged, in ``guard.py``.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import aiosqlite
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import QueuePool

from ...core.loggers import Logger, get_logger
from ...core.rows import NewJob
from ...errors import NotSupported, StoreError
from ..driver import Added, LoopLink, Parameters, Ready, Row, RowRefused, Run
from ..migrations import found_version, is_ready, prepare_schema, store_id_in
from ..statements.jobs import SQLITE, add_alike, alike_pieces, batch_of, last_number
from .commits import Patience, PooledConnection, SharedCommit, WriteTransaction, patiently, plainly
from .forks import ForkSafeConnection, after_fork_in_child
from .guard import FileGuard, refuse_remnants
from .holder import holder_in_words
from .live import LiveDirectory, LivePresence, supported
from .own_lock import refuse_own_lock

T = TypeVar("T")
log: Logger = get_logger("store")

OLDEST = (3, 37, 0)
"""STRICT tables came with SQLite 3.37."""

CHECKPOINT_BYTES = 4 * 1024 * 1024
"""A write-ahead log above this size is copied back into the database."""

KEPT_LOG_BYTES = 4 * CHECKPOINT_BYTES
"""What stays of a log that a busy time has made long: a commit that need not lengthen it is quicker."""

QUIET_BEATS = 60
"""A log that is long and has hardly anything in it is copied back this rarely."""

CHECKPOINT_PATIENCE = 0.5
"""Seconds to wait for the write lock: a checkpoint can be put off."""

LAID_OUT_BYTES = CHECKPOINT_BYTES * 19 // 20
"""A log that is shorter than half of this is made so long in advance, once."""

LAYING_OUT_ENQUEUES = 16
"""A process that enqueues more than a few times does so."""

LAST_PATIENCE = 1.0
"""Seconds that a worker waits for the write lock when its time is over."""

SPARE_SPACE = 10
"""It is not made longer if the disk has less than this many times the space that it takes."""

LAYING_OUT_PATIENCE = 0.1
"""Seconds to wait for the write lock, which this then holds for some 5 ms."""

GIVEN_BACK_PAGES = 512
"""Unused pages that the file is cut by at once, which holds the write lock for some 10 ms."""

KEPT_PAGES = 1024
"""Unused pages that stay in the file: 4 MB."""

LONG_LOG_BYTES = 2 * KEPT_LOG_BYTES
"""A write-ahead log above this size, which a reader keeps from being cut, is warned of; again at each doubling."""

CHECKPOINT_ENQUEUES = 256
"""A process that enqueues checks the log's size every this many writes."""

INSPECT_BEATS = 3
"""A worker checks the content of the file every this many beats."""

CHECKED_BYTES = 64 * 1024 * 1024
"""A file up to this size is checked when a worker starts, which takes 50 ms at most."""


class SqliteDriver:
    """One SQLite file. The sync face is safe from any thread."""

    dialect = SQLITE

    def __init__(self, path: Path, *, durability: str, lock_timeout: float) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            raise NotSupported(f"SQLite {sqlite3.sqlite_version} is too old: 3.37 or newer is needed.")
        self.path = path
        self.key: str = str(path)
        self._synchronous = durability.upper()
        self._lock_timeout = lock_timeout
        self._live = LiveDirectory(path)
        self._prepared = False
        self._preparing = threading.Lock()
        self._guard = FileGuard(path)
        self._beats = 0
        self._quiet_beats = 0
        self._fresh()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self.engine: Engine = self._engine()
        self._commits = SharedCommit(self._open, self._patience)
        self._writes = 0
        self._warn_at = LONG_LOG_BYTES

    def _engine(self) -> Engine:
        # A returned connection has ended its transaction: a rollback at each return would be a wasted call.
        return create_engine(
            "sqlite://",
            creator=self._open,
            poolclass=QueuePool,
            pool_size=8,
            max_overflow=64,
            pool_reset_on_return=None,
        )

    def _open(self, synchronous: str | None = None) -> sqlite3.Connection:
        return _connect(self.path, synchronous or self._synchronous, self._patience)

    def _patience(self) -> float:
        refuse_own_lock(self.path)
        return self._lock_timeout

    # -- the sync face ----------------------------------------------------------------------------------------------

    def prepare(self, *, patience: float | None = None) -> None:
        """Create the file and its tables, or check them. Many processes may do so at once."""
        if self._pid != os.getpid():
            # uWSGI forks without Python's hooks.
            self.abandon()
        if self._prepared:
            self._guard.check()
        else:
            with self._preparing, sqlite_errors(self.path):
                self._prepare_once(self._patience if patience is None else lambda: patience)

    def _prepare_once(self, patience: Patience) -> None:
        if self._prepared:
            return
        refuse_remnants(self.path, others_live=self._live.has_living())
        # An empty file for its owner alone; SQLite gives its companions the same mode.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with closing(self._open()) as connection:
            run = functools.partial(plainly, connection)
            # Looks only: the caller's own transaction may hold the write lock, and would wait for itself.
            if run("PRAGMA journal_mode", {}) != [("wal",)] or not is_ready(SQLITE, run):
                self._make_ready(connection, patience)
            self._guard.remember(store_id_in(run))
        self._prepared = True

    def _make_ready(self, connection: sqlite3.Connection, patience: Patience) -> None:
        try:
            # Before anything is written: a file that has tables keeps the mode that it has.
            patiently(connection, "PRAGMA auto_vacuum = INCREMENTAL", {}, patience)
            ((mode,),) = patiently(connection, "PRAGMA journal_mode = WAL", {}, patience)
            if mode != "wal":
                raise NotSupported(
                    f"SQLite cannot use a write-ahead log here (journal mode {mode!r}). "
                    "Put the database on a local file system."
                )
            with WriteTransaction(connection, patience) as run:
                prepare_schema(SQLITE, run)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise StoreError(
                f"The tables for jobs are not yet in {self.path}, and another transaction holds its lock, perhaps "
                "the one in which this was called. Make them beforehand, once: flask tasks db init"
            ) from error

    def schema_version(self) -> int | None:
        """The version of the tables that are there; None where there are none. Makes nothing."""
        if not self.path.exists():
            return None
        with sqlite_errors(self.path), closing(self._open()) as connection:
            return found_version(SQLITE, functools.partial(plainly, connection))

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        with sqlite_errors(self.path, self._guard), PooledConnection(self.engine) as connection:
            return patiently(connection, sql, parameters, self._patience)

    def write(self, sql: str, parameters: Parameters) -> list[Row]:
        """One statement, committed when this returns; threads that write at once share a commit."""
        with sqlite_errors(self.path, self._guard):
            rows = self._commits.write(sql, parameters)
        self._look_after_log()
        return rows

    def transaction(self, body: Callable[[Run], T]) -> T:
        """Run *body* in one write transaction."""
        with sqlite_errors(self.path, self._guard), self._commits.transaction() as connection:
            return body(functools.partial(plainly, connection))

    def add_batch(self, jobs: Sequence[NewJob], also: Callable[[Run], Added] | None = None) -> list[int]:
        """Insert many jobs in one transaction and return their ids in order.

        They are numbered here, under the write lock: SQLite promises no order in which it takes rows. One statement
        for many rows takes half the time of one for each.
        """
        with sqlite_errors(self.path, self._guard), self._commits.transaction() as connection:
            added = also(functools.partial(plainly, connection)) if also is not None else None
            ((last,),) = connection.execute(last_number()).fetchall()
            first = last + 1
            for alike in alike_pieces(jobs):
                batch = batch_of([(job.uid, job.args) for job in alike])
                values = {**alike[0]._asdict(), "state": alike[0].state, "batch": batch, "first": first}
                connection.execute(add_alike(SQLITE), values)
                first += len(alike)
            if added is not None:
                added(list(zip(range(last + 1, first), jobs, strict=True)))
        self._look_after_log()
        return list(range(last + 1, first))

    def _look_after_log(self) -> None:
        """Without a living worker nothing else keeps the write-ahead log short."""
        self._writes += 1
        if self._writes == LAYING_OUT_ENQUEUES:
            self._lay_out_log()
        if self._writes % CHECKPOINT_ENQUEUES == 1:
            try:
                self.upkeep()
            except StoreError as error:
                # What was written stands; its caller must not be told otherwise.
                log.warning("the write-ahead log could not be shortened: %s", error)

    def upkeep(self) -> None:
        """Look at the content of the file, cut it where most of it is unused, and copy a long log back into it.

        SQLite up to 3.51.2 can corrupt a file when two checkpoints race with a commit that resets the log
        (sqlite.org/wal.html, "the WAL-reset bug"). So automatic checkpoints are off, and this one holds the write lock.
        """
        self._beats += 1
        if self._beats % INSPECT_BEATS == 1:
            self._inspect()
        # A damaged file must not be made worse.
        self._guard.check()
        self._quiet_beats -= 1
        size = self._log_size()
        is_long = size > KEPT_LOG_BYTES or (size > CHECKPOINT_BYTES and self._quiet_beats <= 0)
        # What is cut off leaves the file with a checkpoint.
        if self._cut() or is_long:
            with (
                sqlite_errors(self.path, self._guard),
                PooledConnection(self.engine) as lock,
                PooledConnection(self.engine) as worker,
            ):
                with WriteTransaction(lock, lambda: CHECKPOINT_PATIENCE):
                    ((_, pages, copied),) = worker.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            # How long the file is says nothing about what is in it now.
            self._quiet_beats = min(QUIET_BEATS, CHECKPOINT_BYTES // (4096 * max(1, pages)))
            self._warn_of_reader(held_back=copied < pages)

    def _cut(self) -> bool:
        """Cut some pages off the file if more are unused than used; whether there were any.

        The others stay: a queue that fills up and empties by turns need not lengthen its file each time.
        """
        if os.stat(self.path).st_size < KEPT_PAGES * 4096:
            return False
        with sqlite_errors(self.path, self._guard), PooledConnection(self.engine) as connection:
            look = functools.partial(plainly, connection, parameters={})
            ((pages,),), ((unused,),) = look("PRAGMA page_count"), look("PRAGMA freelist_count")
            if unused <= max(KEPT_PAGES, pages // 2) or look("PRAGMA auto_vacuum") == [(0,)]:
                return False
            with WriteTransaction(connection, lambda: CHECKPOINT_PATIENCE) as run:
                # Python takes one step of this statement, which is one page.
                for _ in range(GIVEN_BACK_PAGES):
                    run("PRAGMA incremental_vacuum", {})
            return True

    def _lay_out_log(self) -> None:
        """Have SQLite make the log's file long, with a transaction that is not committed.

        A commit that makes the file longer waits for the disk about twice as long as one within it: for the file
        system's journal, too. A page that does not fit into the cache goes to the log before the commit
        (sqlite.org/fileformat2.html#walformat); what is not committed is overwritten by the next writer.
        """
        missing = LAID_OUT_BYTES - self._log_size()
        try:
            free = shutil.disk_usage(self.path.parent).free
            if missing < LAID_OUT_BYTES // 2 or free < SPARE_SPACE * missing:
                return
            with closing(self._open()) as connection, suppress(_NotCommitted):
                connection.execute("PRAGMA cache_size = 10")
                with WriteTransaction(connection, lambda: LAYING_OUT_PATIENCE) as run:
                    run("CREATE TABLE taskworker_log_space (content BLOB)", {})
                    run("INSERT INTO taskworker_log_space VALUES (zeroblob(:size))", {"size": missing})
                    raise _NotCommitted
        except (sqlite3.Error, OSError) as error:
            # It is quicker with it, and as good without.
            log.debug("the write-ahead log is not laid out: %s", error)

    def _warn_of_reader(self, *, held_back: bool) -> None:
        """The log restarts only when no reader needs its pages any more."""
        size = self._log_size()
        if not held_back:
            self._warn_at = LONG_LOG_BYTES
        elif size >= self._warn_at:
            self._warn_at = 2 * size
            log.warning(
                "the write-ahead log %s-wal has grown to %.0f MB: an open read transaction holds "
                "it back. It is cut when that ends; find the process with: fuser -v %s-wal",
                self.path,
                size / 1e6,
                self.path,
            )

    def _inspect(self) -> None:
        """With a connection of its own, which has nothing cached. It only reads, so it needs no settings."""
        try:
            with closing(sqlite3.connect(_uri(self.path), **_OPTIONS)) as connection:
                self._guard.inspect(connection)
        except sqlite3.Error as error:
            self._guard.note(error)

    def _log_size(self) -> int:
        try:
            return os.stat(f"{self.path}-wal").st_size
        except OSError:
            return 0

    # -- the worker's faces -----------------------------------------------------------------------------------------

    def free_bytes(self) -> int | None:
        """What is left on the disk of the file."""
        return shutil.disk_usage(self.path.parent).free

    def check_platform(self) -> None:
        """Raise NotSupported, with the reason, where workers cannot run."""
        supported()

    async def connect(self) -> LoopLink:
        """The connections of a worker's loop, in aiosqlite's thread."""
        opened: list[sqlite3.Connection] = []

        def connect() -> sqlite3.Connection:
            opened.append(self._open())
            return opened[0]

        with sqlite_errors(self.path):
            thread = ConnectionThread(connect)
            await thread
            try:
                if os.stat(self.path).st_size + self._log_size() <= CHECKED_BYTES:
                    # Of a damaged file, half of the jobs may be missing, or run twice.
                    found = await thread.run(lambda: plainly(opened[0], "PRAGMA quick_check(1)", {}))
                    if found != [("ok",)]:
                        words, remedy = " ".join(found[0][0].split()), _REMEDIES[sqlite3.SQLITE_CORRUPT]
                        raise StoreError(f"SQLite at {self.path}: {words}. {remedy}")
                light = await thread.run(lambda: self._open("NORMAL"))
            except BaseException:
                await thread.close()
                raise
        return LoopLink(SqliteLink(opened[0], light, self._guard, self._patience), thread)

    def connect_light(self) -> SqliteLink:
        """A connection for a heartbeat thread. Beats need no fsync: after a power cut no worker is alive."""
        with sqlite_errors(self.path):
            light = self._open("NORMAL")
        return SqliteLink(light, light, self._guard, lambda: LAST_PATIENCE)

    def presence(self, worker_id: str) -> LivePresence:
        """Take the lock of a new worker and open its ear."""
        with sqlite_errors(self._live.path):
            return LivePresence(self._live, worker_id)

    def wake_others(self, ready: Ready = (), *, at_once: bool = False) -> None:
        """Tell the workers of other processes that there is news."""
        self._live.wake_others(ready)

    def close(self) -> None:
        """Close all connections of the sync face; new ones are made when needed."""
        self._commits.close()
        self.engine.dispose()
        self._live.close()

    def abandon(self) -> None:
        """After a fork, in the child: start afresh with connections of its own."""
        after_fork_in_child()
        _inherited.append((self.engine.pool, self._commits))
        self.engine.dispose(close=False)
        self._live.abandon()
        self._preparing = threading.Lock()
        self._fresh()


class _NotCommitted(Exception):
    """Rolls back."""


_inherited: list[Any] = []
"""What a fork brought along. Where it came in the middle of a transaction, nothing may close them."""


class ConnectionThread(aiosqlite.Connection):
    """aiosqlite's thread as a :class:`CallThread`: a whole transaction is one call there."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        # No process waits for it: a loop that user code has ended cannot close it. Before 0.22 it is the thread itself.
        cast(Any, getattr(self, "_thread", self)).daemon = True

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call there, to its end also where the caller is cancelled."""
        return cast(T, await cast(Any, self)._execute(call))


if not hasattr(aiosqlite.Connection, "_execute"):
    raise ImportError("This aiosqlite has another inside than Flask-TaskWorker needs: pip install 'aiosqlite<0.23'")


class SqliteLink:
    """A worker's connections. ``synchronous`` belongs to a connection, so the light one commits without the disk."""

    def __init__(
        self, durable: sqlite3.Connection, light: sqlite3.Connection, guard: FileGuard, patience: Patience
    ) -> None:
        self._durable = durable
        self._light = light
        self._guard = guard
        self._usual_patience = patience
        self._deadline = math.inf

    def hurry(self, seconds: float) -> None:
        """After *seconds* wait for the lock no more than a moment. Safe from any thread."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def _patience(self) -> float:
        return min(self._usual_patience(), max(LAST_PATIENCE, self._deadline - time.monotonic()))

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        return self.write(sql, parameters, durable=False)

    def write(self, sql: str, parameters: Parameters, *, durable: bool = True) -> list[Row]:
        """One statement in a transaction of its own, waiting for the lock."""
        self._guard.check()
        with sqlite_errors(self._guard.path, self._guard):
            return patiently(self._durable if durable else self._light, sql, parameters, self._patience)

    def transaction(self, body: Callable[[Run], T], *, durable: bool = True) -> T:
        """Run *body* in ``BEGIN IMMEDIATE … COMMIT``."""
        connection = self._durable if durable else self._light
        self._guard.check()
        with sqlite_errors(self._guard.path, self._guard), WriteTransaction(connection, self._patience) as run:
            return body(run)

    def close(self) -> None:
        """Close the connections."""
        self._light.close()
        # Twice does no harm: aiosqlite closes it, too.
        self._durable.close()


# -- connections -----------------------------------------------------------------------------------------------------


_OPTIONS: dict[str, Any] = {
    "uri": True,
    "isolation_level": None,
    "timeout": 0,
    "check_same_thread": False,
    "factory": ForkSafeConnection,
}


def _connect(path: Path, synchronous: str, patience: Patience) -> sqlite3.Connection:
    connection: ForkSafeConnection = sqlite3.connect(_uri(path), **_OPTIONS)
    connection.directory = f"{path}-live"
    # Text that is not UTF-8 must harm its own row alone, not all that are read with it.
    connection.text_factory = lambda content: content.decode("utf-8", "backslashreplace")
    try:
        # The first of them reads the file, which is locked while another process opens it after a crash, or was the
        # last to close it.
        for setting in (f"synchronous = {synchronous}", *_SETTINGS):
            patiently(connection, f"PRAGMA {setting}", {}, patience)
    except BaseException:
        connection.close()
        raise
    return connection


def _uri(path: Path) -> str:
    # A file that is gone must be an error, never an empty queue in its place.
    return f"{path.as_uri()}?mode=rw"


_SETTINGS = (
    *("wal_autocheckpoint = 0", f"journal_size_limit = {KEPT_LOG_BYTES}", "mmap_size = 0"),
    *("trusted_schema = OFF", "cache_size = -16384", "temp_store = MEMORY"),
)


class sqlite_errors:
    """Turns SQLite's errors into ours, with what to do about them."""

    __slots__ = ("_guard", "_path")

    def __init__(self, path: Path, guard: FileGuard | None = None) -> None:
        self._path = path
        self._guard = guard

    def __enter__(self) -> None:
        return None

    def __exit__(self, exception_type: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, _REFUSALS):
            raise RowRefused(f"SQLite at {self._path} refuses a value: {error}.") from error
        if isinstance(error, sqlite3.Error):
            if self._guard is not None:
                self._guard.note(error)
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_BUSY:
                remedy = holder_in_words(self._path)
            else:
                remedy = _REMEDIES.get(code, "See https://www.sqlite.org/rescode.html for what it means.")
            raise StoreError(f"SQLite at {self._path}: {error}. {remedy}") from error
        # Statements raise none. It is a signal handler's, a TimeoutError for example, and the commit may be done.
        if isinstance(error, OSError) and self._guard is None:
            remedy = (
                _CHECK_PATH if error.filename is not None else "Look at the limits of this process and at the disk."
            )
            raise StoreError(f"{self._path}: {error.strerror or error}. {remedy}") from error


_REFUSALS = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError, OverflowError, UnicodeError)

_CHECK_PATH = "Check that the path in TASKER_DATABASE_URI exists and that this user may write there."

_REMEDIES = {
    sqlite3.SQLITE_FULL: "Free some disk space.",
    sqlite3.SQLITE_READONLY: "Make the file and its folder writable for this user.",
    sqlite3.SQLITE_CANTOPEN: _CHECK_PATH,
    sqlite3.SQLITE_NOTADB: "The file is not a database: move it away, or set TASKER_DATABASE_URI to another.",
    sqlite3.SQLITE_CORRUPT: "The file is damaged: stop all processes and restore it from a backup.",
    sqlite3.SQLITE_IOERR: "Check the disk.",
}
