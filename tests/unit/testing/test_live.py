"""``flask_taskworker.testing.LiveWorker``: a worker beside the test."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, TaskWorkerError
from flask_taskworker.testing import Jobs, LiveWorker
from tests.support.waiting import wait_for

forks = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")


@pytest.mark.sqlite_only
@pytest.mark.parametrize("process", [False, pytest.param(True, marks=forks)])
def test_live_worker_runs_jobs_until_it_is_stopped(
    process: bool, app: Flask, task_worker: BackgroundTaskWorker
) -> None:
    @task_worker.task
    def where() -> tuple[int, str]:
        return os.getpid(), threading.current_thread().name

    with LiveWorker(app, process=process) as worker:
        pid, thread = where.enqueue().result(timeout=20)
        assert thread != threading.current_thread().name
        assert pid == (worker.pid if process else os.getpid())
        assert (pid != os.getpid()) is process
    assert app.extensions["taskworker"].store.workers() == []
    assert where.enqueue().refresh().state == "ready"


@forks
def test_job_of_a_killed_worker_is_run_by_the_next(
    app: Flask, task_worker: BackgroundTaskWorker, tmp_path: Path, jobs: Jobs
) -> None:
    begun, release = tmp_path / "begun", threading.Event()

    @task_worker.task
    def slow() -> str:
        if begun.exists():
            return "again"
        begun.touch()
        release.wait(60)
        return "first"

    with LiveWorker(app, process=True) as worker:
        job = slow.enqueue()
        wait_for(begun.exists)
        worker.kill()
        with pytest.raises(RuntimeError, match="No process to kill"):
            worker.kill()
    assert jobs.recover() == [job]
    assert jobs.drain().succeeded == 1
    assert job.result(timeout=0) == "again"


@pytest.mark.sqlite_only
def test_second_worker_of_the_process_is_refused(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    task_worker.start()
    try:
        wait_for(lambda: app.extensions["taskworker"].client.on_news is not None)
        with pytest.raises(TaskWorkerError, match="runs in this process already"):
            LiveWorker(app, process=False).__enter__()
    finally:
        task_worker.stop()
