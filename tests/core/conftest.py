"""Fixtures of the in-process tests: an app on a SQLite file of its own, and its worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.store.sql import Store


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
def rows(database: Path) -> Callable[..., list[tuple[Any, ...]]]:
    """Run SQL on the database behind the package's back."""
    import sqlite3
    from contextlib import closing

    def run(sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(database, timeout=20, isolation_level=None)) as connection:
            return connection.execute(sql, parameters).fetchall()

    return run
