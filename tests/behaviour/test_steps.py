"""Steps: what a job has done once is not done again when it runs again. On every database alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from flask_taskworker import BackgroundTaskWorker, JobFailed, JobState, Limit, Retry, StepError, current_job
from flask_taskworker.client import steps
from flask_taskworker.store.sql import Store
from tests.support.apps import task_worker_of
from tests.support.doors import beside_the_jobs
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

Rows = Callable[..., list[tuple[Any, ...]]]
SOON = Retry(3, base=0.001, jitter=0)


@dataclass
class Account:
    """A type that only the hint of a step names."""

    user: int


class Log:
    """What was done, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def do(self, what: str) -> str:
        self.done.append(what)
        return what.upper()

    def account(self, user: int) -> Account:
        self.done.append("account")
        return Account(user)

    async def ado(self, what: str) -> str:
        return self.do(what)


@pytest.fixture
def log() -> Log:
    return Log()


# -- once --------------------------------------------------------------------------------------------------------------


def test_retry_goes_on_behind_the_last_step(task_worker: BackgroundTaskWorker, log: Log) -> None:
    values: list[Any] = []

    @task_worker.task(retry=SOON)
    def onboard() -> list[str]:
        values.append(current_job.step("account", log.account, 7))
        first = current_job.step("first", log.do, "first")
        second = current_job.step("second", log.do, what="second")
        if current_job.attempt < 3:
            raise ValueError("not yet")
        return [first, second]

    assert onboard.enqueue().result(timeout=20) == ["FIRST", "SECOND"]
    assert log.done == ["account", "first", "second"]
    assert values == [Account(7)] * 3


def test_step_that_raises_runs_again(task_worker: BackgroundTaskWorker, log: Log) -> None:
    def flaky() -> None:
        log.do("tried")
        if len(log.done) < 2:
            raise ValueError("not yet")

    @task_worker.task(retry=SOON)
    def work() -> None:
        assert current_job.step("flaky", flaky) is None
        if current_job.attempt < 3:
            raise ValueError("again")

    work.enqueue().result(timeout=20)
    assert log.done == ["tried", "tried"]


def test_async_steps_are_not_repeated(task_worker: BackgroundTaskWorker, log: Log) -> None:
    @task_worker.task(retry=SOON)
    async def work() -> list[str]:
        values = [await current_job.astep(f"page {n}", log.ado, f"page {n}") for n in range(3)]
        if current_job.attempt < 2:
            raise ValueError("not yet")
        return values

    assert work.enqueue().result(timeout=20) == ["PAGE 0", "PAGE 1", "PAGE 2"]
    assert log.done == ["page 0", "page 1", "page 2"]


def test_retry_by_hand_goes_on_and_a_fresh_one_begins_again(task_worker: BackgroundTaskWorker, log: Log) -> None:
    broken = True

    @task_worker.task
    def work() -> None:
        current_job.step("first", log.do, "first")
        if broken:
            raise ValueError("not yet")

    job = work.enqueue()
    job.wait(timeout=20)
    assert job.retry()
    assert job.wait(timeout=20).state is JobState.FAILED
    assert log.done == ["first"]
    broken = False
    assert job.retry(fresh=True)
    job.result(timeout=20)
    assert log.done == ["first", "first"]


def test_first_of_two_executions_to_end_a_step_counts(task_worker: BackgroundTaskWorker, store: Store) -> None:
    def slow() -> str:
        # Another execution, of the same number after a power cut, ends the step meanwhile.
        values = {"id": current_job.id, "claim": current_job.claim, "name": "slow", "result": '"theirs"'}
        store.driver.write(_ADD, {**values, "number": 1, "began_at": 1, "ended_at": 1})
        return "mine"

    @task_worker.task
    def work() -> str:
        return current_job.step("slow", slow)

    assert work.enqueue().result(timeout=20) == "theirs"


