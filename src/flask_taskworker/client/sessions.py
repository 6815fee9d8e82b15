"""The caller's own SQLAlchemy transaction: writing jobs into it, and learning what became of it.

Takes a ``Session``, a ``scoped_session`` (Flask-SQLAlchemy's ``db.session``), a ``Connection``, and their asynchronous
counterparts. Errors of the caller's database come as SQLAlchemy's, as they do for the caller's own statements.
"""

from __future__ import annotations

import functools
import sys
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Engine, TextClause, event, text
from sqlalchemy.exc import InvalidRequestError, PendingRollbackError

from ..core.loggers import Logger, get_logger
from ..errors import ArgumentsError
from ..store.driver import Parameters, Row

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

T = TypeVar("T")
log: Logger = get_logger("jobs")

LONG_LOCK = 1.0
"""An atomic task that holds SQLite's write lock for longer is reported. Seconds."""


class CallerTransaction:
    """The transaction in which the caller is. For the caller's thread."""

    def __init__(self, given: object) -> None:
        self.session: Session | None = _session_of(given)
        if self.session is not None:
            try:
                self.connection: Connection = self.session.connection()
            except PendingRollbackError:
                raise
            except InvalidRequestError as error:
                raise ArgumentsError(
                    "The session given as session=… is in the middle of its commit, as in an after_commit listener, so "
                    "nothing can be added to it. Enqueue there without session=…; or with it in before_commit or "
                    "after_flush."
                ) from error
        elif isinstance(given, Connection):
            self.connection = given
        else:
            if is_async(given):
                raise ArgumentsError(
                    "session is asynchronous: await task.using(session=…).aenqueue(…) instead of enqueue."
                )
            remedy = " Give its .session, as in session=db.session." if hasattr(given, "session") else ""
            raise ArgumentsError(
                f"session = {given!r:.100} is not an SQLAlchemy Session, scoped_session or Connection.{remedy}"
            )

    @property
    def engine(self) -> Engine:
        """The engine; what is known of its database holds for all its connections."""
        return self.connection.engine

    def run(self, sql: str, parameters: Parameters) -> list[Row]:
        """One statement inside the transaction."""
        result = self.connection.execute(_text(sql), parameters)
        return [tuple(row) for row in result] if result.returns_rows else []

    def holds(self, store_id: str) -> bool | None:
        """Whether the task store of that name lies in this database.

        None where that cannot be seen: the transaction may have begun before the store's tables were made.
        """
        look = _LOOKS.get(self.connection.dialect.name)
        if look is None:
            return False
        if not self.run(look, {}):
            return None if self.connection.dialect.name == "sqlite" else False
        rows = self.run("SELECT value FROM taskworker_meta WHERE name = 'store_id'", {})
        return rows[0][0] == store_id if rows else None

    def refuse_autocommit(self) -> None:
        """Raise ArgumentsError where each statement commits by itself: a rollback could not take the job back."""
        raw: Any = self.connection.connection.dbapi_connection
        commits_itself = getattr(raw, "autocommit", False) is True
        if self.connection.dialect.name == "sqlite" and raw.isolation_level is None:
            # The application's own events may begin a transaction, now or before the first statement that writes.
            self.run("UPDATE taskworker_meta SET value = value WHERE 1 = 0", {})
            commits_itself = not getattr(raw, "driver_connection", raw).in_transaction
        if commits_itself:
            raise ArgumentsError(
                "The engine of session=… is in AUTOCOMMIT, so the job would stay when the session is rolled back. Use "
                "an engine with transactions, or enqueue after the commit without session=…."
            )

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call *call* once the transaction has committed; never if it, or the savepoint it is in, was rolled back.

        What *call* raises comes out of the session's ``commit()``, which stands. A bare connection does not say when it
        has committed, so nothing is called there: workers find the job at their next look.
        """
        if self.session is not None:
            _watch(self.session).add(call)


def _session_of(given: object) -> Session | None:
    # An app with a session has imported the ORM. An app without one need not pay for it: it takes 6 MB.
    orm = sys.modules.get("sqlalchemy.orm")
    if orm is None:
        return None
    session = given() if isinstance(given, orm.scoped_session) else given
    return session if isinstance(session, orm.Session) else None


# A missing table must not be asked for by its name: the error would end a PostgreSQL transaction.
_LOOKS = {
    "sqlite": "SELECT 1 FROM sqlite_master WHERE name = 'taskworker_meta'",
    "postgresql": "SELECT 1 WHERE to_regclass('taskworker_meta') IS NOT NULL",
}


def is_async(given: object) -> bool:
    """Whether *given* is an AsyncSession, an async_scoped_session or an AsyncConnection."""
    orm = sys.modules.get("sqlalchemy.ext.asyncio")
    return orm is not None and isinstance(given, orm.AsyncSession | orm.async_scoped_session | orm.AsyncConnection)


async def run_within(given: Any, call: Callable[[Any], T]) -> T:
    """Run *call* with the sync half of an asynchronous session or connection, where it may use it."""
    orm = sys.modules["sqlalchemy.ext.asyncio"]
    session = given() if isinstance(given, orm.async_scoped_session) else given
    result: T = await session.run_sync(call)
    return result


@functools.lru_cache(maxsize=64)
def _text(sql: str) -> TextClause:
    return text(sql)


# -- watching a session ------------------------------------------------------------------------------------------------

_watches: weakref.WeakKeyDictionary[Session, _Watch] = weakref.WeakKeyDictionary()


def _watch(session: Session) -> _Watch:
    watch = _watches.get(session)
    if watch is None:
        watch = _watches[session] = _Watch()
        event.listen(session, "after_commit", watch.on_commit)
        event.listen(session, "after_soft_rollback", watch.on_rollback)
        event.listen(session, "after_transaction_end", watch.on_end)
    watch.session = weakref.ref(session)
    return watch


class _Watch:
    """The calls that wait for one session's commit, each with the (sub)transaction that it belongs to."""

    def __init__(self) -> None:
        self.session: Callable[[], Session | None] = lambda: None
        self._waiting: list[tuple[SessionTransaction, Callable[[], None]]] = []
        self._committed: list[Callable[[], None]] = []

    def add(self, call: Callable[[], None]) -> None:
        session = self.session()
        assert session is not None
        transaction = session.get_nested_transaction() or session.get_transaction()
        assert transaction is not None
        self._waiting.append((transaction, call))

    def on_commit(self, session: Session) -> None:
        # The release of a savepoint is announced as a commit, too.
        if session.get_nested_transaction() is None:
            self._committed += [call for _, call in self._waiting]
            self._waiting.clear()

    def on_rollback(self, _session: Session, ended: SessionTransaction) -> None:
        kept = []
        for transaction, call in self._waiting:
            inner: SessionTransaction | None = transaction
            while inner is not None and inner is not ended:
                inner = inner.parent
            if inner is None:
                kept.append((transaction, call))
        self._waiting = kept

    def on_end(self, _session: Session, ended: SessionTransaction) -> None:
        if ended.parent is None:
            # close() ends a transaction without a word about a rollback.
            self._waiting.clear()
            # Not in on_commit: the session could not be used any more if one of these raised there.
            calls, self._committed = self._committed, []
            first: Exception | None = None
            for call in calls:
                try:
                    call()
                except Exception as error:
                    log.exception("what was to happen after a commit did not")
                    first = first or error
            if first is not None:
                raise first


