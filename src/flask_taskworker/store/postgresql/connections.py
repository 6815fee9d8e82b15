"""Connections to PostgreSQL over psycopg 3: how they are opened, their errors in our words, the links of a worker.

Connections come and go. What could not be asked is a :class:`StoreError`; what was asked, and may or may not have been
committed when the connection broke, is a :class:`ConnectionLost`.
"""

from __future__ import annotations

import asyncio
import functools
import math
import queue
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Any, TypeVar, cast

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import ConnStatus
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import URL

from ...errors import ConfigError, ConnectionLost, NotReachable, NotSupported, StoreError
from ..driver import Parameters, Row, RowLocked, RowRefused, Run

T = TypeVar("T")

_PREPARE_AFTER = 5
"""A statement that one connection has run so often is prepared."""


ANSWER_WITHIN = 15.0
"""Seconds that a worker waits for a server that is connected and silent, as one that is frozen is."""

LAST_PATIENCE = 1.0
"""Seconds that it waits when its time is over."""


class PatientConnection(psycopg.Connection[Any]):
    """A connection that gives up on a server that does not answer."""

    answer_within: Callable[[], float] | None = None
    """Seconds; asked while it waits, since a stop shortens it. Without, it waits for as long as it takes."""

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """See *gen*, one of psycopg's exchanges with the server, through."""
        if self.answer_within is not None:
            gen = self._within(gen, self.answer_within, time.monotonic())
        return super().wait(gen, *args, **options)

    def _within(
        self, gen: Generator[Any, Any, T], answer_within: Callable[[], float], began: float
    ) -> Generator[Any, Any, T]:
        try:
            wanted = next(gen)
            while True:
                # Nothing, several times a second, while the server is silent.
                ready = yield wanted
                if not ready and (waited := time.monotonic() - began) > answer_within():
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server has not answered for {waited:.0f} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return cast(T, end.value)


PLANS_LAST = 1.0
"""Seconds for which a worker uses the plans of prepared statements: one that was made while a table was small scans it
when it is large. To plan each time takes longer than a claim."""

# A row that another session has locked must not hold up a worker's other rows.
_WORKER_SETTINGS = "SELECT set_config('lock_timeout', '100ms', false)"


class PostgresqlServer:
    """Where a database is and how to connect to it. Safe from any thread."""

    def __init__(self, url: URL, *, prepares: bool) -> None:
        dialect: Any = PGDialect_psycopg
        _, arguments = dialect().create_connect_args(url)
        parts = dict(arguments)
        self._conninfo = _conninfo(parts)
        self.prepares = prepares
        # Prepared statements need a session of one's own, which PgBouncer in transaction mode does not give.
        self._prepare_threshold = _PREPARE_AFTER if prepares else None
        self.place: str = f"{parts.get('host') or 'localhost'}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"
        self.key: str = self.place + (f" ({parts['options']})" if parts.get("options") else "")
        """Tells one database from another, and holds no password."""

    def open(self, **options: Any) -> PatientConnection:
        """A connection in autocommit mode; *options* are libpq's. Raises StoreError."""
        with Unreachable(self.place):
            connection = PatientConnection.connect(
                self._conninfo, autocommit=True, prepare_threshold=self._prepare_threshold, **options
            )
        # Whatever the server's default: what waits for a lock must see then what the one before it has done.
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        return connection

    def set_up(self, connection: psycopg.Connection[Any]) -> None:
        """Make the connection one of a worker's. Behind a pooler in transaction mode there is nothing to set."""
        if self.prepares:
            with postgresql_errors():
                fetch(connection, _WORKER_SETTINGS, {})

    async def open_async(self) -> psycopg.AsyncConnection[Any]:
        """A connection in autocommit mode for the running loop. Raises StoreError."""
        with Unreachable(self.place):
            return await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, prepare_threshold=self._prepare_threshold
            )

    def check_session(self, connection: psycopg.Connection[Any]) -> None:
        """Raise NotSupported where a pooler lends the server's sessions for single transactions.

        Locks and notifications would be lost there, and prepared statements mistaken for those of others.
        """
        if _process(connection) == connection.info.backend_pid:
            return
        # It is not the server that has answered to the connecting.
        with closing(self.open()) as other:
            # A pooler that has no session left keeps its sessions for those who have them.
            other.answer_within = lambda: _FREE_WITHIN
            if _takes_turns(connection, other):
                raise NotSupported(
                    f"PostgreSQL at {self.place}: a pooler is there that lends a session for one transaction, such as "
                    "PgBouncer with pool_mode = transaction. Set TASKER_LISTEN = False, or give TASKER_DATABASE_URI "
                    "the server's own address."
                )


def _conninfo(parts: dict[str, Any]) -> str:
    # A peer that vanished without a word must be noticed before its lease ends.
    keepalive = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 15_000}
    defaults = {"connect_timeout": 10, "application_name": "Flask-TaskWorker"}
    try:
        return make_conninfo(**{**defaults, **keepalive, **parts})
    except (psycopg.Error, TypeError) as error:
        raise ConfigError(
            f"TASKER_DATABASE_URI: {in_words(error)}. After the question mark stand libpq's parameters, such as "
            "sslmode=require."
        ) from None