def test_execution_that_has_lost_its_job_stores_no_step(
    task_worker: BackgroundTaskWorker, rows: Rows, store: Store
) -> None:
    seen: list[str] = []

    def slow() -> None:
        store.driver.write("UPDATE taskworker_job SET claim = claim + 1 WHERE id = :id", {"id": current_job.id})

    @task_worker.task
    def work() -> None:
        try:
            current_job.step("slow", slow)
        except Exception as error:
            seen.append(type(error).__name__)
            raise

    job = work.enqueue()
    wait_for(lambda: bool(seen))
    assert set(seen) == {"LeaseLost"}
    assert rows("SELECT 1 FROM taskworker_step") == []
    job.cancel()


@pytest.mark.timing(cleaning_interval=0.05, prune_interval=0.1)
def test_steps_are_pruned_with_their_job(app: Flask, make_worker: Any, rows: Rows, log: Log) -> None:
    app.config["TASKER_KEEP_SUCCEEDED"] = 0
    task_worker = make_worker(app)

    @task_worker.task
    def work(name: str) -> None:
        current_job.step("first", log.do, name)

    for name in ("one", "two"):
        work.enqueue(name)
    wait_for(lambda: len(log.done) == 2 and not rows("SELECT 1 FROM taskworker_job"))
    assert rows("SELECT 1 FROM taskworker_step") == []


# -- misuse ------------------------------------------------------------------------------------------------------------


def test_step_outside_of_a_job_is_refused() -> None:
    with pytest.raises(StepError, match="No job runs here"):
        current_job.step("first", len, "abc")


def _twice() -> None:
    current_job.step("page", len, "abc")
    current_job.step("page", len, "abc")


def _unstorable() -> None:
    current_job.step("page", object)


def _coroutine() -> None:
    async def page() -> None:
        pass

    current_job.step("page", page)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_twice, "was used before in this execution"),
        (_unstorable, "cannot be stored"),
        (_coroutine, "astep"),
        (lambda: current_job.step("", len, "abc"), "printable"),
        (lambda: current_job.cursor("page", None).over([1]).__next__(), "key"),
    ],
)
def test_misused_step_fails_the_job_at_once(
    task_worker: BackgroundTaskWorker, function: Callable[[], None], words: str
) -> None:
    @task_worker.task(retry=SOON)
    def work() -> None:
        function()

    job = work.enqueue()
    with pytest.raises(JobFailed, match=words):
        job.result(timeout=20)
    assert job.refresh().attempt == 1


# -- together with the application's rows ------------------------------------------------------------------------------


@pytest.fixture
def db(app: Flask, make_worker: Callable[..., BackgroundTaskWorker]) -> Iterator[SQLAlchemy]:
    """Flask-SQLAlchemy in the jobs' own database, with a table."""

    def prepare(db: SQLAlchemy) -> None:
        db.session.execute(text("CREATE TABLE invoice (x INTEGER)"))
        db.session.commit()

    with beside_the_jobs(app, make_worker, prepare) as db:
        yield db


def test_step_and_the_rows_of_the_application_commit_together(app: Flask, db: SQLAlchemy, rows: Rows) -> None:
    tried: list[int] = []

    def bill(x: int) -> int:
        db.session.execute(text("INSERT INTO invoice (x) VALUES (:x)"), {"x": x})
        tried.append(x)
        if len(tried) < 2:
            raise ValueError("after the write")
        return x

    @task_worker_of(app).task(retry=SOON)
    def pay(x: int) -> int:
        value = current_job.step_in(db.session, "invoice", bill, x)
        if current_job.attempt < 3:
            raise ValueError("after the step")
        return value

    assert pay.enqueue(5).result(timeout=20) == 5
    assert tried == [5, 5]
    assert rows("SELECT x FROM invoice") == [(5,)]


def test_lost_job_commits_no_rows_of_a_step(app: Flask, db: SQLAlchemy, rows: Rows, store: Store) -> None:
    seen: list[str] = []

    def bill() -> None:
        store.driver.write("UPDATE taskworker_job SET claim = claim + 1 WHERE id = :id", {"id": current_job.id})
        db.session.execute(text("INSERT INTO invoice (x) VALUES (1)"))

    @task_worker_of(app).task
    def pay() -> None:
        try:
            current_job.step_in(db.session, "invoice", bill)
        except Exception as error:
            seen.append(type(error).__name__)
            raise

    job = pay.enqueue()
    wait_for(lambda: bool(seen))
    assert set(seen) == {"LeaseLost"}
    assert rows("SELECT x FROM invoice") == []
    job.cancel()


