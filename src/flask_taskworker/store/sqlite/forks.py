"""SQLite and fork: connections that are at rest while the process forks, and that are closed in the child.

SQLite keeps one account of its locks for a process and a file (``unixInodeInfo`` and ``unixShmNode`` in os_unix.c). A
fork copies the account, but not the locks, which the kernel keeps for the parent alone. A connection that the child
opens then joins that account: it believes to hold locks that it does not have, or waits forever for one that another
thread of the parent had. So none of our statements and transactions is under way while a process forks, and the child
closes what it inherited before it opens anything; at rest that touches nothing of the parent's, and ends the account.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from contextlib import nullcontext
from typing import Any

from ...errors import StoreError

LONGEST_WAIT = 1.0
"""Seconds that a fork waits for a transaction to end. The forking thread itself may have begun it."""

_STEP = 0.0005


_execute = sqlite3.Connection.execute


class ForkSafeConnection(sqlite3.Connection):
    """A connection that fetches all rows at once. Safe from any thread, one at a time."""

    directory = ""
    """The directory whose turnstile is used to wait for the write lock; empty for none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if _spoilt:
            raise StoreError(
                "This process was forked in the middle of a transaction, so SQLite is not safe in it. Enqueue in the "
                'process that forked it, or start processes with multiprocessing\'s "spawn".'
            )
        self._enter()
        try:
            super().__init__(*args, **kwargs)
            _connections.add(self)
        finally:
            self._leave()

    def execute(self, sql: str, parameters: Any = ()) -> Rows:  # type: ignore[override]
        """Run one statement to its end."""
        self._enter()
        try:
            return Rows(_execute(self, sql, parameters).fetchall())
        finally:
            if not self._has_transaction():
                self._leave()

    def close(self) -> None:
        """Close; a transaction that is still open is rolled back."""
        self._enter()
        try:
            super().close()
        finally:
            self._leave()

    def __del__(self) -> None:
        self._leave()

    def _has_transaction(self) -> bool:
        try:
            return self.in_transaction
        except sqlite3.ProgrammingError:  # it is closed
            return False

    def _enter(self) -> None:
        if id(self) not in _busy:
            thread = threading.get_ident()
            # A fork waits for this thread already, if it uses another connection, and could not end before it.
            with nullcontext() if thread in _busy.values() else _entrance:
                _busy[id(self)] = thread

    def _leave(self) -> None:
        _busy.pop(id(self), None)


class Rows:
    """What a statement gave, in a cursor's clothes."""

    __slots__ = ("_rows",)

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def fetchall(self) -> list[Any]:
        """All rows."""
        return self._rows


_connections: weakref.WeakSet[ForkSafeConnection] = weakref.WeakSet()
# Reentrant: a connection may be closed by the garbage collector while its thread holds it.
_entrance = threading.RLock()
"""Held by a process that forks: nothing new begins."""
_busy: dict[int, int] = {}
"""The thread of each connection, by its id, that runs a statement or has a transaction open. Changed in one step each
time: the garbage collector may come between two."""
_pid = os.getpid()
_spoilt = False
"""Whether this process was forked while one was busy."""


def _before_fork() -> None:
    """Wait until all connections are at rest, and keep them so until the fork is over."""
    deadline = time.monotonic() + LONGEST_WAIT
    _entrance.acquire()
    while _busy and time.monotonic() < deadline:
        time.sleep(_STEP)


def _after_fork_in_parent() -> None:
    _entrance.release()


def after_fork_in_child() -> None:
    """Close what was inherited. Harmless when repeated; for those who fork without Python's hooks, as uWSGI does."""
    global _entrance, _pid, _spoilt
    if _pid == os.getpid():
        return
    _pid = os.getpid()
    _entrance = threading.RLock()
    if _busy:
        _spoilt = True
    else:
        for connection in list(_connections):
            connection.close()
    _busy.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=after_fork_in_child)
