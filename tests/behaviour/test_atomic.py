"""Atomic tasks: what a job writes and its success are committed together, or not at all."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_taskworker import (
    BackgroundTaskWorker,
    CancelJob,
    Job,
    JobCancelled,
    JobFailed,
    JobState,
    Retry,
    RetryJob,
    SnoozeJob,
    current_job,
)
from flask_taskworker.client import sessions
from flask_taskworker.errors import DeclarationError
from flask_taskworker.signals import job_succeeded
from flask_taskworker.store.sql import Store
from tests.support.apps import task_worker_of
from tests.support.doors import begin_immediately, beside_the_jobs, engine_of
from tests.support.waiting import wait, wait_for

PATIENCE = 20.0
Rows = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def db(app: Flask, make_worker: Callable[..., BackgroundTaskWorker], request: Any) -> Iterator[SQLAlchemy]:
    """Flask-SQLAlchemy in the jobs' own database; *task_worker* runs there."""

    def prepare(db: SQLAlchemy) -> None:
        if request.node.get_closest_marker("recipe") and db.engine.dialect.name == "sqlite":
            begin_immediately(db.engine)

    with beside_the_jobs(app, make_worker, prepare) as db:
        yield db


@pytest.fixture
def task_worker(db: SQLAlchemy, app: Flask) -> BackgroundTaskWorker:
    return task_worker_of(app)


@pytest.fixture
def notes(rows: Rows) -> Callable[[], list[int]]:
    """What is committed of the application's own."""
    return lambda: [x for (x,) in rows("SELECT x FROM note ORDER BY x")]


def write(db: SQLAlchemy, x: int) -> None:
    db.session.execute(text("INSERT INTO note (x) VALUES (:x)"), {"x": x})


# -- both or neither ---------------------------------------------------------------------------------------------------


def test_writes_and_success_are_committed_together(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]], store: Store
) -> None:
    seen: list[tuple[list[int], str]] = []

    @task_worker.task(atomic=db)
    def add(x: int) -> dict[str, int]:
        write(db, x)
        write(db, x + 1)
        seen.append((notes(), store.record(current_job.id).state))
        return {"x": x}

    job = add.enqueue(1)
    assert job.result(PATIENCE) == {"x": 1}
    assert seen == [([], "running")]
    assert notes() == [1, 2]
    record = store.record(job.id)
    assert (record.state, record.worker_id, record.failures) == ("succeeded", None, 0)
    assert record.expires_at is not None