@pytest.mark.parametrize("kind", ["step", "cursor"])
def test_step_in_a_session_of_another_database_is_refused(
    app: Flask, db: SQLAlchemy, tmp_path: Path, kind: str
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/other.db")

    @task_worker_of(app).task
    def pay() -> None:
        with Session(engine) as session:
            if kind == "step":
                current_job.step_in(session, "invoice", len, "abc")
            else:
                current_job.cursor("invoices", start=0, session=session).move(1)

    with pytest.raises(JobFailed, match="another database"):
        pay.enqueue().result(timeout=20)
    engine.dispose()


def test_step_in_an_atomic_task_is_refused_at_once(app: Flask, db: SQLAlchemy) -> None:
    @task_worker_of(app).task(atomic=db, retry=SOON)
    def pay() -> None:
        current_job.step("invoice", len, "abc")

    job = pay.enqueue()
    with pytest.raises(JobFailed, match="is atomic"):
        job.result(timeout=20)
    assert job.refresh().attempt == 1


# -- cursors -----------------------------------------------------------------------------------------------------------


def test_loop_goes_on_where_its_cursor_is(task_worker: BackgroundTaskWorker) -> None:
    done: list[int] = []

    def rows_after(last: int) -> list[int]:
        return [row for row in range(10, 100, 10) if row > last][:4]

    @task_worker.task(retry=SOON)
    def load() -> int:
        cursor = current_job.cursor("rows", start=0)
        for row in cursor.over(rows_after, key=lambda row: row):
            if row == 60 and current_job.attempt == 1:
                raise ValueError("not yet")
            done.append(row)
        return cursor.position

    assert load.enqueue().result(timeout=20) == 90
    assert done == list(range(10, 100, 10))


def test_cursor_counts_the_items_of_an_iterable(task_worker: BackgroundTaskWorker) -> None:
    done: list[str] = []

    @task_worker.task(retry=SOON)
    def load() -> int:
        cursor = current_job.cursor("lines", start=0)
        for line in cursor.over("abcdefg", every=2):
            if line == "f" and current_job.attempt == 1:
                raise ValueError("not yet")
            done.append(line)
        return cursor.position

    assert load.enqueue().result(timeout=20) == 7
    assert done == list("abcde") + list("efg")


def test_cursor_is_moved_by_hand(task_worker: BackgroundTaskWorker) -> None:
    seen: list[str] = []

    @task_worker.task(retry=SOON)
    def load() -> None:
        cursor = current_job.cursor("token", start="")
        seen.append(cursor.position)
        cursor.move(f"{cursor.position}x")
        if current_job.attempt < 3:
            raise ValueError("not yet")

    load.enqueue().result(timeout=20)
    assert seen == ["", "x", "xx"]


def test_cursor_is_moved_in_a_coroutine(task_worker: BackgroundTaskWorker) -> None:
    seen: list[int] = []

    @task_worker.task(retry=SOON)
    async def load() -> None:
        cursor = current_job.cursor("page", start=0)
        seen.append(cursor.position)
        await cursor.amove(cursor.position + 1)
        if current_job.attempt < 3:
            raise ValueError("not yet")

    load.enqueue().result(timeout=20)
    assert seen == [0, 1, 2]


def test_cursor_moves_together_with_the_rows_of_the_application(app: Flask, db: SQLAlchemy, rows: Rows) -> None:
    @task_worker_of(app).task(retry=SOON)
    def load() -> int:
        cursor = current_job.cursor("rows", start=0, session=db.session)
        for x in cursor.over(lambda last: range(last + 1, 10), key=lambda x: x, every=2):
            db.session.execute(text("INSERT INTO invoice (x) VALUES (:x)"), {"x": x})
            if x in (4, 7) and current_job.attempt < 3:
                raise ValueError("after the write")
        return cursor.position

    assert load.enqueue().result(timeout=20) == 9
    assert sorted(rows("SELECT x FROM invoice")) == [(x,) for x in range(1, 10)]


def test_lost_job_moves_no_cursor_and_commits_no_rows(app: Flask, db: SQLAlchemy, rows: Rows, store: Store) -> None:
    seen: list[str] = []

    @task_worker_of(app).task
    def load() -> None:
        cursor = current_job.cursor("rows", start=0, session=db.session)
        store.driver.write("UPDATE taskworker_job SET claim = claim + 1 WHERE id = :id", {"id": current_job.id})
        db.session.execute(text("INSERT INTO invoice (x) VALUES (1)"))
        try:
            cursor.move(1)
        except Exception as error:
            seen.append(type(error).__name__)
            raise

    job = load.enqueue()
    wait_for(lambda: bool(seen))
    assert set(seen) == {"LeaseLost"}
    assert rows("SELECT x FROM invoice") == []
    job.cancel()


# -- a worker stops ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["step", "cursor", "check"])
def test_worker_that_stops_hands_a_job_over_at_once(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker], point: str
) -> None:
    task_worker = make_worker(app)
    begun, go_on = threading.Event(), threading.Event()
    seen: list[tuple[int, bool]] = []

    def pause() -> None:
        begun.set()
        go_on.wait(20)
        wait_for(lambda: current_job.stopping or current_job.claim > 1)

    @task_worker.task
    def work() -> int:
        cursor = current_job.cursor("rows", start=0)
        current_job.step("first", pause)
        seen.append((current_job.claim, current_job.stopping))
        match point:
            case "step":
                current_job.step("second", len, "abc")
            case "cursor":
                cursor.move(1)
            case _:
                current_job.check()
        return current_job.attempt

    job = work.enqueue()
    assert begun.wait(20)
    stopper = threading.Thread(target=task_worker.stop, kwargs={"timeout": 60})
    stopper.start()
    go_on.set()
    stopper.join(20)
    assert not stopper.is_alive()
    assert job.refresh().state is JobState.READY
    task_worker.start()
    assert job.result(timeout=20) == 1
    assert seen == [(1, True), (2, False)]


