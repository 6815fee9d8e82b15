"""Threads for sync jobs, where the system gives none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.client.threads import PoolClosed, ThreadPool
from flask_taskworker.store.sql import Store
from flask_taskworker.worker import executor
from tests.support.threads import no_thread_can_be_started
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases


def test_call_that_was_refused_for_want_of_a_thread_is_never_run() -> None:
    pool, ran = ThreadPool(2, "test"), []
    with no_thread_can_be_started(), pytest.raises(PoolClosed):
        pool.submit(ran.append, "refused")
    pool.submit(ran.append, "accepted").result(20)
    assert ran == ["accepted"]
    pool.shutdown()


@pytest.mark.sqlite_only
def test_job_waits_in_its_queue_while_no_thread_can_be_started(
    make_app: Callable[..., Flask],
    make_worker: Callable[..., BackgroundTaskWorker],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(executor, "_NO_THREAD_PAUSE", 0.2)
    task_worker = make_worker(app := make_app(TASKER_THREADS=1))
    store: Store = app.extensions["taskworker"].store
    runs: list[int] = []

    @task_worker.task
    def note() -> None:
        runs.append(1)

    @task_worker.task
    async def pass_by() -> None: ...

    pass_by.enqueue().result(20)
    begun = time.monotonic()
    with no_thread_can_be_started(), caplog.at_level(logging.WARNING, "flask_taskworker"):
        job = note.enqueue()
        wait_for(lambda: "no thread for it" in caplog.text)
        for _ in range(20):
            pass_by.enqueue().result(20)
        claims = store.record(job.id).claim
        # Handed back and claimed again, but not as fast as the database can.
        assert 1 <= claims <= 2 + (time.monotonic() - begun) / 0.2
    job.result(20)
    assert runs == [1]


@pytest.mark.sqlite_only
def test_start_that_finds_no_thread_raises_and_may_be_repeated(idle_worker: BackgroundTaskWorker) -> None:
    task = idle_worker.task(name="work")(lambda: 5)
    with no_thread_can_be_started(), pytest.raises(RuntimeError, match="can't start new thread"):
        idle_worker.start()
    idle_worker.stop()  # returns, although nothing ever ran
    idle_worker.start()
    assert task.enqueue().result(timeout=20) == 5
