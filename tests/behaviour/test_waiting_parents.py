"""Jobs that wait for the results of other jobs, as a running worker has them. On every database alike."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Job, current_job
from flask_taskworker.ops.overview import Overview
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases(slow="postgresql")

Maker = Callable[..., BackgroundTaskWorker]


def test_async_parents_do_not_count_while_they_wait(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    app.config["TASKER_CONCURRENCY"] = 3
    task_worker = make_worker(app)

    @task_worker.task
    async def child(number: int) -> int:
        return number

    @task_worker.task
    async def parent(number: int) -> int:
        job = await child.aenqueue(number)
        with task_worker.batch("children") as batch:
            child.using(batch=batch).enqueue(number)
        await batch.await_()
        return await job.aresult()

    jobs = parent.enqueue_many([(i,) for i in range(6)])
    assert [job.result(timeout=30) for job in jobs] == list(range(6))
    counts = task_worker._workers()[0].work_loop.jobs
    wait_for(lambda: counts.parents == {"async": 0, "sync": 0} and counts.counts()["async"] == 0)
    assert counts.free("async") == 3


@pytest.mark.timing(standstill_grace=0.1, beat=0.05)
def test_sync_parents_that_have_all_threads_are_reported(
    app: Flask, make_worker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    app.config["TASKER_THREADS"] = 2
    task_worker = make_worker(app)
    children: list[Job[Any]] = []
    lock = threading.Lock()

    @task_worker.task
    def child() -> None: ...

    @task_worker.task
    def parent() -> None:
        job = child.enqueue()
        with lock:
            children.append(job)
        job.result(timeout=20)

    with caplog.at_level(logging.ERROR, "flask_taskworker"):
        parents = parent.enqueue_many([(), ()])
        store = app.extensions["taskworker"].store
        wait_for(lambda: any("wait for the results of others" in record.message for record in caplog.records))
        wait_for(lambda: any("wait for the results" in problem for problem in Overview.take(store).problems()))
        (reason,) = children[0].why()
        assert reason.kind == "waiting parents"
        for job in children:
            job.cancel()
        wait_for(lambda: all(job.refresh().state.finished for job in parents))
    wait_for(lambda: not Overview.take(store).problems())


def test_why_names_what_a_job_waits_for(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def work() -> list[int]:
        return [parent.id for parent in current_job.parents]

    first = work.using(delay=3600).enqueue()
    with task_worker.batch("others") as batch:
        work.using(batch=batch, delay=3600).enqueue()
    child = work.using(after=[first, batch], when="failed").enqueue()
    (reason,) = child.why()
    assert reason.kind == "after"
    assert f"job {first.id} to fail (scheduled)" in reason.text
    assert f"batch {batch.id} to fail" in reason.text