def test_pending_objects_are_written_before_the_row_of_the_job_is_locked(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker
) -> None:
    class Note(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "note"
        x = db.Column(db.Integer, primary_key=True)

    @task_worker.task(atomic=db)
    def add() -> None:
        db.session.add(Note(x=5))

    written: list[str] = []
    event.listen(db.engine, "before_cursor_execute", lambda *args: written.append(args[2]))
    add.enqueue().result(timeout=PATIENCE)
    tables = [found[1] for sql in written if (found := re.match(r"(?:INSERT INTO|UPDATE) (note|taskworker_job)", sql))]
    assert tables == ["note", "taskworker_job"]


@pytest.mark.recipe
def test_others_may_write_until_the_task_writes(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, rows: Rows, notes: Callable[[], list[int]]
) -> None:
    reads, goes_on = threading.Event(), threading.Event()

    @task_worker.task(atomic=db)
    def slow() -> None:
        db.session.execute(text("SELECT x FROM note")).all()
        reads.set()
        wait(goes_on)
        write(db, 2)

    job = slow.enqueue()
    wait(reads)
    rows("INSERT INTO note (x) VALUES (1)")
    goes_on.set()
    job.result(timeout=PATIENCE)
    assert notes() == [1, 2]


def test_task_that_holds_the_write_lock_for_long_is_reported(
    db: SQLAlchemy,
    task_worker: BackgroundTaskWorker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sessions, "LONG_LOCK", 0.0)

    @task_worker.task(atomic=db)
    def writes() -> None:
        write(db, 1)

    def reported() -> list[str]:
        held = [record.args for record in caplog.records if "write lock" in record.msg]
        return [task.rpartition(".")[2] for task, _ in held]

    writes.enqueue().result(timeout=PATIENCE)
    if db.engine.dialect.name == "sqlite":
        # It is said after the commit, which others see at once.
        wait_for(reported)
        assert reported() == ["writes"]
    else:
        assert reported() == []


def test_task_that_raises_leaves_nothing(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    @task_worker.task(atomic=db)
    def fail(x: int) -> None:
        write(db, x)
        raise ZeroDivisionError("nought")

    with pytest.raises(JobFailed, match="ZeroDivisionError: nought"):
        fail.enqueue(1).result(PATIENCE)
    assert notes() == []


def test_result_that_cannot_be_stored_leaves_nothing(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    @task_worker.task(atomic=db)
    def strange() -> object:
        write(db, 1)
        return object()

    with pytest.raises(JobFailed, match="NotEncodable"):
        strange.enqueue().result(PATIENCE)
    assert notes() == []


def test_commit_that_fails_fails_the_job(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]], driver: str
) -> None:
    deferred = "REFERENCES note_key (x) DEFERRABLE INITIALLY DEFERRED"
    db.session.execute(text("CREATE TABLE note_key (x INTEGER PRIMARY KEY)"))
    db.session.execute(text(f"CREATE TABLE child (x INTEGER {deferred})"))
    db.session.commit()

    @task_worker.task(atomic=db)
    def orphan() -> None:
        if driver == "sqlite":
            db.session.execute(text("PRAGMA foreign_keys = ON"))
        write(db, 1)
        db.session.execute(text("INSERT INTO child (x) VALUES (7)"))

    with pytest.raises(JobFailed, match="IntegrityError"):
        orphan.enqueue().result(PATIENCE)
    assert notes() == []


@pytest.mark.parametrize(
    ("ending", "state"),
    [(SnoozeJob(3600), "scheduled"), (CancelJob("no"), "cancelled"), (RetryJob(delay=3600), "scheduled")],
    ids=["snooze", "cancel", "retry"],
)
def test_job_that_steers_itself_leaves_nothing(
    db: SQLAlchemy,
    task_worker: BackgroundTaskWorker,
    notes: Callable[[], list[int]],
    ending: Exception,
    state: str,
) -> None:
    @task_worker.task(atomic=db)
    def steer() -> None:
        write(db, 1)
        raise ending

    job = steer.enqueue()
    wait_for(lambda: job.refresh().state == state, state)
    assert notes() == []


def test_each_try_begins_again_and_the_last_one_stays(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]], store: Store
) -> None:
    @task_worker.task(atomic=db, retry=Retry(max_attempts=3, base=0.001, jitter=0))
    def third_time_lucky() -> int:
        write(db, current_job.attempt)
        if current_job.attempt < 3:
            raise ZeroDivisionError
        return current_job.attempt

    job = third_time_lucky.enqueue()
    assert job.result(PATIENCE) == 3
    assert notes() == [3]
    assert (store.record(job.id).failures, len(store.attempts(job.id))) == (2, 2)


def test_task_that_writes_nothing_succeeds(db: SQLAlchemy, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(atomic=db)
    def count() -> int:
        return int(db.session.execute(text("SELECT count(*) FROM note")).scalar_one())

    assert count.enqueue().result(PATIENCE) == 0


@pytest.mark.recipe
def test_savepoints_inside_are_free(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    @task_worker.task(atomic=db)
    def with_savepoints() -> None:
        with db.session.begin_nested():
            write(db, 1)
        savepoint = db.session.begin_nested()
        write(db, 2)
        savepoint.rollback()
        write(db, 3)

    with_savepoints.enqueue().result(PATIENCE)
    assert notes() == [1, 3]


def test_jobs_enqueued_inside_share_the_fate(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]], rows: Rows
) -> None:
    @task_worker.task(name="child")
    def child(x: int) -> int:
        return x

    @task_worker.task(atomic=db)
    def parent(fails: bool) -> int:
        write(db, 1)
        job = child.using(session=db.session).enqueue(5)
        if fails:
            raise ZeroDivisionError
        return job.id

    with pytest.raises(JobFailed):
        parent.enqueue(True).result(PATIENCE)
    assert rows("SELECT count(*) FROM taskworker_job WHERE task = 'child'") == [(0,)]
    found: Job[Any] = task_worker.get_job(parent.enqueue(False).result(PATIENCE))
    assert found.result(PATIENCE) == 5
    assert notes() == [1]


def test_success_is_announced_once_and_after_the_commit(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]], app: Flask
) -> None:
    seen: list[tuple[int, list[int]]] = []
    heard = threading.Event()

    def receive(sender: Flask, job: Job[Any], outcome: Any) -> None:
        seen.append((job.id, notes()))
        heard.set()

    @task_worker.task(atomic=db)
    def add() -> None:
        write(db, 1)

    with job_succeeded.connected_to(receive, app):
        job = add.enqueue()
        job.result(PATIENCE)
        wait(heard)
        task_worker.stop()
    assert seen == [(job.id, [1])]


def test_last_progress_and_the_time_to_keep_are_stored(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, store: Store
) -> None:
    @task_worker.task(atomic=db, keep=timedelta(days=100))
    def count() -> None:
        current_job.progress(9, 10)
        write(db, 1)
        current_job.progress(10, 10, "done")

    job = count.enqueue()
    job.result(PATIENCE)
    wait_for(lambda: (progress := job.refresh().progress) is not None and progress.done == 10, "the last progress")
    assert job.expires_at is not None
    assert job.finished_at is not None
    assert job.expires_at - job.finished_at == timedelta(days=100)