# -- poolers -----------------------------------------------------------------------------------------------------------

_TURNS = 5
_FREE_WITHIN = 2.0
"""Seconds to wait for a second session."""


def _process(connection: psycopg.Connection[Any]) -> int:
    ((number,),) = fetch(connection, "SELECT pg_backend_pid()", {})
    return int(number)


def _takes_turns(one: psycopg.Connection[Any], other: psycopg.Connection[Any]) -> bool:
    """Whether these connections use the same session in turn, or one of them now this session and now that."""
    with suppress(ConnectionLost), postgresql_errors():
        for _ in range(_TURNS):
            before = _process(one)
            with other.transaction():
                if _process(other) == before or _process(one) != before:
                    return True
    return False


# -- errors in our words -----------------------------------------------------------------------------------------------


class Unreachable:
    """Turns the errors of connecting into ours. Nothing was asked yet, so nothing is in doubt."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, exception_type: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, psycopg.Error | OSError):
            # psycopg knows no codes here: the server's words are all there is, and they may be in any language.
            words = in_words(error)
            remedy = next((remedy for said, remedy in _CONNECT_REMEDIES if re.search(said, words)), _CHECK_SERVER)
            kind = NotReachable if remedy in _WILL_PASS else StoreError
            raise kind(f"PostgreSQL at {self._place}: {words}. {remedy}") from error


_CHECK_SERVER = "Check TASKER_DATABASE_URI, and that the server runs and lets this machine in."
_FEWER = "Raise the server's limit, run fewer processes, or put a pooler before it."
_FEWER_THERE = "Raise the pooler's max_client_conn, or run fewer processes."
_STARTS, _ENDS = "The server is starting: try again.", "The server is shutting down: try again."
_WILL_PASS = frozenset({_CHECK_SERVER, _FEWER, _FEWER_THERE, _STARTS, _ENDS})
_CONNECT_REMEDIES = (
    ("^invalid .* value", "Correct that parameter in TASKER_DATABASE_URI."),
    ("authentication failed", "Check the user and the password in TASKER_DATABASE_URI."),
    ("no password supplied", "Give the password in TASKER_DATABASE_URI, or in a password file (PGPASSFILE)."),
    ("no pg_hba.conf entry", "Let this machine and user in: in the server's pg_hba.conf, or its firewall rules."),
    ("too many c", _FEWER),
    ("connection slots", _FEWER),
    ("no more connections allowed", _FEWER_THERE),
    ("unsupported startup parameter", "The pooler does not pass that on: leave it out of TASKER_DATABASE_URI."),
    ("starting up", _STARTS),
    ("shutting down", _ENDS),
    ("role .* does not exist", "Create the user, or correct its name in TASKER_DATABASE_URI."),
    ("database .* does not exist", "Create the database, or correct its name in TASKER_DATABASE_URI."),
    ("permission denied for database", "Let this user in: GRANT CONNECT ON DATABASE … TO …"),
)


class postgresql_errors:
    """Turns the errors of statements into ours, with what to do about them."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, exception_type: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, UnicodeError):
            raise RowRefused(f"PostgreSQL refuses a value: {error}.") from error
        if not isinstance(error, psycopg.Error):
            return
        words, state = in_words(error), error.sqlstate or ""
        # 08P01 is all that PgBouncer says, be it that it never asked the server, or that this broke while it answered.
        is_lost = error.sqlstate in _LOST or (state == "08P01" and not any(said in words for said in _POOLER_SAID))
        if isinstance(error, psycopg.OperationalError) and is_lost:
            raise ConnectionLost(f"PostgreSQL: {words}. The connection was lost; try again.") from error
        if isinstance(error, psycopg.DataError) or state[:2] in _REFUSALS:
            # Not the server's DETAIL, which holds the whole row.
            raise RowRefused(f"PostgreSQL refuses a value: {error.diag.message_primary or words}.") from error
        if state in _LOCKED:
            raise RowLocked(f"PostgreSQL: {words}. {_REMEDIES[state[:2]]}") from error
        remedy = _REMEDIES.get(state) or _REMEDIES.get(state[:2]) or "See the server's log."
        raise StoreError(f"PostgreSQL: {words}. {remedy}") from error


_REFUSALS = frozenset({"22", "23", "54"})
"""Classes of SQLSTATE: data exceptions, violated constraints, limits of the server."""
_LOCKED = frozenset({"55P03", "40P01", "40001"})
"""A lock was not free in time, or this transaction had to give way to another."""

# None: libpq noticed the loss itself. 57P01 to 57P03: the server shuts down, crashed, or starts.
_LOST = frozenset({None, "57P01", "57P02", "57P03", "57P05", "08000", "08003", "08006"})
_POOLER_SAID = ("query_wait_timeout", "server_login_retry", "server login", "pooling mode")
"""PgBouncer says so where it has not asked the server."""