# -- no commit but ours ------------------------------------------------------------------------------------------------


class AtomicSession:
    """The session of an atomic task, while it runs: only the worker commits it, together with the job's end."""

    def __init__(self, source: Callable[[], object], task: str) -> None:
        self._source = source
        self._task = task
        self.transaction: CallerTransaction = CallerTransaction(source())
        session = self.transaction.session
        if session is None:
            raise ArgumentsError(f"atomic=… of {task} must give a Session, not {source()!r:.100}.")
        self._session = session
        self._locked_at: float | None = None
        """When its first write took SQLite's write lock, by ``time.monotonic``."""

    def refuse_autocommit(self) -> None:
        """As :meth:`CallerTransaction.refuse_autocommit`, before anything was done in the session."""
        self.transaction.refuse_autocommit()
        if self.transaction.connection.dialect.name == "sqlite":
            # To ask may have taken the write lock, which the task needs only when it writes.
            self._session.rollback()

    def check(self) -> None:
        """Raise ArgumentsError unless the source gives the same session, which is what the task writes through."""
        if _session_of(self._source()) is not self._session:
            raise ArgumentsError(
                f"atomic=… of {self._task} gives another session each time, or the task has removed its own. Give a "
                "scoped_session, such as Flask-SQLAlchemy's db, and leave remove() to the end of the app context."
            )

    def __enter__(self) -> None:
        self.check()
        event.listen(self._session, "before_commit", self._refuse)
        event.listen(self._session, "after_begin", self._on_begin)

    def __exit__(self, *_: object) -> None:
        event.remove(self._session, "before_commit", self._refuse)
        event.remove(self._session, "after_begin", self._on_begin)

    def _on_begin(self, _session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            event.listen(connection, "before_cursor_execute", self._on_statement)

    def _on_statement(self, _connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if self._locked_at is None and not statement.lstrip()[:6].upper().startswith(("SELECT", "PRAGMA")):
            self._locked_at = time.monotonic()

    def _refuse(self, session: Session) -> None:
        if session.get_nested_transaction() is None:
            raise ArgumentsError(
                f"{self._task} is atomic: its session is committed together with the job's end. Remove the commit from "
                "the task, or declare the task without atomic=…."
            )

    def run(self, sql: str, parameters: Parameters) -> list[Row]:
        """One statement in the transaction in which the session is now."""
        return CallerTransaction(self._session).run(sql, parameters)

    def flush(self) -> None:
        """Write what is pending, before the job's row is locked: to prepare thousands of objects takes long."""
        self._session.flush()

    def commit(self) -> None:
        """Commit; outside of the with block."""
        self._session.commit()
        held = 0.0 if self._locked_at is None else time.monotonic() - self._locked_at
        if held > LONG_LOCK:
            log.warning(
                "%s held SQLite's write lock for %.1f s, from its first write to its commit: no other process could "
                "enqueue or record a job. Do slow work before the first write, or write in several jobs.",
                self._task,
                held,
            )

    def roll_back(self) -> None:
        """Roll back what is not committed, and give the connection back."""
        self._session.rollback()