def test_job_that_is_handed_over_gives_its_room_back(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker], rows: Rows
) -> None:
    task_worker = make_worker(app)
    begun = threading.Event()

    @task_worker.task(limit=Limit("one", running=1))
    def work(name: str) -> str:
        if current_job.claim == 1 and name == "first":
            begun.set()
            wait_for(lambda: current_job.stopping)
        current_job.step("last", len, name)
        return name

    first, second = work.enqueue("first"), work.enqueue("second")
    assert begun.wait(20)
    task_worker.stop(timeout=60)
    assert first.refresh().state in (JobState.READY, JobState.HELD)
    assert rows("SELECT 1 FROM taskworker_permit WHERE phase = 2 AND begun = 1") == []
    task_worker.start()
    assert (first.result(timeout=20), second.result(timeout=20)) == ("first", "second")
    assert rows("SELECT id FROM taskworker_job ORDER BY finished_at, id") == [(first.id,), (second.id,)]


def test_many_steps_are_warned_of(
    task_worker: BackgroundTaskWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(steps, "MANY", 5)

    @task_worker.task
    def work() -> None:
        for number in range(10):
            current_job.step(f"page {number}", len, "abc")

    work.enqueue().result(timeout=20)
    assert caplog.text.count("For a long loop use current_job.cursor.") == 1


def test_first_execution_asks_for_no_steps(task_worker: BackgroundTaskWorker, store: Store, log: Log) -> None:
    asked: list[str] = []
    read = store.driver.read
    store.driver.read = lambda sql, parameters: (asked.append(sql), read(sql, parameters))[1]  # type: ignore[method-assign]

    @task_worker.task(retry=SOON)
    def work() -> None:
        if current_job.attempt == 3:
            return
        current_job.step("first", log.do, "first")
        current_job.step("second", log.do, "second")
        raise ValueError("not yet")

    job = work.enqueue()
    wait_for(lambda: store.record(job.id).state == "succeeded")
    # One SELECT of the second execution, none of the first and the third.
    assert len([sql for sql in asked if "taskworker_step" in sql]) == 1


_ADD = (
    "INSERT INTO taskworker_step (job_id, name, result, number, claim, began_at, ended_at) "
    "VALUES (:id, :name, :result, :number, :claim, :began_at, :ended_at)"
)