_TABLES = "The tables are not those of this version. See: flask tasks db check"
_POOLER = "Where a pooler says so: its pool_mode must be session or transaction, and its pool be large enough."
_REMEDIES = {
    "25": "The server is read-only, perhaps a standby: give TASKER_DATABASE_URI the primary's address.",
    "40": "Another transaction was in the way: try again.",
    "55": "Another session holds a lock on a row: find it in pg_locks.",
    "42501": "Give this user the right to use the tables, and to create them or let another do so: flask tasks db sql",
    "42P01": _TABLES,
    "42703": _TABLES,
    "3F": "The search_path in TASKER_DATABASE_URI names no schema that exists: create it, or correct the name.",
    "53": "The server is out of disk space, memory or connections: free some.",
    "08P01": _POOLER,
    "57014": "Raise statement_timeout for this user, or find what was in the way.",
}


_NO_NEWS = re.compile(r"^connection (failed|is bad): | ?Is the server running [^?]*\?")
"""What libpq adds and our remedy says, too."""


def in_words(error: BaseException) -> str:
    """What the error says, in one line."""
    return _NO_NEWS.sub("", " ".join(str(error).split())).rstrip(".")


# -- statements --------------------------------------------------------------------------------------------------------


def fetch(connection: psycopg.Connection[Any], sql: str, parameters: Parameters) -> list[Row]:
    """Run one statement, and return its rows if it has any."""
    cursor = connection.execute(cast(Any, _in_psycopg(sql)), parameters)
    # Not its description, which psycopg would make for each statement.
    return cursor.fetchall() if cursor.pgresult is not None and cursor.pgresult.nfields else []


_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")


@functools.lru_cache(maxsize=256)
def _in_psycopg(sql: str) -> str:
    """``:name`` in psycopg's words."""
    return _PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%"))


def has_ended(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has closed this idle connection.

    Then there is something to be read: looking costs a microsecond, where asking would cost a round trip, and using the
    connection would leave it open whether the statement was run.
    """
    while not connection.closed and _is_readable(connection.fileno()):
        try:
            connection.pgconn.consume_input()
        except psycopg.Error:
            return True
        if connection.pgconn.status != ConnStatus.OK:
            return True
    return connection.closed


def _is_readable(descriptor: int) -> bool:
    if sys.platform == "win32":
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class PostgresqlLink:
    """A connection of a worker's thread. It connects again when it is used after a loss."""

    def __init__(self, server: PostgresqlServer, *, repeats: bool) -> None:
        """*repeats*: what goes over it may be said twice, so after a loss it is said again at once."""
        self._server = server
        self._repeats = repeats
        self._deadline = math.inf
        self._planned_at = -math.inf
        self._connection: PatientConnection | None = None
        self.sessions: int = 0
        """How many times it has connected."""

    def read(self, sql: str, parameters: Parameters) -> list[Row]:
        """One SELECT."""
        return self.write(sql, parameters)

    def write(self, sql: str, parameters: Parameters, *, durable: bool = True) -> list[Row]:
        """One statement in a transaction of its own."""
        try:
            return self._write(sql, parameters)
        except ConnectionLost:
            if not self._repeats:
                raise
            return self._write(sql, parameters)

    def _write(self, sql: str, parameters: Parameters) -> list[Row]:
        connection = self.connected()
        with postgresql_errors():
            return fetch(connection, sql, parameters)

    def transaction(self, body: Callable[[Run], T], *, durable: bool = True) -> T:
        """Run *body* in one transaction."""
        connection = self.connected()
        with postgresql_errors(), connection.transaction():
            return body(functools.partial(fetch, connection))

    def connected(self) -> psycopg.Connection[Any]:
        """The connection, a new one after a loss. Raises StoreError."""
        if self._connection is None or self._connection.closed:
            in_a_hurry = {"connect_timeout": 2} if self._patience() < ANSWER_WITHIN else {}
            self._connection = self._server.open(**in_a_hurry)
            self._connection.answer_within = self._patience
            self._server.set_up(self._connection)
            self.sessions += 1
        elif self._server.prepares and time.monotonic() - self._planned_at > PLANS_LAST:
            with postgresql_errors():
                self._connection.execute("DISCARD PLANS")
            self._planned_at = time.monotonic()
        return self._connection

    def hurry(self, seconds: float) -> None:
        """After *seconds* wait for the server no more than a moment. Safe from any thread."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def _patience(self) -> float:
        return min(ANSWER_WITHIN, max(LAST_PATIENCE, self._deadline - time.monotonic()))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


class DaemonCallThread:
    """A :class:`CallThread` for the running loop. It keeps no process alive."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="taskworker-db", daemon=True).start()

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call there, to its end also where the caller is cancelled."""
        answer: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((answer, call))
        return await answer

    async def close(self) -> None:
        """End the thread after the calls that wait."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            answer, call = item
            try:
                settle, value = answer.set_result, call()
            except BaseException as error:  # noqa: BLE001 - raised where the call was made
                settle, value = cast(Any, answer.set_exception), error
            # The loop may have been closed meanwhile.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._settle, answer, settle, value)
            del item, answer, call, settle, value

    @staticmethod
    def _settle(answer: asyncio.Future[Any], settle: Callable[[Any], None], value: object) -> None:
        if not answer.done():
            settle(value)
