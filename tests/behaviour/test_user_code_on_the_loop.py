"""What user code on the worker's event loop may do: it harms its own job, and never other jobs for long."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, JobFailed, JobState, current_job
from flask_taskworker.store.drivers import make_driver
from flask_taskworker.store.sql import Store
from tests.support.waiting import wait, wait_for

pytestmark = pytest.mark.both_databases(slow="postgresql")

Rows = Callable[..., list[tuple[Any, ...]]]
DAY = timedelta(days=1)


quick = pytest.mark.timing(beat=0.05, watchdog_turn=0.05, blocked_after=0.1, lost_after=1.0, replace_after=0.05)


@pytest.fixture
def broken_logging() -> Iterator[None]:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise OSError("disk full")

    root, handler = logging.getLogger(), Broken()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield
    root.removeHandler(handler)
    root.setLevel(level)


def critical(caplog: pytest.LogCaptureFixture, words: str) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.levelno == logging.CRITICAL and words in r.getMessage()]


def test_job_that_stops_the_event_loop_stops_nothing_else(
    task_worker: BackgroundTaskWorker, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = threading.Event()

    @task_worker.task
    async def innocent() -> str:
        while not waiting.is_set():
            await asyncio.sleep(0.01)
        return "unharmed"

    @task_worker.task
    async def old_style() -> str:
        asyncio.get_running_loop().stop()
        return "stopped"

    before = innocent.enqueue()
    wait_for(lambda: before.refresh().state is JobState.RUNNING)
    (worker,) = store.workers()
    assert old_style.enqueue().result(timeout=20) == "stopped"
    waiting.set()
    assert before.result(timeout=20) == "unharmed"
    assert innocent.enqueue().result(timeout=20) == "unharmed"
    assert [w.id for w in store.workers()] == [worker.id]
    assert critical(caplog, "a job has stopped the event loop")


def test_job_that_cancels_all_tasks_does_not_cancel_the_worker(task_worker: BackgroundTaskWorker, store: Store) -> None:
    @task_worker.task
    async def cancel_all() -> str:
        for _ in range(3):
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0.01)
        return "done"

    threaded = task_worker.task(name="threaded")(lambda: "in a thread")
    assert threaded.enqueue().result(timeout=20) == "in a thread"
    (worker,) = store.workers()
    assert cancel_all.enqueue().result(timeout=20) == "done"
    assert threaded.enqueue().result(timeout=20) == "in a thread"
    assert [(w.id, w.state) for w in store.workers()] == [(worker.id, "alive")]
    task_worker.stop()
    assert store.workers() == []


def test_worker_whose_tasks_a_job_has_cancelled_still_hears_of_new_jobs(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    app.config["TASKER_LOOP_INTERVAL"] = 3600
    task_worker = make_worker(app, start=False)
    other = Store(make_driver(app.extensions["taskworker"].config), keep_succeeded=DAY, keep_failed=DAY)

    @task_worker.task
    async def cancel_all() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    @task_worker.task
    async def beside() -> str:
        return "heard"

    task_worker.start()
    for _ in range(3):
        cancel_all.enqueue().result(timeout=20)
    # As another process enqueues: only a notification announces it.
    job = beside.using(delay=3600).enqueue()
    other.driver.write("UPDATE taskworker_job SET run_at = 0, state = 'ready' WHERE id = :id", {"id": job.id})
    wait_for(lambda: other.driver.wake_others({("default", "async")}, at_once=True) or job.refresh().state.finished)
    assert job.result(timeout=20) == "heard"
    other.driver.close()


@pytest.mark.sqlite_only
def test_worker_starts_and_works_where_every_log_handler_raises(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker], broken_logging: None
) -> None:
    task_worker = make_worker(app)

    @task_worker.task
    async def fails() -> None:
        raise KeyError("no")

    with pytest.raises(JobFailed):
        fails.enqueue().result(timeout=20)
    threaded = task_worker.task(name="threaded")(lambda: "in a thread")
    assert threaded.enqueue().result(timeout=20) == "in a thread"
    task_worker.stop()
    assert not [t for t in threading.enumerate() if t.name == "taskworker-loop"]


@quick
def test_jobs_of_a_loop_that_ended_for_good_are_run_by_the_next_one(
    task_worker: BackgroundTaskWorker, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    @task_worker.task
    async def close_descriptors() -> str:
        if current_job.claim == 1:
            asyncio.get_running_loop()._selector.close()  # type: ignore[attr-defined]
        return "again"

    assert close_descriptors.enqueue().result(timeout=20) == "again"
    assert rows("SELECT claim, crashes FROM taskworker_job") == [(2, 1)]
    assert critical(caplog, "the event loop cannot go on")
    task_worker.stop()


@quick
def test_jobs_of_a_loop_that_is_blocked_for_good_are_run_by_the_next_one(
    task_worker: BackgroundTaskWorker, store: Store, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    release, returned = threading.Event(), threading.Event()

    @task_worker.task(name="shop.blocks")
    async def blocks() -> str:
        if current_job.claim == 1:
            wait(release)
            returned.set()
            return "late"
        return "again"

    @task_worker.task
    async def beside() -> str:
        if current_job.claim == 1:
            await asyncio.get_running_loop().create_future()
        return "again"

    waits = beside.enqueue()
    wait_for(lambda: waits.refresh().state is JobState.RUNNING)
    job = blocks.enqueue()
    assert job.result(timeout=20) == "again"
    assert waits.result(timeout=20) == "again"
    assert critical(caplog, "is blocked by job")
    assert sorted(w.state for w in store.workers()) == ["alive", "dead"]
    release.set()
    wait_for(returned.is_set)
    wait_for(lambda: len([t for t in threading.enumerate() if t.name == "taskworker-loop"]) == 1)
    assert rows("SELECT state, claim, crashes FROM taskworker_job ORDER BY id")[:2] == [("succeeded", 2, 1)] * 2
    assert sorted(w.state for w in store.workers()) == ["alive", "dead"]


@quick
@pytest.mark.sqlite_only
def test_loop_that_stands_at_a_breakpoint_is_not_given_up(
    task_worker: BackgroundTaskWorker, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    debugger: dict[str, Any] = {"__name__": "bdb", "wait": wait}
    exec("def interaction(release):\n    wait(release)", debugger)

    @task_worker.task
    async def debugged() -> str:
        debugger["interaction"](release)
        return f"claim {current_job.claim}"

    job = debugged.enqueue()
    wait_for(lambda: "the event loop has not turned for" in caplog.text)
    (worker,) = store.workers()
    wait_for(lambda: store.workers()[0].beat > worker.beat + 30)
    release.set()
    assert job.result(timeout=20) == "claim 1"


@pytest.mark.timing(beat=0.05)
def test_waiting_claims_do_not_begin_after_a_gap_of_a_lease(
    idle_worker: BackgroundTaskWorker, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a freeze: whether the jobs are still this worker's, only the next beat can tell."""
    now = [0.0]
    monkeypatch.setattr("flask_taskworker.worker.liveness._now", lambda: now[0])
    held = threading.Event()
    idle_worker.start()
    idle_worker.task(name="first")(lambda: 1).enqueue().result(timeout=20)
    # The database is held, so that no beat gets through, and time goes on.
    (worker,) = idle_worker._workers()
    beat = worker._registration._heartbeat.beat  # type: ignore[union-attr]
    monkeypatch.setattr(worker._registration._heartbeat, "beat", lambda: held.wait(20) and beat())
    now[0] = 1000.0
    wait_for(lambda: not worker._registration.is_current)
    job = idle_worker.task(name="second")(lambda: 2).enqueue()
    assert job.refresh().state is JobState.READY
    assert rows("SELECT claim FROM taskworker_job ORDER BY id")[-1] == (0,)
    held.set()
    assert job.result(timeout=20) == 2
