"""The caller's own SQLAlchemy transaction: writing jobs into it, and learning what became of it.

Takes a ``Session``, a ``scoped_session`` (Flask-SQLAlchemy's ``db.session``), a ``Connection``, or the sync half of
their async kin. A session tells when it has committed, or rolled back to a savepoint; a bare connection tells only that
it is about to commit.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, TextClause, event, text

from .errors import ArgumentsError
from .store.driver import Parameters, Row

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

_AFTER_COMMIT = 0.02
"""Seconds after a bare connection's "about to commit" at which the commit is taken for done."""


class CallerTransaction:
    """The transaction in which the caller is. For the caller's thread."""

    def __init__(self, given: object) -> None:
        self.session = _session_of(given)
        if self.session is not None:
            self.connection: Connection = self.session.connection()
        elif isinstance(given, Connection):
            self.connection = given
        else:
            raise ArgumentsError(_wrong_session(given))

    @property
    def engine(self) -> Engine:
        """The engine; what is known of its database holds for all its connections."""
        return self.connection.engine

    def run(self, sql: str, parameters: Parameters) -> list[Row]:
        """One statement inside the transaction."""
        result = self.connection.execute(_text(sql), parameters)
        return [tuple(row) for row in result] if result.returns_rows else []

    def store_id(self) -> str | None:
        """The random name of the task store in this database, or None where there is none."""
        look = _LOOKS.get(self.connection.dialect.name)
        if look is None or not self.run(look, {}):
            return None
        rows = self.run("SELECT value FROM taskworker_meta WHERE name = 'store_id'", {})
        return str(rows[0][0]) if rows else None

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call *call* once the transaction has committed; never if it, or the savepoint it is in, was rolled back."""
        if self.session is not None:
            _watch(self.session).add(call)
        else:
            event.listen(self.connection, "commit", functools.partial(_soon, call), once=True)


def _session_of(given: object) -> Session | None:
    # Whoever has a session has imported the ORM. An app without one need not pay for it: it takes 6 MB.
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
    """Whether *given* is an AsyncSession or an AsyncConnection."""
    return hasattr(given, "run_sync") and (hasattr(given, "sync_session") or hasattr(given, "sync_connection"))


def _wrong_session(given: object) -> str:
    if is_async(given):
        return "session is asynchronous: await task.using(session=…).aenqueue(…) instead of enqueue."
    return f"session = {given!r:.100} is not an SQLAlchemy Session, scoped_session or Connection."


@functools.lru_cache(maxsize=64)
def _text(sql: str) -> TextClause:
    return text(sql)


def _soon(call: Callable[[], None], _connection: Connection) -> None:
    timer = threading.Timer(_AFTER_COMMIT, call)
    timer.daemon = True
    timer.start()


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
        self._calls: list[tuple[SessionTransaction, Callable[[], None]]] = []

    def add(self, call: Callable[[], None]) -> None:
        session = self.session()
        assert session is not None
        transaction = session.get_nested_transaction() or session.get_transaction()
        assert transaction is not None
        self._calls.append((transaction, call))

    def on_commit(self, session: Session) -> None:
        # The release of a savepoint is announced as a commit, too.
        if session.get_nested_transaction() is None:
            calls, self._calls = self._calls, []
            for _, call in calls:
                call()

    def on_rollback(self, _session: Session, ended: SessionTransaction) -> None:
        self._calls = [(inner, call) for inner, call in self._calls if not _is_within(inner, ended)]

    def on_end(self, _session: Session, ended: SessionTransaction) -> None:
        # close() ends a transaction without a word about a rollback.
        if ended.parent is None:
            self._calls.clear()


def _is_within(inner: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while inner is not None:
        if inner is outer:
            return True
        inner = inner.parent
    return False


# -- no commit but ours ------------------------------------------------------------------------------------------------


class CommitGuard:
    """Refuses commits of a session while an atomic job runs: its end commits, together with the job's."""

    def __init__(self, session: Session, task: str) -> None:
        self._session = session
        self._task = task

    def __enter__(self) -> None:
        event.listen(self._session, "before_commit", self._refuse)

    def __exit__(self, *_: object) -> None:
        event.remove(self._session, "before_commit", self._refuse)

    def _refuse(self, session: Session) -> None:
        if session.get_nested_transaction() is None:
            raise ArgumentsError(
                f"{self._task} is atomic: its session is committed together with the job's end. Remove the commit from "
                "the task, or declare the task without atomic=…."
            )
