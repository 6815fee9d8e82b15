"""What a job tells while it runs, and what enqueueing many refuses."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Job, current_job
from flask_taskworker.errors import ArgumentsError


def wait_for_progress(job: Job[None]) -> float:
    deadline = time.monotonic() + 20
    while job.refresh().progress is None:
        assert time.monotonic() < deadline, "no progress was written"
        time.sleep(0.01)
    assert job.progress is not None
    return job.progress.done


def test_progress_wakes_a_sleeping_worker(make_app: Callable[..., Flask]) -> None:
    app = make_app(TASKER_LOOP_INTERVAL=3600)
    task_worker = BackgroundTaskWorker(app)
    seen = threading.Event()

    @task_worker.task
    def report() -> None:
        # The report must wake the loop, not the job's start: so it comes when the loop sleeps again.
        seen.wait(0.3)
        current_job.progress(7, 10)
        assert seen.wait(30)

    task_worker.start()
    try:
        job = report.enqueue()
        assert wait_for_progress(job) == 7
        seen.set()
        job.result(timeout=20)
    finally:
        seen.set()
        task_worker.stop(timeout=5)


@pytest.mark.parametrize("option", ["uid", "unique"])
def test_enqueueing_many_refuses_what_only_one_job_can_have(option: str, make_app: Callable[..., Flask]) -> None:
    app = make_app()
    task_worker = BackgroundTaskWorker(app)

    @task_worker.task
    def add(x: int) -> int:
        return x

    call = add.using(**{option: "one"})  # type: ignore[arg-type]
    with pytest.raises(ArgumentsError, match="one by one"):
        call.enqueue_many([(1,), (2,)])
    with pytest.raises(ArgumentsError, match="one by one"):
        asyncio.run(call.aenqueue_many([(1,), (2,)]))
