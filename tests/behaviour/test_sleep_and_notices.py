"""Jobs that sleep, or wait for a notice, and leave their slot meanwhile. On every database alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from flask_taskworker import (
    BackgroundTaskWorker,
    Job,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobNotFound,
    JobState,
    Limit,
    StepError,
    current_job,
)
from flask_taskworker.store.sql import Store
from tests.support.doors import with_psycopg
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

Rows = Callable[..., list[tuple[Any, ...]]]


def waits(job: Job[Any]) -> None:
    wait_for(lambda: job.refresh().state is JobState.SCHEDULED)


def test_job_sleeps_and_goes_on_never_early(task_worker: BackgroundTaskWorker) -> None:
    begun: list[float] = []

    @task_worker.task
    def work() -> int:
        current_job.step("begin", begun.append, time.time())
        current_job.sleep("trial", timedelta(seconds=0.3))
        begun.append(time.time())
        return current_job.attempt

    assert work.enqueue().result(timeout=20) == 1
    assert begun[1] - begun[0] >= 0.299


def test_end_of_a_sleep_is_stored_once(task_worker: BackgroundTaskWorker, rows: Rows) -> None:
    @task_worker.task
    async def work() -> None:
        await current_job.asleep("trial", 3600)

    job = work.enqueue()
    waits(job)
    due_at = job.run_at
    assert job.why()[0].kind == "sleeps"
    # As by a jump of the clock: it is too early, and the job goes on sleeping.
    rows("UPDATE taskworker_job SET run_at = 0 WHERE id = ?", job.id)
    task_worker._workers()[0].wake()
    wait_for(lambda: rows("SELECT claim, state FROM taskworker_job") == [(2, "scheduled")])
    assert job.refresh().run_at == due_at
    job.cancel()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_notice_wakes_the_job_that_waits_for_it(task_worker: BackgroundTaskWorker, kind: str) -> None:
    if kind == "sync":

        @task_worker.task
        def work() -> Any:
            return current_job.wait_for("approval"), current_job.attempt

    else:

        @task_worker.task
        async def work() -> Any:
            return await current_job.await_for("approval"), current_job.attempt

    job = work.enqueue()
    waits(job)
    assert job.waits
    assert job.run_at is None
    assert job.why()[0].kind == "notice"
    job.tell("something else", 1)
    assert job.refresh().state is JobState.SCHEDULED
    job.tell("approval", ["yes"])
    assert job.result(timeout=20) == (["yes"], 1)


def test_notices_before_the_wait_are_kept_in_order(task_worker: BackgroundTaskWorker) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @task_worker.task
    def work() -> list[Any]:
        begun.set()
        go_on.wait(20)
        return [current_job.wait_for("first"), current_job.wait_for("second", timeout=0, default="none")]

    job = work.enqueue()
    assert begun.wait(20)
    for value in (1, 2):
        task_worker.tell(job.uid, "first", value)
    go_on.set()
    assert job.result(timeout=20) == [1, "none"]


def test_wait_ends_with_the_default_at_its_timeout(task_worker: BackgroundTaskWorker) -> None:
    values: list[Any] = []

    @task_worker.task
    def work() -> None:
        values.append(current_job.wait_for("approval", timeout=0.1, default="none"))
        current_job.sleep("more", 0.05)

    work.enqueue().result(timeout=20)
    # In each execution the same.
    assert values == ["none", "none"]


def test_notice_of_a_session_comes_with_its_commit(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def work() -> Any:
        return current_job.wait_for("approval")

    job = work.enqueue()
    waits(job)
    url = with_psycopg(app.extensions["taskworker"].config.database_uri)
    engine = create_engine(url)
    with Session(engine) as session:
        task_worker.tell(job.uid, "approval", "no", session=session)
        session.rollback()
        task_worker.tell(job.uid, "approval", "yes", session=session)
        session.commit()
    assert job.result(timeout=20) == "yes"
    with Session(engine) as session, pytest.raises(JobFinished):
        job.tell("approval", session=session)
    engine.dispose()


def test_ended_and_unknown_jobs_take_no_notice(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def work() -> None:
        pass

    job = work.enqueue()
    job.result(timeout=20)
    with pytest.raises(JobFinished, match="has succeeded"):
        job.tell("approval")
    with pytest.raises(JobNotFound):
        task_worker.tell("nothing", "approval")
    with pytest.raises(StepError, match="cannot be stored"):
        job.tell("approval", object())


def test_job_that_waits_is_cancelled_at_once(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def work() -> None:
        current_job.wait_for("approval")

    job = work.enqueue()
    waits(job)
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout=20)


def test_room_of_a_limit_is_free_while_a_job_waits(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(limit=Limit("one", running=1))
    def work(name: str) -> Any:
        return current_job.wait_for("approval") if name == "first" else name

    first = work.enqueue("first")
    waits(first)
    assert work.enqueue("second").result(timeout=20) == "second"
    first.tell("approval", "late")
    assert first.result(timeout=20) == "late"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_swallowed_suspension_fails_the_job_with_the_reason(task_worker: BackgroundTaskWorker, kind: str) -> None:
    if kind == "sync":

        @task_worker.task(retry=3)
        def work() -> None:
            with suppress(BaseException):
                current_job.sleep("trial", 3600)

    else:

        @task_worker.task(retry=3)
        async def work() -> None:
            with suppress(BaseException):
                await current_job.await_for("approval")

    with pytest.raises(JobFailed, match="Catch Exception"):
        work.enqueue().result(timeout=20)


def test_at_most_once_and_sleep_contradict_each_other(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(at_most_once=True)
    def work() -> None:
        current_job.sleep("trial", 1)

    with pytest.raises(JobFailed, match="only once"):
        work.enqueue().result(timeout=20)


def test_no_notice_is_lost_beside_the_wait(task_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    started: dict[int, threading.Event] = {n: threading.Event() for n in range(40)}

    @task_worker.task
    def work(number: int) -> int:
        started[number].set()
        value: int = current_job.wait_for("go")
        return value

    for number, event in started.items():
        job = work.enqueue(number)
        assert event.wait(20)
        if number % 2:
            time.sleep(number / 20_000)
        job.tell("go", number)
        assert job.result(timeout=20) == number
    assert rows("SELECT 1 FROM taskworker_notice") == []


def test_of_a_notice_and_the_timeout_at_once_one_wins(task_worker: BackgroundTaskWorker, rows: Rows) -> None:
    @task_worker.task
    def work() -> str:
        value: str = current_job.wait_for("go", timeout=0.02, default="too late")
        return value

    came = set()
    for number in range(20):
        job = work.enqueue()
        wait_for(lambda job=job: job.refresh().state not in (JobState.READY, JobState.RUNNING))  # type: ignore[misc]
        with suppress(JobFinished):
            time.sleep(number / 1_000)
            job.tell("go", "told")
        result = job.result(timeout=20)
        left = rows("SELECT 1 FROM taskworker_notice WHERE job_id = ?", job.id)
        assert (result, left) in (("told", []), ("too late", []), ("too late", [(1,)]))
        came.add(result)
    assert came <= {"told", "too late"}
