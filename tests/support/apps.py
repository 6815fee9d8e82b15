"""Fixtures of the tests in this process: an app on a database of its own, and its worker.

A test runs on SQLite; those in tests/behaviour, and those marked ``both_databases``, run on PostgreSQL as well.
One that takes ``database``, or has the mark ``sqlite_only``, runs on SQLite alone. A parameter may have the mark, too.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import sqlite3
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.state import _databases
from flask_taskworker.store.sql import Store
from flask_taskworker.store.sqlite.driver import SqliteDriver
from flask_taskworker.worker.timing import Timing
from tests.support.postgres import a_schema, connect

KINDS = [pytest.param("sync", marks=pytest.mark.sqlite_only), "async"]
"""Of tasks. One will do on PostgreSQL: where a database makes a difference, the kind makes none."""

BEHAVIOUR = Path(__file__).parents[2] / "tests/behaviour"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test each database in turn: those in tests/behaviour, and those marked both_databases."""
    marked = metafunc.definition.get_closest_marker
    both = marked("both_databases")
    file_only = "database" in metafunc.fixturenames or marked("sqlite_only")
    if "driver" in metafunc.fixturenames and (both or BEHAVIOUR in metafunc.definition.path.parents) and not file_only:
        later = [pytest.mark.slow] if both and both.kwargs.get("slow") == "postgresql" else []
        metafunc.parametrize("driver", ["sqlite", pytest.param("postgresql", marks=later)])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what PostgreSQL need not repeat: parameters that are marked sqlite_only."""
    repeated = [
        item
        for item in items
        if item.get_closest_marker("sqlite_only")
        and getattr(item, "callspec", None) is not None
        and item.callspec.params.get("driver") == "postgresql"
    ]
    if repeated:
        config.hook.pytest_deselected(items=repeated)
        items[:] = [item for item in items if item not in set(repeated)]


@pytest.fixture
def driver() -> str:
    """The kind of database that the test's apps are on."""
    return "sqlite"


@pytest.fixture
def make_app(tmp_path: Path, driver: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Flask]]:
    """A factory of Flask apps, each with an instance folder, and so a task database, of its own in tmp_path.

    Keyword arguments are configuration values.
    """
    numbers = count(1)

    def new_app(**config: Any) -> Flask:
        number = next(numbers)
        folder = str(tmp_path / f"instance{number}")
        # A rule for static files takes as long to compile as the rest of the app.
        app = Flask(f"app{number}", instance_path=folder, root_path=str(tmp_path), static_folder=None)
        app.config.update(config)
        return app

    if driver == "sqlite":
        no_tables_yet = request.node.get_closest_marker("no_tables_yet")

        def make_with_file(**config: Any) -> Flask:
            # No test cuts the power: waiting for the disk a dozen times a test would only take time.
            app = new_app(**{"TASKER_DURABILITY": "normal"} | config)
            if not no_tables_yet and "TASKER_DATABASE_URI" not in config:
                put_database(Path(app.instance_path, "taskworker.db"))
            return app

        yield make_with_file
        return
    if request.node.get_closest_marker("no_tables_yet"):
        a_place = functools.partial(a_schema, request.getfixturevalue("postgres"))
    else:
        a_place = request.getfixturevalue("schema_pool").schema
    made: weakref.WeakSet[Flask] = weakref.WeakSet()
    with ExitStack() as schemas:

        def make(**config: Any) -> Flask:
            if "TASKER_DATABASE_URI" not in config:
                config["TASKER_DATABASE_URI"] = schemas.enter_context(a_place())
            app = new_app(TASKER_DRIVER="postgresql", **config)
            made.add(app)
            return app

        yield make
        for app in made:
            if (state := app.extensions.get("taskworker")) is not None:
                state.client.close()
                # Its schema is the next test's, which need not wait for the collector, nor for a thread that holds it.
                _databases.pop(state.store.driver.key, None)


