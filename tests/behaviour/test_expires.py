"""Jobs that are worth nothing after a time. On every database alike."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Every, JobCancelled, Retry
from flask_taskworker.errors import ArgumentsError, DeclarationError
from flask_taskworker.testing import Jobs
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

MakeWorker = Callable[..., BackgroundTaskWorker]


def test_job_that_no_worker_has_begun_in_time_is_cancelled_with_the_reason(app: Flask, make_worker: MakeWorker) -> None:
    task_worker = make_worker(app, start=False)

    @task_worker.task(expires=0.001)
    def greet(name: str) -> str:
        return name

    late, later, timely = greet.enqueue("Ana"), greet.enqueue("Bo"), greet.using(expires=3600).enqueue("Cem")
    task_worker.start()
    assert timely.result(timeout=20) == "Cem"
    for job in (late, later):
        with pytest.raises(JobCancelled, match="Not begun within 1 ms of when it was due"):
            job.result(timeout=20)
    assert late.retry()
    assert late.result(timeout=20) == "Ana"


def test_job_that_has_begun_once_goes_on_however_late(app: Flask, make_worker: MakeWorker) -> None:
    task_worker = make_worker(app)

    @task_worker.task(expires=0.5, retry=Retry(2, base=1, jitter=0))
    def greet() -> str:
        if not tried:
            tried.append(1)
            raise ValueError("not yet")
        return "hello"

    tried: list[int] = []
    assert greet.enqueue().result(timeout=20) == "hello"


def test_time_of_a_delayed_job_begins_when_it_is_due(app: Flask, make_worker: MakeWorker) -> None:
    task_worker, jobs = make_worker(app, start=False), Jobs(app)

    @task_worker.task(expires=timedelta(minutes=1))
    def greet() -> str:
        return "hello"

    job = greet.using(delay=3600).enqueue()
    jobs.drain(scheduled=True)
    assert job.result(timeout=0) == "hello"


def test_jobs_of_a_schedule_expire_as_others(
    app: Flask, make_worker: MakeWorker, rows: Callable[..., list[tuple[Any, ...]]]
) -> None:
    task_worker = make_worker(app, start=False)

    @task_worker.task(schedule=Every(seconds=0.1), expires=60)
    def tick() -> None: ...

    task_worker.start()
    wait_for(lambda: rows("SELECT origin FROM taskworker_job"))
    assert rows("SELECT DISTINCT origin FROM taskworker_job") == [('{"expires_ms": 60000}',)]


@pytest.mark.parametrize("value", [0, timedelta(0)])
def test_expiry_that_lets_no_job_begin_is_refused(task_worker: BackgroundTaskWorker, value: Any) -> None:
    @task_worker.task
    def greet() -> None: ...

    with pytest.raises(ArgumentsError, match="more than 0 seconds"):
        greet.using(expires=value)
    with pytest.raises(DeclarationError, match="more than 0 seconds"):
        task_worker.task(expires=value)
