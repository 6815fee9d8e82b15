"""What the log and ``flask tasks status`` say of a blocked event loop, and of threads that do not come back."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, JobFailed, JobState, current_job
from flask_taskworker.client.health import info_of
from flask_taskworker.core.rows import Claim
from flask_taskworker.ops.overview import Overview
from flask_taskworker.store.sql import Store
from flask_taskworker.worker.running import SHOWN, HungThreads
from tests.support.waiting import wait, wait_for

pytestmark = [
    pytest.mark.sqlite_only,
    pytest.mark.timing(beat=0.02, watchdog_turn=0.02, blocked_after=0.1, hung_grace=0.1),
]

MakeApp = Callable[..., Flask]
MakeWorker = Callable[..., BackgroundTaskWorker]


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if words in record.getMessage()]


def blocked_by(caplog: pytest.LogCaptureFixture, words: str) -> list[logging.LogRecord]:
    """On a busy machine the loop may stand still at other times, too."""
    return [record for record in said(caplog, "the event loop has not turned for") if words in record.getMessage()]


def info(store: Store) -> dict[str, Any]:
    workers = store.workers()
    return info_of(workers[0]) if workers else {}


# -- a blocked event loop ----------------------------------------------------------------------------------------------


def test_job_that_blocks_the_event_loop_is_named_with_its_stack_once(
    task_worker: BackgroundTaskWorker, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    release = threading.Event()

    @task_worker.task(name="shop.blocks")
    async def blocks() -> None:
        wait(release)

    job = blocks.enqueue()
    wait_for(lambda: blocked_by(caplog, "(shop.blocks)"))
    (before,) = store.workers()
    # The beat goes on: this worker is not taken for dead.
    wait_for(lambda: store.workers()[0].beat > before.beat + 5)
    wait_for(lambda: info(store).get("loop_lag_ms", 0) > 200)
    release.set()
    assert job.result(timeout=20) is None
    by_the_job = "it was blocked by job"
    wait_for(lambda: said(caplog, by_the_job))
    (blocked,) = blocked_by(caplog, "(shop.blocks)")
    assert blocked.levelno == logging.WARNING
    assert f"it is blocked by job {job.id} (shop.blocks)" in blocked.getMessage()
    assert "in blocks\n    wait(release)" in blocked.getMessage()
    assert blocked.taskworker_job == job.id  # type: ignore[attr-defined]
    (over,) = said(caplog, by_the_job)
    assert "turns again" in over.getMessage()
    assert f"{by_the_job} {job.id} (shop.blocks)" in over.getMessage()
    assert store.record(job.id).claim == 1
    wait_for(lambda: info(store).get("loop_lag_ms", 0) < 200)


def test_coroutine_that_a_job_started_is_named_when_it_blocks(
    task_worker: BackgroundTaskWorker, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    async def inner() -> None:
        wait(release)

    @task_worker.task(name="shop.starts")
    async def starts() -> None:
        await asyncio.create_task(inner())

    job = starts.enqueue()
    blocked = wait_for(lambda: blocked_by(caplog, "in inner"))[0].getMessage()
    release.set()
    job.result(timeout=20)
    # Only Python 3.12 and newer tell the context of a task to others.
    expected = f"job {job.id} (shop.starts)" if sys.version_info >= (3, 12) else "no job, but the coroutine"
    assert f"it is blocked by {expected}" in blocked
    assert "in inner\n    wait(release)" in blocked


def test_callback_that_blocks_the_event_loop_is_not_a_job(
    task_worker: BackgroundTaskWorker, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    @task_worker.task
    async def leave_callback() -> None:
        asyncio.get_running_loop().call_soon(wait, release)

    leave_callback.enqueue()
    blocked = wait_for(lambda: blocked_by(caplog, "event.wait("))[0].getMessage()
    release.set()
    assert "it is blocked by no job." in blocked
    assert task_worker.task(name="next")(lambda: 1).enqueue().result(timeout=20) == 1


def test_status_reports_a_blocked_event_loop(
    app: Flask, task_worker: BackgroundTaskWorker, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_taskworker.ops.overview.BLOCKED_MS", 100)
    release = threading.Event()

    @task_worker.task
    async def blocks() -> None:
        wait(release)

    job = blocks.enqueue()
    wait_for(lambda: info(store).get("loop_lag_ms", 0) > 100)
    shown = app.test_cli_runner().invoke(args=["tasks", "status", "--json"])
    release.set()
    job.result(timeout=20)
    (worker,) = json.loads(shown.output)["workers"]
    assert worker["loop_lag_ms"] > 100
    assert shown.exit_code == 4
    assert "has not turned for" in json.loads(shown.output)["problems"][0]


# -- threads that do not come back -------------------------------------------------------------------------------------


def test_worker_whose_threads_all_hang_says_so_once_and_goes_on_with_async_jobs(
    make_app: MakeApp, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = make_app(TASKER_THREADS=2, TASKER_LOOP_INTERVAL=3600)
    task_worker = make_worker(app)
    store: Store = app.extensions["taskworker"].store
    release = threading.Event()
    hangs = task_worker.task(name="shop.hangs", timeout=0.05)(lambda: wait(release))
    follows = task_worker.task(name="follows")(lambda: "free")

    @task_worker.task
    async def beside() -> str:
        return "beside"

    jobs = [hangs.enqueue(), hangs.enqueue()]
    for job in jobs:
        with pytest.raises(JobFailed, match="did not end within"):
            job.result(timeout=20)
    last = follows.enqueue()
    (error,) = wait_for(lambda: said(caplog, "all 2 threads for sync jobs are held"))
    assert error.levelno == logging.ERROR
    assert all(f"job {job.id} (shop.hangs)" in error.getMessage() for job in jobs)
    assert "or this process is restarted, it runs no sync jobs; async jobs go on" in error.getMessage()
    for _ in range(10):
        assert beside.enqueue().result(timeout=20) == "beside"
    assert last.refresh().state is JobState.READY
    wait_for(lambda: info(store).get("hung_threads") == 2)
    assert any("runs no sync jobs" in problem for problem in Overview.take(store).problems())
    shown = app.test_cli_runner().invoke(args=["tasks", "status"])
    assert shown.exit_code == 4
    assert "hung" in shown.output
    release.set()
    assert last.result(timeout=20) == "free"
    wait_for(lambda: info(store).get("hung_threads") == 0)
    assert len(said(caplog, "all 2 threads for sync jobs are held")) == 1
    wait_for(lambda: len(said(caplog, "has returned (succeeded, dropped); its thread is free again")) == 2)
    assert [job.refresh().state for job in jobs] == [JobState.FAILED] * 2


def test_one_hung_thread_is_counted_and_no_alarm(
    make_app: MakeApp, make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(TASKER_THREADS=2)
    task_worker = make_worker(app)
    store: Store = app.extensions["taskworker"].store
    release = threading.Event()
    hangs = task_worker.task(name="hangs", timeout=0.05)(lambda: wait(release))
    with pytest.raises(JobFailed):
        hangs.enqueue().result(timeout=20)
    wait_for(lambda: info(store).get("hung_threads") == 1)
    assert task_worker.task(name="next")(lambda: current_job.attempt).enqueue().result(timeout=20) == 1
    assert Overview.take(store).problems() == []
    release.set()
    assert not said(caplog, "threads for sync jobs are held")


def claim(number: int) -> Claim:
    return Claim(number, "", "app.work", "", "sync", 0, "[[],{}]", 1, 0, 0, 1, None, 0, 0, None, None)


def test_threads_that_return_within_the_grace_raise_no_alarm() -> None:
    hung = HungThreads(2, grace=0.1)
    hung.add(claim(1), 10.0)
    assert hung.delay(100.0) is None
    hung.add(claim(2), 20.0)
    assert hung.delay(20.0) == pytest.approx(0.1)
    assert not hung.to_tell(20.05)
    hung.remove(claim(1))
    assert not hung.to_tell(30.0)
    hung.add(claim(3), 40.0)
    assert hung.to_tell(40.2)
    assert not hung.to_tell(50.0)
    assert hung.delay(50.0) is None


def test_of_many_hung_jobs_a_few_are_named() -> None:
    hung = HungThreads(40, grace=5.0)
    for number in range(40):
        hung.add(claim(number), 0.0)
    assert hung.words(ends=True).count("app.work") == SHOWN
    assert "and 30 more" in hung.words(ends=True)