# -- fenced ------------------------------------------------------------------------------------------------------------


def test_job_that_another_worker_owns_by_now_leaves_nothing(
    db: SQLAlchemy,
    task_worker: BackgroundTaskWorker,
    notes: Callable[[], list[int]],
    rows: Rows,
    caplog: pytest.LogCaptureFixture,
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    @task_worker.task(atomic=db)
    def slow() -> None:
        entered.set()
        wait(go_on)
        write(db, 1)

    job = slow.enqueue()
    wait(entered)
    rows("UPDATE taskworker_job SET claim = claim + 1, worker_id = 'another' WHERE id = ?", job.id)
    go_on.set()
    wait_for(lambda: "fenced" in caplog.text, "it was fenced")
    assert notes() == []
    assert rows("SELECT state, worker_id, failures FROM taskworker_job") == [("running", "another", 0)]
    rows("UPDATE taskworker_job SET state = 'ready', worker_id = NULL")


def test_late_success_of_a_rescued_job_that_no_one_took_counts(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]], rows: Rows
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    @task_worker.task(atomic=db)
    def slow() -> int:
        entered.set()
        wait(go_on)
        write(db, 1)
        return 1

    job = slow.enqueue()
    wait(entered)
    rows("UPDATE taskworker_job SET state = 'scheduled', worker_id = NULL, run_at = 9999999999999, crashes = 1")
    go_on.set()
    assert job.result(PATIENCE) == 1
    assert notes() == [1]


