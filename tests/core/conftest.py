"""Fixtures of the in-process tests: an app on a database of its own, and its worker.

Every test that takes an app runs twice: on SQLite and on PostgreSQL. One that is about the file itself takes
``database``, or the mark ``sqlite_only``, and runs on SQLite alone.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from tests.postgres import a_schema, run_sql

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.store.sql import Store


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "driver" in metafunc.fixturenames:
        file_only = "database" in metafunc.fixturenames or metafunc.definition.get_closest_marker("sqlite_only")
        metafunc.parametrize("driver", ["sqlite"] if file_only else ["sqlite", "postgresql"])


@pytest.fixture
def make_app(
    make_app: Callable[..., Flask], driver: str, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Flask]]:
    """As everywhere, but the apps' databases are of the kind that the test runs on."""
    if driver == "sqlite":
        # No test cuts the power: waiting for the disk a dozen times a test would only take time.
        yield lambda **config: make_app(**{"TASKER_DURABILITY": "normal"} | config)
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
            app = make_app(TASKER_DRIVER="postgresql", **config)
            made.add(app)
            return app

        yield make
        for app in made:
            if "taskworker" in app.extensions:
                app.extensions["taskworker"].client.close()


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


@pytest.fixture
def make_worker() -> Iterator[Callable[..., BackgroundTaskWorker]]:
    """A factory of task workers, started or not, that are stopped after the test."""
    made: list[BackgroundTaskWorker] = []

    def make(*apps: Flask, start: bool = True) -> BackgroundTaskWorker:
        task_worker = BackgroundTaskWorker()
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
def rows(app: Flask) -> Callable[..., list[tuple[Any, ...]]]:
    """Run SQL on the app's database behind the package's back; parameters are written ``?``."""

    def run(sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        url = app.extensions["taskworker"].config.database_uri
        if url.get_backend_name() == "postgresql":
            return run_sql(url.render_as_string(hide_password=False), sql.replace("?", "%s"), parameters)
        with closing(sqlite3.connect(url.database, timeout=20, isolation_level=None)) as connection:
            return connection.execute(sql, parameters).fetchall()

    return run
