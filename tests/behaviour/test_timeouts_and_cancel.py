"""Timeouts, and cancelling jobs that wait or run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import (
    BackgroundTaskWorker,
    Job,
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobState,
    Retry,
    current_job,
)
from flask_taskworker.store.drivers import make_driver
from flask_taskworker.store.sql import Store
from tests.support.apps import KINDS
from tests.support.waiting import wait, wait_for

MakeApp = Callable[..., Flask]
MakeWorker = Callable[..., BackgroundTaskWorker]


# Who asks a running job to stop is heard within a beat.
pytestmark = [pytest.mark.timing(beat=0.02), pytest.mark.both_databases(slow="postgresql")]


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def wait_until_runs(job: Job[Any]) -> None:
    wait_for(lambda: job.refresh().state is JobState.RUNNING, f"{job} runs")


# -- timeouts of async jobs --------------------------------------------------------------------------------------------


def test_async_job_is_stopped_at_its_timeout(task_worker: BackgroundTaskWorker) -> None:
    cleaned_up = []

    @task_worker.task(timeout=0.05)
    async def work() -> None:
        try:
            await forever()
        finally:
            cleaned_up.append(True)

    job = work.enqueue()
    with pytest.raises(JobFailed, match="TimeoutError: The task did not end within 0.05 s.") as caught:
        job.result(timeout=20)
    assert caught.value.kind == "timeout"
    assert "await forever()" in caught.value.traceback
    assert cleaned_up == [True]


def test_timeout_is_for_one_try(task_worker: BackgroundTaskWorker, store: Store) -> None:
    @task_worker.task(timeout=timedelta(seconds=0.05), retry=Retry(3, base=0.001))
    async def work() -> int:
        if current_job.attempt < 3:
            await forever()
        return current_job.attempt

    job = work.enqueue()
    assert job.result(timeout=20) == 3
    assert ["TimeoutError" in (attempt.error or "") for attempt in store.attempts(job.id)] == [True, True]


@pytest.mark.sqlite_only
def test_timeout_error_of_the_task_itself_is_an_exception(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(timeout=3600)
    async def work() -> None:
        async with asyncio.timeout(0.001):
            await forever()

    with pytest.raises(JobFailed) as caught:
        work.enqueue().result(timeout=20)
    assert (caught.value.kind, caught.value.exception_type) == ("exception", "TimeoutError")


@pytest.mark.sqlite_only
def test_async_job_that_ends_well_in_spite_of_its_timeout_has_succeeded(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(timeout=0.05)
    async def work() -> str:
        try:
            await forever()
        except asyncio.CancelledError:
            return "saved"
        return "never"

    assert work.enqueue().result(timeout=20) == "saved"


@pytest.mark.sqlite_only
def test_error_while_cleaning_up_after_a_timeout_is_reported(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(timeout=0.05)
    async def work() -> None:
        try:
            await forever()
        finally:
            raise ValueError("in the cleanup")

    with pytest.raises(JobFailed, match="in the cleanup"):
        work.enqueue().result(timeout=20)


# -- timeouts of sync jobs ---------------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_timed_out_sync_job_fails_while_its_thread_goes_on(
    make_app: MakeApp, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(TASKER_THREADS=2)
    task_worker = make_worker(app)
    release, late = threading.Event(), []

    @task_worker.task(timeout=0.05)
    def work() -> str:
        wait(release)
        late.append(current_job.cancelled)
        return "too late"

    job = work.enqueue()
    with pytest.raises(JobFailed, match="TimeoutError: The task did not end within 0.05 s.") as caught:
        job.result(timeout=20)
    assert caught.value.kind == "timeout"
    assert f"job {job.id} ({work.name}) exceeded its timeout of 0.05 s; its thread is in use" in caplog.text
    release.set()
    wait_for(lambda: late)
    assert late == [True]
    # The late result changes nothing.
    assert task_worker.task(name="next")(lambda: 1).enqueue().result(timeout=20) == 1
    assert job.refresh().state is JobState.FAILED


@pytest.mark.sqlite_only
def test_timed_out_sync_job_keeps_its_slot_until_its_thread_returns(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_THREADS=1, TASKER_LOOP_INTERVAL=3600)
    task_worker = make_worker(app)
    release = threading.Event()
    hangs = task_worker.task(name="hangs", timeout=0.05)(lambda: wait(release))
    follows = task_worker.task(name="follows")(lambda: "free")

    @task_worker.task
    async def beside() -> str:
        return "beside"

    job = hangs.enqueue()
    with pytest.raises(JobFailed):
        job.result(timeout=20)
    next_job = follows.enqueue()
    assert beside.enqueue().result(timeout=20) == "beside"
    assert next_job.refresh().state is JobState.READY, "it must not be claimed: no thread is left for it"
    release.set()
    # The worker has to notice by itself that the thread is free; it looks around only once an hour.
    assert next_job.result(timeout=20) == "free"


@pytest.mark.sqlite_only
def test_timeout_of_a_job_begins_when_the_job_does(make_app: MakeApp, make_worker: MakeWorker) -> None:
    """Short jobs are claimed ahead. Those must not be given to a thread that a timed-out job still uses."""
    app = make_app(TASKER_THREADS=1, TASKER_LOOP_INTERVAL=3600)
    task_worker = make_worker(app)
    release = threading.Event()
    # A thread may need some time for nothing, on a busy machine: few jobs have a timeout, and a longer one.
    warm_up = task_worker.task(name="warm_up")(lambda: "ran")
    quick = task_worker.task(name="quick", timeout=0.3)(lambda: "ran")
    hangs = task_worker.task(name="hangs", timeout=0.05)(lambda: wait(release))
    for job in warm_up.enqueue_many([()] * 60):
        job.result(timeout=20)
    hanging = hangs.enqueue()
    jobs = quick.enqueue_many([()] * 3)
    with pytest.raises(JobFailed):
        hanging.result(timeout=20)
    beside = task_worker.task(name="beside")(forever_short)
    for _ in range(8):
        beside.enqueue().result(timeout=20)
    release.set()
    assert [job.result(timeout=20) for job in jobs] == ["ran"] * 3


async def forever_short() -> None:
    """Eight of these take longer than the timeout of the jobs that wait beside them."""
    await asyncio.sleep(0.05)


@pytest.mark.sqlite_only
def test_timed_out_sync_job_is_asked_to_stop(task_worker: BackgroundTaskWorker) -> None:
    stopped = threading.Event()

    @task_worker.task(timeout=0.05)
    def work() -> None:
        try:
            while True:
                current_job.check()
        except JobCancelled:
            stopped.set()
            raise

    with pytest.raises(JobFailed):
        work.enqueue().result(timeout=20)
    wait(stopped)


def test_timed_out_sync_job_is_tried_again(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_THREADS=2)
    task_worker = make_worker(app)
    release = threading.Event()

    # On a busy machine even the second try may take too long.
    @task_worker.task(timeout=0.05, retry=Retry(50, base=0.001, cap=0.01))
    def work() -> int:
        if current_job.attempt == 1:
            wait(release)
        return current_job.attempt

    assert work.enqueue().result(timeout=20) >= 2
    release.set()


# -- cancelling what waits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"delay": 3600}], ids=["ready", "scheduled"])
def test_waiting_job_is_cancelled_at_once(idle_worker: BackgroundTaskWorker, options: dict[str, Any]) -> None:
    ran = []
    work = idle_worker.task(name="work")(lambda: ran.append(1))
    job = work.using(**options).enqueue()
    assert job.cancel()
    assert job.refresh().state is JobState.CANCELLED
    assert job.finished_at is not None
    assert job.expires_at == job.finished_at + timedelta(days=1)
    assert not job.cancel(), "it has ended already"
    idle_worker.start()
    with pytest.raises(JobCancelled, match=f"Job {job.id} was cancelled"):
        job.result(timeout=20)
    work.enqueue().result(timeout=20)
    assert ran == [1]


def test_finished_job_cannot_be_cancelled(task_worker: BackgroundTaskWorker) -> None:
    job = task_worker.task(name="work")(lambda: 1).enqueue()
    job.result(timeout=20)
    assert not job.cancel()
    assert job.refresh().state is JobState.SUCCEEDED


def test_job_that_does_not_exist_cannot_be_cancelled(task_worker: BackgroundTaskWorker, store: Store) -> None:
    with pytest.raises(JobNotFound, match="Job 77 never existed, or it was pruned"):
        store.cancel(77)


# -- cancelling what runs ----------------------------------------------------------------------------------------------


def test_running_async_job_is_cancelled_at_its_next_await(task_worker: BackgroundTaskWorker) -> None:
    seen = []

    @task_worker.task(retry=5)
    async def work() -> None:
        try:
            await forever()
        finally:
            seen.append(current_job.cancelled)

    job = work.enqueue()
    wait_until_runs(job)
    assert job.cancel()
    with pytest.raises(JobCancelled, match="Stopped on request"):
        job.result(timeout=20)
    assert job.refresh().state is JobState.CANCELLED
    assert seen == [True]


def test_running_sync_job_sees_that_it_is_cancelled(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(retry=5)
    def work() -> None:
        while True:
            current_job.check()

    job = work.enqueue()
    wait_until_runs(job)
    assert job.cancel()
    with pytest.raises(JobCancelled, match="Stopped on request"):
        job.result(timeout=20)
    assert job.refresh().state is JobState.CANCELLED


@pytest.mark.parametrize("kind", KINDS)
def test_job_that_ends_well_in_spite_of_being_cancelled_has_succeeded(
    task_worker: BackgroundTaskWorker, kind: str
) -> None:
    def work() -> str:
        wait_for(lambda: current_job.cancelled)
        return "done anyway"

    async def work_async() -> str:
        try:
            await forever()
        except asyncio.CancelledError:
            return "done anyway"
        return "never"

    job = task_worker.task(name="work")(work if kind == "sync" else work_async).enqueue()
    wait_until_runs(job)
    assert job.cancel()
    assert job.result(timeout=20) == "done anyway"
    assert job.refresh().state is JobState.SUCCEEDED


@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_job_that_raises_is_not_tried_again(task_worker: BackgroundTaskWorker, kind: str) -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        wait_for(lambda: current_job.cancelled)
        raise ValueError("on the way out")

    async def work_async() -> None:
        calls.append(1)
        try:
            await forever()
        except asyncio.CancelledError:
            raise ValueError("on the way out") from None

    task = task_worker.task(name="work", retry=Retry(9, base=0))(work if kind == "sync" else work_async)
    job = task.enqueue()
    wait_until_runs(job)
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout=20)
    assert job.refresh().state is JobState.CANCELLED
    assert calls == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_job_is_cancelled_from_another_process(
    app: Flask, task_worker: BackgroundTaskWorker, store: Store, kind: str
) -> None:
    """Another process has another Store and no worker: only the database is between them."""

    def work() -> None:
        while True:
            current_job.check()

    job = task_worker.task(name="work")(work if kind == "sync" else forever).enqueue()
    wait_until_runs(job)
    config = app.extensions["taskworker"].config
    elsewhere = Store(make_driver(config), keep_succeeded=config.keep_succeeded, keep_failed=config.keep_failed)
    try:
        assert elsewhere.cancel(job.id) is JobState.RUNNING
        with pytest.raises(JobCancelled):
            job.result(timeout=20)
    finally:
        elsewhere.driver.close()


def test_cancelling_one_job_harms_no_other(task_worker: BackgroundTaskWorker) -> None:
    release = threading.Event()

    @task_worker.task
    async def work(number: int) -> int:
        while not release.is_set():
            await asyncio.sleep(0.001)
        return number

    jobs = work.enqueue_many([(number,) for number in range(3)])
    for job in jobs:
        wait_until_runs(job)
    assert jobs[1].cancel()
    with pytest.raises(JobCancelled):
        jobs[1].result(timeout=20)
    release.set()
    assert [jobs[0].result(timeout=20), jobs[2].result(timeout=20)] == [0, 2]


def test_job_cancelled_without_a_request_is_a_failure(task_worker: BackgroundTaskWorker) -> None:
    """It came from a job that this one waited for, perhaps."""

    @task_worker.task
    def work() -> None:
        raise JobCancelled

    with pytest.raises(JobFailed, match="JobCancelled"):
        work.enqueue().result(timeout=20)


def test_cancelled_job_can_be_tried_again(task_worker: BackgroundTaskWorker) -> None:
    first = threading.Event()

    @task_worker.task
    def work() -> bool:
        if not first.is_set():
            first.set()
            wait_for(lambda: current_job.cancelled)
            current_job.check()
        return current_job.cancelled

    job = work.enqueue()
    wait_until_runs(job)
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout=20)
    assert job.retry()
    assert job.result(timeout=20) is False
