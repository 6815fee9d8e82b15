"""What a signal handler raises inside of a write to SQLite: it comes through, and no caller hears what is not so."""

from __future__ import annotations

import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.core.tasks import Task
from flask_taskworker.errors import StoreError
from flask_taskworker.store.sqlite.driver import SqliteDriver
from flask_taskworker.store.sqlite.forks import ForkSafeConnection
from tests.support.waiting import wait_for

pytestmark = pytest.mark.sqlite_only
Rows = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def file(app: Flask, idle_worker: BackgroundTaskWorker) -> SqliteDriver:
    found = app.extensions["taskworker"].store.driver
    found.prepare()
    assert isinstance(found, SqliteDriver)
    return found


@pytest.fixture
def add(idle_worker: BackgroundTaskWorker) -> Task[..., Any, Any]:
    return idle_worker.task(name="add")(lambda *args: None)


@pytest.fixture
def time_limit() -> Iterator[signal.Signals]:
    """A signal whose handler raises, as that of an alarm does."""

    def on_signal(number: int, _: object) -> None:
        raise TimeoutError("it takes too long")

    before = signal.signal(signal.SIGUSR1, on_signal)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


def interrupt(file: SqliteDriver, begins: str, act: Callable[[], Any]) -> None:
    """Have *act* called right after the next statement that begins so."""
    waiting = [act]

    class Interrupted(ForkSafeConnection):
        def execute(self, sql: str, parameters: Any = ()) -> Any:  # type: ignore[override]
            rows = super().execute(sql, parameters)
            if sql.startswith(begins) and waiting:
                waiting.pop()()
            return rows

    file._commits.close()
    file._commits._connection = sqlite3.connect(
        file.path, isolation_level=None, check_same_thread=False, factory=Interrupted
    )


def test_enqueue_that_is_interrupted_after_its_commit_is_not_called_refused(
    file: SqliteDriver, add: Task[..., Any, Any], time_limit: signal.Signals, rows: Rows
) -> None:
    interrupt(file, "INSERT", lambda: signal.raise_signal(time_limit))
    with pytest.raises(TimeoutError, match="it takes too long"):
        add.using(uid="mine").enqueue(1)
    assert add.using(uid="mine").enqueue(1).uid == "mine"
    assert rows("SELECT uid FROM taskworker_job") == [("mine",)]


@pytest.mark.parametrize(("begins", "number"), [("INSERT", 0), ("COMMIT", 2)])
def test_many_that_are_interrupted_are_stored_all_or_none_and_not_called_refused(
    file: SqliteDriver, add: Task[..., Any, Any], time_limit: signal.Signals, rows: Rows, begins: str, number: int
) -> None:
    interrupt(file, begins, lambda: signal.raise_signal(time_limit))
    with pytest.raises(TimeoutError, match="it takes too long"):
        add.enqueue_many([(1,), (2,)])
    assert rows("SELECT count(*) FROM taskworker_job") == [(number,)]
    assert len(add.enqueue_many([(1,), (2,)])) == 2


def take_too_long() -> None:
    raise TimeoutError("it takes too long")


@pytest.mark.parametrize(("begins", "is_stored"), [("COMMIT", True), ("INSERT INTO taskworker_meta", False)])
def test_threads_that_share_a_commit_learn_whether_it_was_made_whatever_its_leader_raises(
    file: SqliteDriver, rows: Rows, begins: str, is_stored: bool
) -> None:
    interrupt(file, begins, take_too_long)
    outcomes: list[object] = []

    def write(number: int) -> None:
        sql = f"INSERT INTO taskworker_meta VALUES ('name {number}', 'x') RETURNING name"
        try:
            outcomes.append(file.write(sql, {}))
        except (TimeoutError, StoreError) as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    with file._commits._lock:
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_for(lambda number=number: len(file._commits._line) == number)
    for thread in threads:
        thread.join(20)
    stored = [[row] for row in rows("SELECT name FROM taskworker_meta WHERE name LIKE 'name %'")]
    assert outcomes.count(TimeoutError) == 1, "the leader alone"
    others = [outcome for outcome in outcomes if outcome is not TimeoutError]
    assert len(stored) == (3 if is_stored else 0)
    assert all(outcome in stored for outcome in others) if is_stored else others == [StoreError] * 2