@functools.cache
def _empty_database() -> tuple[bytes, bytes]:
    """A database file with empty tables in it, and the id of its store."""
    with tempfile.TemporaryDirectory() as folder:
        driver = SqliteDriver(Path(folder, "taskworker.db"), durability="normal", lock_timeout=20)
        driver.prepare()
        ((store_id,),) = driver.read("SELECT value FROM taskworker_meta WHERE name = 'store_id'", {})
        driver.close()
        with closing(sqlite3.connect(driver.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return driver.path.read_bytes(), store_id.encode()


def put_database(path: Path) -> None:
    """Write a database with empty tables in it: making them takes most of a test."""
    content, store_id = _empty_database()
    path.parent.mkdir(exist_ok=True)
    with open(path, "xb", opener=functools.partial(os.open, mode=0o600)) as file:
        file.write(content.replace(store_id, secrets.token_hex(16).encode()))


def task_worker_of(app: Flask) -> BackgroundTaskWorker:
    """The TaskWorker that *app* is registered with."""
    found: BackgroundTaskWorker = app.extensions["taskworker"].run.__self__
    return found


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


@pytest.fixture
def timing(request: pytest.FixtureRequest) -> Timing:
    """How long the test's workers wait: the mark ``timing`` changes that."""
    marks = list(request.node.iter_markers("timing"))
    return Timing(**{name: value for mark in reversed(marks) for name, value in mark.kwargs.items()})


@pytest.fixture
def make_worker(timing: Timing) -> Iterator[Callable[..., BackgroundTaskWorker]]:
    """A factory of task workers, started or not, that are stopped after the test."""
    made: list[BackgroundTaskWorker] = []

    def make(*apps: Flask, start: bool = True) -> BackgroundTaskWorker:
        task_worker = BackgroundTaskWorker()
        task_worker._timing = timing
        made.append(task_worker)
        for app in apps:
            task_worker.init_app(app)
        if start:
            task_worker.start()
        return task_worker

    yield make
    for task_worker in made:
        task_worker.stop(timeout=2)


@pytest.fixture
def task_worker(app: Flask, make_worker: Callable[..., BackgroundTaskWorker]) -> BackgroundTaskWorker:
    """The app's worker, started."""
    return make_worker(app)


@pytest.fixture
def idle_worker(app: Flask, make_worker: Callable[..., BackgroundTaskWorker]) -> BackgroundTaskWorker:
    """The app's worker, not started; a test may start it."""
    return make_worker(app, start=False)


@pytest.fixture
def store(app: Flask) -> Store:
    """The app's rows; needs task_worker or idle_worker."""
    found: Store = app.extensions["taskworker"].store
    return found


@pytest.fixture
def database(app: Flask) -> Path:
    """The app's database file; needs task_worker or idle_worker."""
    return Path(app.extensions["taskworker"].config.database_uri.database)


class _Alarms(logging.Handler):
    """What the package logs only when it is broken itself."""

    WORDS = ("this should not happen", "could not go on", "never retrieved", "was destroyed")

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if any(word in text for word in self.WORDS):
            self.heard.append(text)


@pytest.fixture(autouse=True)
def alarms() -> Iterator[list[str]]:
    """Fails a test during which a worker met an error that it does not know, unless the test clears this list."""
    alarms = _Alarms()
    loggers = [logging.getLogger(name) for name in ("flask_taskworker", "asyncio")]
    for logger in loggers:
        logger.addHandler(alarms)
    yield alarms.heard
    for logger in loggers:
        logger.removeHandler(alarms)
    assert not alarms.heard


@pytest.fixture
def rows(app: Flask) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Run SQL on the app's database behind the package's back; parameters are written ``?``."""
    with ExitStack() as opened:

        @functools.cache
        def session() -> psycopg.Connection[Any]:
            url = app.extensions["taskworker"].config.database_uri.render_as_string(hide_password=False)
            found = opened.enter_context(closing(connect(url)))
            # Tests change tables, which a prepared statement would not see.
            found.prepare_threshold = None
            return found

        def run(sql: str, *parameters: object) -> list[tuple[Any, ...]]:
            url = app.extensions["taskworker"].config.database_uri
            if url.get_backend_name() == "postgresql":
                cursor = session().execute(sql.replace("?", "%s"), parameters)
                return cursor.fetchall() if cursor.description else []
            with closing(sqlite3.connect(url.database, timeout=20, isolation_level=None)) as connection:
                return connection.execute(sql, parameters).fetchall()

        yield run
