"""Whether the thread that waits for SQLite's write lock holds it itself, in a transaction of its SQLAlchemy session.

It would wait for itself until ``TASKER_LOCK_TIMEOUT``. SQLAlchemy's transactions on SQLite are noted by context, so
that what waits in another thread on behalf of a coroutine is found too.
"""

from __future__ import annotations

import sqlite3
import time
from contextvars import ContextVar
from pathlib import Path
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event

from ...errors import StoreError

_PAUSE = 0.05
"""Seconds between two looks while the lock is waited for."""


class _Transactions(WeakSet[Connection]):
    next_look = 0.0


_begun: ContextVar[_Transactions | None] = ContextVar("flask_taskworker.begun", default=None)


@event.listens_for(Engine, "begin")
def _on_begin(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        begun = _begun.get()
        if begun is None:
            begun = _Transactions()
            _begun.set(begun)
        begun.add(connection)
        begun.next_look = 0.0


def refuse_own_lock(path: Path) -> None:
    """Raise StoreError if a transaction of this thread, or of the coroutine that it works for, holds the lock."""
    begun = _begun.get()
    if not begun or time.monotonic() < begun.next_look:
        return
    begun.next_look = time.monotonic() + _PAUSE
    for connection in list(begun):
        if connection.closed or not connection.in_transaction():
            begun.discard(connection)
        elif _holds_lock(connection.connection.driver_connection, path):
            raise StoreError(
                f"This thread holds the write lock of {path} itself: its SQLAlchemy session has begun a transaction on "
                "the same file and not ended it. Store the job in that transaction with session=db.session, or commit "
                "or roll back first."
            )


def _holds_lock(raw: object, path: Path) -> bool:
    if not isinstance(raw, sqlite3.Connection) or not raw.in_transaction:
        return False
    try:
        if not any(file and path.samefile(file) for _, _, file in raw.execute("PRAGMA database_list")):
            return False
        ((patience,),) = raw.execute("PRAGMA busy_timeout").fetchall()
        raw.execute("PRAGMA busy_timeout = 0")
        try:
            # Changes nothing. A transaction that only reads is refused while another one holds the lock.
            raw.execute("UPDATE taskworker_meta SET value = value WHERE 0")
        finally:
            raw.execute(f"PRAGMA busy_timeout = {patience}")
    except (sqlite3.Error, OSError):
        return False
    return True
