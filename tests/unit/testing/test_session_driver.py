"""A test in a transaction that is rolled back at its end: jobs are written, asserted and run inside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_taskworker import BackgroundTaskWorker, JobState, Limit, Mail, Message, Task, TaskWorkerError
from flask_taskworker.testing import Jobs, LiveWorker, Outbox, TaskClock


@pytest.fixture
def engine(app: Flask) -> Iterator[Engine]:
    """The application's own engine on the database of the jobs."""
    state = app.extensions["taskworker"]
    state.store.driver.prepare()
    uri = state.config.database_uri
    engine = create_engine(uri.set(drivername="postgresql+psycopg") if "postgresql" in uri.drivername else uri)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE customer (name TEXT)"))
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """The recipe of SQLAlchemy's documentation: a transaction around the whole test."""
    with closing(engine.connect()) as connection:
        connection.begin()
        yield connection
        connection.rollback()


@pytest.fixture
def session(connection: Connection) -> scoped_session[Session]:
    return scoped_session(sessionmaker(bind=connection, join_transaction_mode="create_savepoint"))


@pytest.fixture
def jobs(app: Flask, session: scoped_session[Session]) -> Iterator[Jobs]:
    with Jobs(app, session=session) as jobs:
        yield jobs


@pytest.fixture
def count(task_worker: BackgroundTaskWorker, session: scoped_session[Session]) -> Task[..., Any, Any]:
    @task_worker.task
    def count(name: str) -> int:
        with session() as own:
            own.execute(text("INSERT INTO customer VALUES (:name)"), {"name": f"{name}, greeted"})
            own.commit()
            return int(own.scalar(text("SELECT count(*) FROM customer")) or 0)

    return count


def test_jobs_are_written_run_and_rolled_back_with_the_test(
    app: Flask,
    engine: Engine,
    connection: Connection,
    session: scoped_session[Session],
    jobs: Jobs,
    count: Task[..., Any, Any],
) -> None:
    session.execute(text("INSERT INTO customer VALUES ('ana')"))
    plain, delayed = count.enqueue("ana"), count.using(delay=60).enqueue("bo")
    within = count.using(session=session).enqueue("cem")
    session.commit()
    jobs.assert_enqueued(count, "ana")
    jobs.assert_enqueued(count, "cem", run_at=None)
    assert jobs.drain().succeeded == 2
    assert (plain.result(timeout=0), within.refresh().result(timeout=0)) == (2, 3)
    assert jobs.drain(scheduled=True).succeeded == 1
    assert delayed.result(timeout=0) == 4
    assert [job.id for job in count.enqueue_many([("a",), ("b",)])] == [within.id + 1, within.id + 2]
    session.remove()
    connection.rollback()
    jobs.close()
    assert Jobs(app).enqueued() == []
    assert app.extensions["taskworker"].store.driver.read("SELECT count(*) FROM taskworker_job", {}) == [(0,)]
    with engine.connect() as other:
        assert other.scalar(text("SELECT count(*) FROM customer")) == 0


def test_failures_retries_and_async_tasks_run_inside_the_transaction_of_the_test(
    app: Flask, task_worker: BackgroundTaskWorker, jobs: Jobs
) -> None:
    @task_worker.task(retry=2)
    async def fail() -> None:
        raise LookupError

    job = fail.enqueue()
    with pytest.raises(LookupError):
        jobs.drain()
    assert job.refresh().state is JobState.SCHEDULED
    with TaskClock(app) as clock:
        clock.advance(days=1, raise_errors=False)
    assert job.refresh().state is JobState.FAILED


def test_mails_are_queued_and_sent_inside_the_transaction_of_the_test(app: Flask, jobs: Jobs) -> None:
    mail: Mail = app.extensions["mail"]
    with Outbox(app) as outbox, app.app_context():
        mail.send_later(Message("Hello", recipients=["ana@example.org"], body="Hi"))
        jobs.drain()
        assert outbox.find(to="ana@example.org").subject == "Hello"


def test_a_live_worker_beside_a_session_is_refused(app: Flask, jobs: Jobs) -> None:
    with pytest.raises(TaskWorkerError, match="connections of its own"):
        LiveWorker(app).__enter__()


@pytest.mark.sqlite_only
def test_a_drain_that_cannot_begin_says_so(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(TASKER_LOCK_TIMEOUT=0.2)
    task = BackgroundTaskWorker(app).task(name="work")(lambda: None)
    jobs = Jobs(app)
    task.enqueue()
    engine = create_engine(app.extensions["taskworker"].config.database_uri)
    with closing(engine.connect()) as holder:
        holder.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(TaskWorkerError, match=r"The jobs cannot be run\..*Jobs\(app, session=…\)"):
            jobs.drain()
        holder.rollback()
    assert jobs.drain().succeeded == 1
    engine.dispose()


def test_limited_jobs_have_their_places_in_the_transaction_of_the_test(
    jobs: Jobs, connection: Connection, task_worker: BackgroundTaskWorker
) -> None:
    shop = Limit("shop", running=1, key="shop_id")

    @task_worker.task(limit=shop)
    def sync(shop_id: int) -> None: ...

    sync.enqueue_many([(7,), (7,)])
    sync.enqueue(7)
    assert len(jobs.in_line(shop, 7)) == 3
    assert jobs.drain().succeeded == 3
    assert connection.execute(text("SELECT count(*) FROM taskworker_permit")).scalar() == 3
    connection.rollback()
    assert connection.execute(text("SELECT count(*) FROM taskworker_permit")).scalar() == 0
