"""A thread that holds the lock itself gets an error at once; what another thread holds is waited for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.errors import NotAccepted

IMMEDIATELY = "BEGIN IMMEDIATE"


@pytest.fixture
def task(make_app: Callable[..., Flask]) -> Any:
    app = make_app(TASKER_LOCK_TIMEOUT=20)
    task_worker = BackgroundTaskWorker(app)
    app.extensions["taskworker"].store.driver.prepare()

    @task_worker.task
    def note(x: int) -> int:
        return x

    with app.app_context():
        yield note
    app.extensions["taskworker"].client.close()


@pytest.fixture(params=["the driver's own", "BEGIN", IMMEDIATELY])
def engine(task: Any, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine on the jobs' file that begins its transactions in one of three ways."""
    database = Path(task._client().store.driver.path)
    engine = create_engine(f"sqlite:///{database}", connect_args={"timeout": 20})
    if request.param != "the driver's own":

        @event.listens_for(engine, "connect")
        def connect(connection: Any, record: object) -> None:
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def begin(connection: Any) -> None:
            connection.exec_driver_sql(request.param)

    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE mine (x INTEGER)"))
    yield engine
    engine.dispose()


def enqueue(task: Any) -> None:
    task.enqueue(1)


def aenqueue(task: Any) -> None:
    asyncio.run(task.aenqueue(1))


@pytest.mark.parametrize("call", [enqueue, aenqueue])
def test_enqueue_in_the_middle_of_ones_own_write_is_refused_at_once(
    task: Any, engine: Engine, call: Callable[[Any], None]
) -> None:
    with Session(engine) as session:
        session.execute(text("INSERT INTO mine VALUES (1)"))
        started = time.monotonic()
        with pytest.raises(NotAccepted, match=r"holds the write lock .* itself.*session=db.session"):
            call(task)
        assert time.monotonic() - started < 10
        session.commit()
    call(task)


def test_reading_takes_the_lock_only_where_transactions_begin_with_it(
    task: Any, engine: Engine, request: pytest.FixtureRequest
) -> None:
    with Session(engine) as session:
        session.execute(text("SELECT * FROM mine")).all()
        if request.node.callspec.params["engine"] == IMMEDIATELY:
            with pytest.raises(NotAccepted, match="itself"):
                task.enqueue(1)
        else:
            task.enqueue(1)


def test_what_another_thread_holds_is_waited_for(task: Any, engine: Engine) -> None:
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with Session(engine) as session:
            session.execute(text("INSERT INTO mine VALUES (1)"))
            held.set()
            free.wait(20)
            session.commit()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(20)
    threading.Timer(0.3, free.set).start()
    task.enqueue(1)
    thread.join()
