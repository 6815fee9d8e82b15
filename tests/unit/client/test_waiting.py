"""Waiting for results, in threads and on event loops, in the worker's process and in others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Job, JobCancelled, JobFailed, JobNotFound, JobState, JobTimeout
from flask_taskworker.client.client import Client
from flask_taskworker.core.tasks import Task
from flask_taskworker.errors import ArgumentsError, TaskWorkerError
from flask_taskworker.state import AppState
from flask_taskworker.store.drivers import make_driver
from flask_taskworker.store.sql import Store
from tests.support.waiting import wait, wait_for

pytestmark = pytest.mark.both_databases(slow="postgresql")

Rows = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def elsewhere(app: Flask, task_worker: BackgroundTaskWorker) -> Iterator[Client]:
    """The same jobs as seen by a process without a worker: it hears nothing when one ends."""
    config = app.extensions["taskworker"].config
    store = Store(make_driver(config), keep_succeeded=config.keep_succeeded, keep_failed=config.keep_failed)
    client = Client(store, task_worker._registry, lambda: None)
    yield client
    client.close()


@pytest.fixture
def fail(task_worker: BackgroundTaskWorker) -> Task[..., Any, Any]:
    @task_worker.task(name="fail")
    def fail(words: str) -> None:
        raise ValueError(words)

    return fail


def results(job: Job[Any], timeout: float = 20) -> list[Callable[[], Any]]:
    """Every way of asking for a result."""
    return [lambda: job.result(timeout=timeout), lambda: asyncio.run(job.aresult(timeout=timeout))]


# -- results -----------------------------------------------------------------------------------------------------------


def test_result_is_what_the_task_returned(task_worker: BackgroundTaskWorker) -> None:
    job = task_worker.task(name="work")(lambda: {"a": (1, 2)}).enqueue()
    for result in results(job):
        assert result() == {"a": (1, 2)}


def test_result_is_seen_from_a_process_without_a_worker(task_worker: BackgroundTaskWorker, elsewhere: Client) -> None:
    release = threading.Event()

    @task_worker.task
    def work() -> str:
        wait(release)
        return "done"

    job: Job[str] = elsewhere.job(work.enqueue().id)
    with pytest.raises(JobTimeout):
        job.result(timeout=0.02)
    release.set()
    for result in results(job):
        assert result() == "done"


def test_many_threads_and_loops_wait_for_one_job(task_worker: BackgroundTaskWorker) -> None:
    release, got = threading.Event(), []

    @task_worker.task
    def work() -> str:
        wait(release)
        return "done"

    job = work.enqueue()
    waiters = [threading.Thread(target=lambda ask=ask: got.append(ask())) for _ in range(4) for ask in results(job)]
    for waiter in waiters:
        waiter.start()
    release.set()
    for waiter in waiters:
        waiter.join(20)
    assert got == ["done"] * 8


@pytest.mark.parametrize("poll", [3600, 0.001], ids=["told", "looking"])
def test_waiter_in_the_workers_process_is_woken_and_looks_too(
    task_worker: BackgroundTaskWorker, monkeypatch: pytest.MonkeyPatch, poll: float
) -> None:
    monkeypatch.setattr("flask_taskworker.client.client._FIRST_POLL", poll)
    monkeypatch.setattr("flask_taskworker.client.client._LAST_POLL", 3600)
    started, release = threading.Event(), threading.Event()

    @task_worker.task
    def work() -> str:
        started.set()
        wait(release)
        return "done"

    for number in range(2):
        started.clear(), release.clear()
        waiting = task_worker._state().client._waiting._waiters
        job = work.enqueue()
        wait(started)
        threading.Thread(target=lambda waiting=waiting: wait_for(lambda: waiting) and release.set()).start()
        assert results(job)[number]() == "done"


def test_async_job_waits_for_another(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    async def inner(x: int) -> int:
        return x + 1

    @task_worker.task
    async def outer(x: int) -> int:
        jobs = [await inner.aenqueue(x + i) for i in range(5)]
        return sum(await asyncio.gather(*(job.aresult(timeout=20) for job in jobs)))

    assert outer.enqueue(1).result(timeout=20) == 20


@pytest.mark.sqlite_only
def test_waiting_on_the_workers_loop_raises_at_once(task_worker: BackgroundTaskWorker) -> None:
    inner = task_worker.task(name="inner")(lambda: 1)

    @task_worker.task
    async def outer() -> str:
        job = await inner.aenqueue()
        try:
            job.result(timeout=20)
        except RuntimeError as error:
            return str(error)
        return "it waited"

    assert "Use: await job.aresult()" in outer.enqueue().result(timeout=20)


@pytest.mark.sqlite_only
def test_waiting_on_the_workers_loop_raises_while_it_drains_too(task_worker: BackgroundTaskWorker) -> None:
    """Blocking the loop there would keep the process from ending."""
    started, release, seen = threading.Event(), threading.Event(), []
    later = task_worker.task(name="later")(lambda: 1)

    @task_worker.task
    async def work() -> None:
        job = await later.using(delay=3600).aenqueue()
        started.set()
        while not release.is_set():
            await asyncio.sleep(0.001)
        try:
            job.result(timeout=1)
        except BaseException as error:
            seen.append(type(error))
            raise

    work.enqueue()
    wait(started)
    stopper = threading.Thread(target=task_worker.stop)
    store = task_worker._state().store
    stopper.start()
    wait_for(lambda: [worker.state for worker in store.workers()] == ["draining"])
    release.set()
    stopper.join(20)
    assert seen == [RuntimeError]


def test_waiting_in_a_sync_job_is_allowed(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    app = make_app(TASKER_THREADS=2)
    task_worker = make_worker(app)
    inner = task_worker.task(name="inner")(lambda: 1)
    assert task_worker.task(name="outer")(lambda: inner.enqueue().result(timeout=20)).enqueue().result(timeout=20) == 1


# -- errors ------------------------------------------------------------------------------------------------------------


def test_failed_job_raises_what_is_known_of_the_failure(fail: Task[..., Any, Any], elsewhere: Client) -> None:
    job = fail.enqueue("no luck")
    for ask in (*results(job), *results(elsewhere.job(job.id))):
        with pytest.raises(JobFailed, match=f"^Job {job.id} failed: ValueError: no luck$") as caught:
            ask()
        error = caught.value
        assert (error.job_id, error.kind) == (job.id, "exception")
        assert (error.exception_type, error.exception_message) == ("ValueError", "no luck")
        assert error.traceback.endswith("ValueError: no luck\n")
        assert 'raise ValueError(words)' in error.traceback  # fmt: skip
        assert isinstance(error, TaskWorkerError)


def test_timeout_raises_and_the_job_goes_on(task_worker: BackgroundTaskWorker) -> None:
    release = threading.Event()
    job = task_worker.task(name="work")(lambda: wait(release) or "done").enqueue()
    for timeout in (0, -1, 0.01):
        for ask in results(job, timeout):
            with pytest.raises(
                JobTimeout, match=f"Job {job.id} had no result within the timeout. It goes on"
            ) as caught:
                ask()
            assert isinstance(caught.value, TimeoutError)
    release.set()
    assert job.result(timeout=20) == "done"


def test_timeout_of_a_job_that_no_one_takes_says_where_to_look(idle_worker: BackgroundTaskWorker) -> None:
    job = idle_worker.task(name="work")(lambda: 1).enqueue()
    for ask in results(job, 0):
        with pytest.raises(JobTimeout, match=r"It is still ready: .* flask tasks status says why"):
            ask()
    later = idle_worker.task(name="later")(lambda: 1).using(delay=60).enqueue()
    with pytest.raises(JobTimeout, match=r"ask again later\.$"):
        later.result(timeout=0)


@pytest.mark.sqlite_only
def test_id_that_is_not_a_number_is_refused_with_the_remedy(idle_worker: BackgroundTaskWorker) -> None:
    with pytest.raises(ArgumentsError, match=r"A job's id is a whole number, not '7'\. .* make an int"):
        idle_worker.get_job("7")  # type: ignore[arg-type]


@pytest.mark.sqlite_only
def test_timeout_must_be_a_number(task_worker: BackgroundTaskWorker) -> None:
    job = task_worker.task(name="work")(lambda: 1).enqueue()
    job.result(timeout=20)
    for timeout in ["3", b"3", [3], True, timedelta(seconds=3), float("nan"), 10**400]:
        for ask in [*results(job, timeout), lambda timeout=timeout: task_worker.stop(timeout)]:
            with pytest.raises(ArgumentsError, match=r"^timeout is .*\. Give a number of seconds, or None\.$"):
                ask()
        assert task_worker._state().worker is not None, "it runs on"


@pytest.mark.parametrize("timeout", [20, 20.5, Decimal(20), Fraction(20), float("inf")])
@pytest.mark.sqlite_only
def test_timeout_may_be_any_number(task_worker: BackgroundTaskWorker, timeout: Any) -> None:
    job = task_worker.task(name="work")(lambda: 1).enqueue()
    assert [ask() for ask in results(job, timeout)] == [1, 1]


def test_timeout_of_zero_gives_a_result_that_is_there(task_worker: BackgroundTaskWorker) -> None:
    job = task_worker.task(name="work")(lambda: 1).enqueue()
    job.result(timeout=20)
    for ask in results(job, 0):
        assert ask() == 1


def test_timeout_holds_for_the_whole_wait(task_worker: BackgroundTaskWorker) -> None:
    """Through retries, which wake the waiter, too."""
    from flask_taskworker import SnoozeJob

    @task_worker.task
    def work() -> None:
        raise SnoozeJob(0.001)

    job = work.enqueue()
    begun = time.monotonic()
    with pytest.raises(JobTimeout):
        job.result(timeout=0.2)
    assert time.monotonic() - begun < 10
    job.cancel()


def test_waiting_can_be_given_up(task_worker: BackgroundTaskWorker) -> None:
    release = threading.Event()
    job = task_worker.task(name="work")(lambda: wait(release) or "done").enqueue()

    async def give_up() -> None:
        async with asyncio.timeout(0.02):
            await job.aresult()

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert not task_worker._state().client._waiting._waiters
    release.set()
    assert job.result(timeout=20) == "done"


def test_pruned_job_is_not_found(task_worker: BackgroundTaskWorker, rows: Rows) -> None:
    job = task_worker.task(name="work")(lambda: 1).enqueue()
    job.result(timeout=20)
    rows("DELETE FROM taskworker_job")
    for ask in (*results(job), job.refresh, job.cancel, job.retry, lambda: task_worker.get_job(job.id)):
        with pytest.raises(JobNotFound, match=f"Job {job.id} never existed, or it was pruned"):
            ask()


def test_job_pruned_while_someone_waits_is_not_found(task_worker: BackgroundTaskWorker, rows: Rows) -> None:
    job = task_worker.task(name="work")(lambda: 1).using(delay=3600).enqueue()
    client = task_worker._state().client

    def prune() -> None:
        wait_for(lambda: client._waiting._waiters)
        rows("DELETE FROM taskworker_job")

    threading.Thread(target=prune).start()
    with pytest.raises(JobNotFound):
        job.result(timeout=20)


def test_cancelled_job_raises_for_those_who_wait_already(task_worker: BackgroundTaskWorker) -> None:
    job = task_worker.task(name="work")(lambda: 1).using(delay=3600).enqueue()
    client = task_worker._state().client
    threading.Thread(target=lambda: wait_for(lambda: client._waiting._waiters) and job.cancel()).start()
    with pytest.raises(JobCancelled, match=f"^Job {job.id} was cancelled.$"):
        job.result(timeout=20)


def test_number_that_no_job_has_is_not_found(task_worker: BackgroundTaskWorker) -> None:
    for job_id in [0, -1, 2**63 - 1, 2**63, 10**30]:
        with pytest.raises(JobNotFound, match=f"Job {job_id} never existed"):
            task_worker.get_job(job_id)


@pytest.mark.sqlite_only
def test_result_of_an_unknown_type_is_an_error_for_those_who_ask(task_worker: BackgroundTaskWorker, rows: Rows) -> None:
    job = task_worker.task(name="work")(lambda: "text").enqueue()
    job.result(timeout=20)
    rows("UPDATE taskworker_job SET result = ?", '{"$":"dataclass","t":"os.system","v":{}}')
    with pytest.raises(TaskWorkerError, match="'os.system' is not registered"):
        job.result(timeout=20)


# -- the handle --------------------------------------------------------------------------------------------------------


def test_refresh_looks_again_and_returns_the_job(task_worker: BackgroundTaskWorker) -> None:
    job = task_worker.task(name="work")(lambda: 1).enqueue()
    job.result(timeout=20)
    assert job.state is not JobState.SUCCEEDED, "as of its making"
    assert job.refresh() is job
    assert job.state is JobState.SUCCEEDED
    assert job.created_at is not None
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.expires_at is not None
    assert job.created_at <= job.started_at <= job.finished_at < job.expires_at


def test_job_is_kept_as_long_as_its_task_says(task_worker: BackgroundTaskWorker) -> None:
    for keep, function in ((60, lambda: None), (60, lambda: 5), (60, lambda: 1 / 0)):
        job = task_worker.task(name=f"work {function}", keep=keep)(function).enqueue()
        wait_for(lambda job=job: job.refresh().state.finished)
        assert job.expires_at is not None
        assert job.finished_at is not None
        assert (job.expires_at - job.finished_at).total_seconds() == keep


@pytest.mark.sqlite_only
def test_state_of_the_app_is_what_the_extension_says(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    state = app.extensions["taskworker"]
    assert isinstance(state, AppState)
    assert state is task_worker._state()