def test_job_that_has_timed_out_leaves_nothing_when_its_thread_ends(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    @task_worker.task(atomic=db, timeout=0.05)
    def slow() -> None:
        wait(go_on)
        write(db, 1)

    caplog.set_level("INFO")
    job = slow.enqueue()
    with pytest.raises(JobFailed) as caught:
        job.result(PATIENCE)
    assert caught.value.kind == "timeout"
    go_on.set()
    wait_for(lambda: "its thread is free again" in caplog.text, "the thread has ended")
    assert notes() == []
    assert job.refresh().state is JobState.FAILED


@pytest.mark.timing(beat=0.02)
def test_job_that_was_asked_to_stop_but_ends_well_counts(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    entered = threading.Event()

    @task_worker.task(atomic=db)
    def slow() -> int:
        entered.set()
        wait_for(lambda: current_job.cancelled, "the request")
        write(db, 1)
        return 1

    job = slow.enqueue()
    wait(entered)
    job.cancel()
    assert job.result(PATIENCE) == 1
    assert notes() == [1]


@pytest.mark.timing(beat=0.02)
def test_cancelled_job_leaves_nothing(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    entered = threading.Event()

    @task_worker.task(atomic=db)
    def slow() -> None:
        entered.set()
        wait_for(lambda: current_job.cancelled, "the request")
        write(db, 1)
        current_job.check()

    job = slow.enqueue()
    wait(entered)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(PATIENCE)
    assert notes() == []


# -- what is refused ---------------------------------------------------------------------------------------------------


def commits(db: SQLAlchemy) -> None:
    db.session.commit()


def commits_in_a_with_block(db: SQLAlchemy) -> None:
    db.session.rollback()
    with db.session.begin():
        write(db, 3)


@pytest.mark.parametrize("act", [commits, commits_in_a_with_block])
def test_task_that_commits_itself_is_refused(
    db: SQLAlchemy,
    task_worker: BackgroundTaskWorker,
    notes: Callable[[], list[int]],
    act: Callable[[SQLAlchemy], None],
) -> None:
    @task_worker.task(atomic=db, name="selfish")
    def selfish() -> None:
        write(db, 1)
        act(db)

    with pytest.raises(JobFailed, match=r"ArgumentsError: selfish is atomic: its session is committed together with"):
        selfish.enqueue().result(PATIENCE)
    assert notes() == []


def test_refused_commit_that_is_swallowed_does_not_harm(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    @task_worker.task(atomic=db)
    def stubborn() -> str:
        write(db, 1)
        try:
            db.session.commit()
        except Exception as error:  # noqa: BLE001 - as tasks do
            return str(error)
        return ""

    assert "is atomic" in stubborn.enqueue().result(PATIENCE)
    assert notes() == [1]


def test_session_can_be_committed_elsewhere_as_ever(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    @task_worker.task(atomic=db)
    def add() -> None: ...

    add.enqueue().result(PATIENCE)
    write(db, 1)
    db.session.commit()
    assert notes() == [1]


def test_task_that_removes_its_session_is_refused(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    @task_worker.task(atomic=db)
    def careless() -> None:
        db.session.remove()
        write(db, 1)

    with pytest.raises(JobFailed, match="another session each time, or the task has removed its own"):
        careless.enqueue().result(PATIENCE)
    assert notes() == []


def test_session_in_another_database_is_refused_before_anything_runs(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, tmp_path: Path
) -> None:
    engine = engine_of(f"sqlite:///{tmp_path}/elsewhere.db")
    elsewhere = scoped_session(sessionmaker(engine))
    ran: list[int] = []

    @task_worker.task(atomic=elsewhere, name="lost")
    def lost() -> None:
        ran.append(1)

    for _ in range(2):
        with pytest.raises(
            JobFailed, match="lost is atomic, so the jobs must lie in the database of its session. Set TASK"
        ):
            lost.enqueue().result(PATIENCE)
    assert ran == []
    engine.dispose()


def test_worker_does_not_start_where_an_atomic_task_writes_into_another_database(
    idle_worker: BackgroundTaskWorker, tmp_path: Path
) -> None:
    engine = engine_of(f"sqlite:///{tmp_path}/elsewhere.db")
    idle_worker.task(atomic=scoped_session(sessionmaker(engine)), name="lost")(lambda: None)
    with pytest.raises(DeclarationError, match="lost is atomic, so the jobs must lie in the database of its session"):
        idle_worker.start()
    assert idle_worker._workers() == []
    engine.dispose()


@pytest.mark.sqlite_only
def test_worker_starts_where_an_atomic_task_has_a_session_in_jobs_only(
    idle_worker: BackgroundTaskWorker, caplog: pytest.LogCaptureFixture
) -> None:
    def session_of_this_job() -> Session:
        raise LookupError(current_job.id)

    idle_worker.task(atomic=session_of_this_job, name="careful")(lambda: None)
    idle_worker.start()
    with pytest.raises(JobFailed, match="LookupError: 1"):
        idle_worker.tasks["careful"].enqueue().result(PATIENCE)


@pytest.mark.sqlite_only
def test_source_of_new_sessions_is_refused(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    made: list[Session] = []

    def source() -> Session:
        made.append(Session(db.engine))
        return made[-1]

    ran: list[int] = []

    @task_worker.task(atomic=source)
    def lost() -> None:
        ran.append(1)
        write(db, 1)

    with pytest.raises(JobFailed, match="gives another session each time.*scoped_session"):
        lost.enqueue().result(PATIENCE)
    assert (ran, notes()) == ([], [])
    for session in made:
        session.close()


@pytest.mark.sqlite_only
def test_source_that_gives_no_session_is_refused(db: SQLAlchemy, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(atomic=lambda: "session", name="typo")
    def typo() -> None: ...

    with pytest.raises(JobFailed, match="ArgumentsError: .*'session' is not"):
        typo.enqueue().result(PATIENCE)


@pytest.mark.sqlite_only
def test_declaration_is_checked(idle_worker: BackgroundTaskWorker) -> None:
    async def coroutine() -> None: ...

    def function() -> None: ...

    with pytest.raises(DeclarationError, match="coroutine is async, and atomic=… takes sync tasks only"):
        idle_worker.task(atomic=lambda: None)(coroutine)
    with pytest.raises(
        DeclarationError, match="atomic = 'db' is not allowed. Allowed: Flask-SQLAlchemy's db, or a call"
    ):
        idle_worker.task(atomic="db")(function)


# -- other sources of sessions -----------------------------------------------------------------------------------------


def test_plain_scoped_session_will_do(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    scoped = scoped_session(sessionmaker(db.engine))

    @task_worker.task(atomic=scoped)
    def add(x: int) -> None:
        scoped.execute(text("INSERT INTO note (x) VALUES (:x)"), {"x": x})

    for number in range(3):
        add.enqueue(number).result(PATIENCE)
    assert notes() == [0, 1, 2]


def test_session_that_is_looked_up_in_each_context_will_do(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    """As Flask-SQLAlchemy-Lite has it."""

    class Lite:
        @property
        def session(self) -> Session:
            return db.session()

    lite = Lite()

    @task_worker.task(atomic=lite)
    def add(x: int) -> None:
        lite.session.execute(text("INSERT INTO note (x) VALUES (:x)"), {"x": x})

    add.enqueue(1).result(PATIENCE)
    assert notes() == [1]


@pytest.mark.recipe
def test_many_at_once_each_exactly_once(
    db: SQLAlchemy, task_worker: BackgroundTaskWorker, notes: Callable[[], list[int]]
) -> None:
    @task_worker.task(atomic=db)
    def add(x: int) -> None:
        write(db, x)

    jobs = add.enqueue_many([(number,) for number in range(100)])
    for job in jobs:
        job.result(PATIENCE)
    assert notes() == list(range(100))
