"""Whether the file at a path is still the database that this process has opened, and whole.

A connection to a file that was deleted or replaced goes on "accepting": into a file that is never read. One to
a file that was damaged beneath it may do so too, from its cache, and a checkpoint would then spread the damage. So the
path is looked at before each accept and each step of a worker, which costs one ``stat``, and the content every third
beat, with a connection of its own that has nothing cached.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import weakref
from pathlib import Path

from ...errors import DatabaseReplaced, SchemaError, StoreError

_GONE = (
    "The database file {} was deleted or replaced while in use. Put the file back, or restart this process to work "
    "with the new one."
)
_DAMAGED = (
    "SQLite at {}: {}. The file is damaged: stop all processes and restore it from a backup. Nothing is read from it "
    "or written to it by this process any more."
)
_LOCKED_OUT = (
    "The database file {} is no longer readable and writable for this user: its mode is {:#o}. Make it 0600 again."
)
_OPEN_TO_ALL = "Every user on this machine may write to {0} (mode {1:#o}). Run: chmod 600 {0}"
_REMNANTS = (
    "The database file {} is {}, but {}. An empty queue is not made in its place. Put the file back; or, if its jobs "
    "may be lost, stop all processes and remove {}."
)


def refuse_open_to_all(path: Path, mode: int) -> None:
    """Raise StoreError where every user may write to *path*: its rows decide what the workers run."""
    if mode & 0o002 and os.name != "nt":
        raise StoreError(_OPEN_TO_ALL.format(path, mode & 0o7777))


def _identity(path: str) -> tuple[int, int, int]:
    """What identifies a file: device, number and mode."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mode


class FileGuard:
    """Looks after one database file. Safe from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = str(path)
        self._seen: tuple[int, int, int] | None = None
        self._store_id: str | None = None
        self._damage: str | None = None
        self._replaced = False

    def remember(self, store_id: str | None) -> None:
        """The file that is at the path now is the one. Raises OSError, StoreError where every user may write to it."""
        seen = _identity(self._name)
        refuse_open_to_all(self.path, seen[2])
        self._seen = seen
        self._store_id = store_id
        _opened[self._name] = self

    def check(self) -> None:
        """Refuse a file that is not the one, or not whole. Costs one ``stat``.

        Raises DatabaseReplaced, SchemaError for a missing file, StoreError for a damaged or unreadable one, and for
        one to which every user may write.
        """
        if self._damage is not None:
            raise StoreError(_DAMAGED.format(self.path, self._damage))
        if self._replaced:
            raise DatabaseReplaced(_GONE.format(self.path))
        if self._seen is None:
            return
        try:
            now = _identity(self._name)
        except OSError as error:
            raise SchemaError(_GONE.format(self.path)) from error
        if now == self._seen:
            return
        if now[:2] != self._seen[:2]:
            raise DatabaseReplaced(_GONE.format(self.path))
        if not os.access(self.path, os.R_OK | os.W_OK):
            raise StoreError(_LOCKED_OUT.format(self.path, now[2] & 0o7777))
        refuse_open_to_all(self.path, now[2])
        self._seen = now

    def note(self, error: BaseException | None) -> None:
        """Remember an error that says the file is damaged: caches of this process cannot be trusted afterwards."""
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or code == sqlite3.SQLITE_IOERR_SHORT_READ:
            self._damage = str(error)

    def inspect(self, connection: sqlite3.Connection) -> None:
        """Look at the content, with a new *connection*: is it this store, and does it hold what was written last?"""
        try:
            rows = connection.execute(_LOOK).fetchall()
        except sqlite3.OperationalError as error:
            self._replaced = "no such table: taskworker_meta" in str(error)
            self.note(error)
        except sqlite3.Error as error:
            self.note(error)
        else:
            self._replaced = (rows[0][0] if rows else None) != self._store_id


_LOOK = "SELECT value, (SELECT max(id) FROM taskworker_job) FROM taskworker_meta WHERE name = 'store_id'"
"""The way to the newest job leads through the pages that were written last."""


_opened: weakref.WeakValueDictionary[str, FileGuard] = weakref.WeakValueDictionary()
"""The files that this process has open, by path; those of apps that are gone do not count."""


def refuse_remnants(path: Path, *, others_live: bool) -> None:
    """Raise SchemaError where *path* is missing or empty and something shows that it was not always so.

    To create the file then would delete what the write-ahead log still holds, or part the processes into two queues.
    *others_live*: whether a worker lives that has opened it.
    """
    # The log first: the process that makes the database writes into the file before anything is in the log.
    log = Path(f"{path}-wal")
    has_log = _size(log) > 0
    if _size(path) > 0:
        return
    if has_log:
        reason = f"its write-ahead log {log.name} is still there"
    elif others_live:
        reason = "workers of it are still alive"
    elif _is_open_here(path):
        reason = "this process still has it open, with its jobs"
    else:
        return
    state = "empty" if path.exists() else "missing"
    raise SchemaError(_REMNANTS.format(path, state, reason, f"{log} and {path}-live"))


def _is_open_here(path: Path) -> bool:
    if str(path) in _opened:
        # An app that a test has dropped may only wait for the garbage collector.
        gc.collect()
    return str(path) in _opened


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
