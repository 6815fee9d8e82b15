"""Which job is next: queues, priorities, the two kinds, and who is woken."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app

from flask_taskworker import BackgroundTaskWorker, Every, JobState, Retry, current_job
from flask_taskworker.core.tasks import Task
from flask_taskworker.store.sql import Store
from tests.support.apps import KINDS
from tests.support.twins import twin_of
from tests.support.waiting import Clock, wait, wait_for

pytestmark = pytest.mark.both_databases(slow="postgresql")

MakeApp = Callable[..., Flask]
MakeWorker = Callable[..., BackgroundTaskWorker]

NEVER_LOOKS = {"TASKER_LOOP_INTERVAL": 3600}
"""The worker must be woken: it does not look by itself."""


class Recorder:
    """A sync task that notes the order in which its jobs run."""

    def __init__(self, task_worker: BackgroundTaskWorker) -> None:
        self.order: list[str] = []
        self.release = threading.Event()
        self.task: Task[..., Any, Any] = task_worker.task(name="record")(lambda name: self.order.append(name))
        self.blocker: Task[..., Any, Any] = task_worker.task(name="block")(lambda: wait(self.release))

    @contextmanager
    def held(self) -> Iterator[None]:
        """All that is enqueued in this block waits for the worker's only thread."""
        job = self.blocker.using(queue="a").enqueue()
        wait_for(lambda: job.refresh().state is JobState.RUNNING)
        yield
        self.release.set()

    def wait_for(self, number: int) -> list[str]:
        wait_for(lambda: len(self.order) == number, f"{number} jobs, not {self.order}")
        return self.order


# -- order -------------------------------------------------------------------------------------------------------------


def test_higher_priority_goes_first_then_the_older(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_THREADS=1)
    recorder = Recorder(make_worker(app))
    with recorder.held():
        for name, priority in (("a", 0), ("b", -1), ("c", 5), ("d", 0), ("e", 5), ("f", -(2**31) + 1)):
            recorder.task.using(priority=priority).enqueue(name)
    assert recorder.wait_for(6) == ["c", "e", "a", "d", "b", "f"]


def test_priority_holds_within_one_claim(make_app: MakeApp, make_worker: MakeWorker) -> None:
    """RETURNING promises no order."""
    app = make_app(TASKER_CONCURRENCY=50)
    task_worker = make_worker(app, start=False)
    order: list[int] = []

    @task_worker.task
    async def record(number: int) -> None:
        order.append(number)

    for number in range(40):
        record.using(priority=number * 7 % 40).enqueue(number * 7 % 40)
    task_worker.start()
    wait_for(lambda: len(order) == 40)
    assert order == list(range(39, -1, -1))


def test_due_job_takes_its_place_by_priority(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_THREADS=1)
    recorder = Recorder(make_worker(app))
    with recorder.held():
        recorder.task.enqueue("plain")
        later = recorder.task.using(delay=0.001, priority=9).enqueue("urgent")
        wait_for(lambda: later.refresh().state is JobState.READY, "the due job is ready though no thread is free")
    assert recorder.wait_for(2) == ["urgent", "plain"]


def test_queues_are_served_in_the_configured_order(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_THREADS=1, TASKER_QUEUES=["b", "a", "c"])
    recorder = Recorder(make_worker(app))
    with recorder.held():
        for queue in ("a", "c", "b", "a", "b"):
            recorder.task.using(queue=queue, priority=9 if queue == "c" else 0).enqueue(queue)
    assert recorder.wait_for(5) == ["b", "b", "a", "a", "c"]


def test_queue_that_comes_first_is_served_first_whenever_its_jobs_come(
    make_app: MakeApp, make_worker: MakeWorker
) -> None:
    app = make_app(TASKER_THREADS=1, TASKER_QUEUES=["first", "a"])
    task_worker = make_worker(app)
    recorder = Recorder(task_worker)
    step = threading.Semaphore(0)
    stepping = task_worker.task(name="step")(lambda name: step.acquire(timeout=20) and recorder.order.append(name))
    with recorder.held():
        stepping.using(queue="a").enqueue_many([("1",), ("2",)])
    running = wait_for(lambda: [job for job in (2, 3) if task_worker.get_job(job).state is JobState.RUNNING])
    assert running == [2]
    recorder.task.using(queue="first").enqueue("first")
    step.release(2)
    assert recorder.wait_for(3) == ["1", "first", "2"]


def test_worker_leaves_other_queues_alone(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_QUEUES=["mine"])
    task_worker = make_worker(app)
    work = task_worker.task(name="work")(lambda: 1)
    other = work.using(queue="other").enqueue()
    assert work.using(queue="mine").enqueue().result(timeout=20) == 1
    assert other.refresh().state is JobState.READY


def test_no_queue_starves_without_a_configured_order(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_THREADS=1)
    recorder = Recorder(make_worker(app))
    with recorder.held():
        recorder.task.using(queue="long").enqueue_many([("long",)] * 400)
        recorder.task.using(queue="short").enqueue("short")
    assert recorder.wait_for(401).index("short") < 300


# -- the two kinds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", KINDS)
def test_backlog_of_one_kind_does_not_starve_the_other(make_app: MakeApp, make_worker: MakeWorker, full: str) -> None:
    app = make_app(TASKER_THREADS=2, TASKER_CONCURRENCY=2)
    task_worker = make_worker(app)
    release = threading.Event()

    async def wait_async() -> None:
        while not release.is_set():
            await asyncio.sleep(0.005)

    async def free_async() -> str:
        return "free"

    blocked = task_worker.task(name="blocked")((lambda: wait(release)) if full == "sync" else wait_async)
    free = task_worker.task(name="free")(free_async if full == "sync" else lambda: "free")
    jobs = blocked.enqueue_many([()] * 20)
    wait_for(lambda: jobs[1].refresh().state is JobState.RUNNING)
    assert [job.result(timeout=20) for job in free.enqueue_many([()] * 20)] == ["free"] * 20
    # Nor is the backlog held by a worker that has no slot for it.
    assert [str(job.refresh().state) for job in jobs[:4]] == ["running", "running", "ready", "ready"]
    release.set()
    for job in jobs:
        job.result(timeout=20)


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_jobs_run_at_once_than_configured(make_app: MakeApp, make_worker: MakeWorker, kind: str) -> None:
    app = make_app(TASKER_THREADS=3, TASKER_CONCURRENCY=3)
    task_worker = make_worker(app)
    lock, running, most = threading.Lock(), 0, 0
    full = threading.Barrier(3)

    def enter(change: int) -> None:
        nonlocal running, most
        with lock:
            running += change
            most = max(most, running)

    def work(number: int) -> None:
        enter(1)
        if number < 3:
            full.wait(20)
        enter(-1)

    arrived = 0

    async def work_async(number: int) -> None:
        nonlocal arrived
        enter(1)
        arrived += 1
        while number < 3 and arrived < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        enter(-1)

    task = task_worker.task(name="work")(work if kind == "sync" else work_async)
    for job in task.enqueue_many([(number,) for number in range(60)]):
        job.result(timeout=20)
    assert most == 3


# -- waking ------------------------------------------------------------------------------------------------------------


def test_enqueueing_wakes_a_sleeping_worker(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(**NEVER_LOOKS)
    work = make_worker(app).task(name="work")(lambda: 1)
    for call in (work, work.using(delay=0.01), work.using(queue="other")):
        assert call.enqueue().result(timeout=20) == 1
        assert [job.result(timeout=20) for job in call.enqueue_many([()] * 3)] == [1] * 3
    cancelled = work.using(delay=3600).enqueue()
    cancelled.cancel()
    cancelled.retry()
    assert cancelled.result(timeout=20) == 1


def test_another_process_wakes_a_sleeping_worker(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(**NEVER_LOOKS)
    task_worker = make_worker(app)
    task_worker.task(name="work")(lambda: 1)
    twin = twin_of(app)
    elsewhere = make_worker(twin, start=False).task(name="work")(lambda: 2)
    for _ in range(3):
        assert elsewhere.enqueue().result(timeout=20) == 1


@pytest.mark.sqlite_only
def test_worker_that_comes_after_an_enqueuer_looked_for_workers_is_woken(
    make_app: MakeApp, make_worker: MakeWorker
) -> None:
    """An enqueuer remembers who listens until the live directory changes."""
    app = make_app(**NEVER_LOOKS)
    elsewhere = make_worker(app, start=False).task(name="work")(lambda: 2)
    live = Path(f"{app.extensions['taskworker'].store.driver.key}-live")
    live.mkdir(parents=True)
    os.utime(live, (1, 1))
    elsewhere.enqueue()
    task_worker = make_worker(twin_of(app))
    work = task_worker.task(name="work")(lambda: 1)
    assert work.enqueue().result(timeout=20) == 1
    assert elsewhere.enqueue().result(timeout=20) == 1


def test_retry_wakes_a_sleeping_worker_when_it_is_due(make_app: MakeApp, make_worker: MakeWorker) -> None:
    from flask_taskworker import Retry

    app = make_app(**NEVER_LOOKS)
    errors = [ValueError(), ValueError()]

    def work() -> int:
        if errors:
            raise errors.pop()
        return 1

    task = make_worker(app).task(name="work", retry=Retry(5, base=0.01))(work)
    assert task.enqueue().result(timeout=20) == 1


def test_worker_looks_by_itself_after_the_loop_interval(make_app: MakeApp, make_worker: MakeWorker) -> None:
    """The safety net, for news that got lost."""
    app = make_app(TASKER_LOOP_INTERVAL=0.02)
    task_worker = make_worker(app)
    work = task_worker.task(name="work")(lambda: 1)
    assert work.enqueue().result(timeout=20) == 1
    client = task_worker._state().client
    client.wake = lambda *_: None  # type: ignore[method-assign]
    assert work.enqueue().result(timeout=20) == 1


def test_job_that_is_handed_back_is_taken_by_another_worker_at_once(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(**NEVER_LOOKS)
    first = make_worker(app)
    started = threading.Event()

    async def hang() -> str:
        started.set()
        await asyncio.get_running_loop().create_future()
        return "never"

    async def end() -> str:
        return "taken over"

    job = first.task(name="work")(hang).enqueue()
    wait(started)
    twin = twin_of(app)
    second = make_worker(twin)
    second.task(name="work")(end)
    wait_for(lambda: len(first._state().store.workers()) == 2)
    first.stop(timeout=0)
    assert job.result(timeout=20) == "taken over"
    assert (job.refresh().attempt, job._record.crashes, job._record.claim) == (1, 0, 2)


def test_two_workers_share_the_jobs_and_run_none_twice(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app()
    ran: list[int] = []
    workers = [make_worker(app, start=False)]
    twin = twin_of(app)
    workers.append(make_worker(twin, start=False))
    tasks = [worker.task(name="work")(lambda number: ran.append(number)) for worker in workers]
    jobs = tasks[0].enqueue_many([(number,) for number in range(300)])
    for worker in workers:
        worker.start()
    for job in jobs:
        job.result(timeout=20)
    assert sorted(ran) == list(range(300))


# -- pruning -----------------------------------------------------------------------------------------------------------


def test_expired_jobs_are_pruned_with_their_attempts(
    app: Flask, idle_worker: BackgroundTaskWorker, store: Store
) -> None:
    fail = idle_worker.task(name="fail", keep=0)(lambda: 1 / 0)
    keep = idle_worker.task(name="keep")(lambda: 1 / 0)
    idle_worker.start()
    gone, kept = fail.enqueue(), keep.enqueue()
    wait_for(lambda: kept.refresh().state.finished)
    wait_for(lambda: len(store.attempts(gone.id)) == 1)
    idle_worker.stop()
    idle_worker.start()  # the first turn prunes
    wait_for(lambda: not store.attempts(gone.id))
    with pytest.raises(LookupError):
        gone.refresh()
    assert kept.refresh().state is JobState.FAILED
    assert len(store.attempts(kept.id)) == 1


def test_retry_whose_worker_is_busy_by_then_wakes_another(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_THREADS=1, TASKER_QUEUES=["default", "own"], **NEVER_LOOKS)
    busy = make_worker(app, start=False)
    clock = Clock(busy._state().store)
    busy.start()
    fail, release = threading.Event(), threading.Event()

    def declare(task_worker: BackgroundTaskWorker) -> Task[..., Any, Any]:
        @task_worker.task(name="work", retry=Retry(2, base=3600, jitter=0))
        def work() -> str:
            if current_job.attempt == 1:
                wait(fail)
                raise ValueError
            return current_app.import_name

        return work

    job = declare(busy).enqueue()
    wait_for(lambda: job.refresh().state is JobState.RUNNING)
    blocker = busy.task(name="block", queue="own")(lambda: wait(release)).enqueue()
    twin = twin_of(app, TASKER_QUEUES=["default"], **NEVER_LOOKS)
    idle = make_worker(twin)
    ping = declare(idle) and idle.task(name="ping")(lambda: None)
    with twin.app_context():
        ping.enqueue().result(timeout=20)  # it has looked, and sleeps now
    fail.set()
    wait_for(lambda: blocker.refresh().state is JobState.RUNNING)
    clock.put_forward(3_600_000)
    busy._workers()[0].wake()
    assert job.result(timeout=20) == "twin"
    release.set()


@pytest.mark.timing(suspect_room=3600)
def test_worker_makes_no_room_for_a_suspect_of_a_queue_that_it_does_not_serve(
    app: Flask, make_worker: MakeWorker, rows: Callable[..., list[tuple[Any, ...]]]
) -> None:
    app.config["TASKER_QUEUES"] = ["default"]
    task_worker = make_worker(app, start=False)
    store: Store = app.extensions["taskworker"].store
    suspect = task_worker.task(name="suspect", queue="elsewhere")(lambda: None).enqueue()
    rows("UPDATE taskworker_job SET solo = 1 WHERE id = ?", suspect.id)
    release = threading.Event()
    blocker = task_worker.task(name="block")(lambda: wait(release)).enqueue()
    task_worker.start()
    wait_for(lambda: blocker.refresh().state is JobState.RUNNING)
    task_worker.task(name="hourly", schedule=Every(hours=1))(lambda: None)
    wait_for(store.schedules, "the worker has looked, and has seen the suspect")
    task_worker.task(name="work")(lambda: None).enqueue().result(timeout=20)
    release.set()


def test_suspect_that_survived_a_try_runs_beside_others_again(
    task_worker: BackgroundTaskWorker, rows: Callable[..., Any]
) -> None:
    @task_worker.task(name="suspect", retry=Retry(5, base=3600))
    def suspect() -> None:
        raise ValueError("not this time")

    job = suspect.using(delay=3600).enqueue()
    rows("UPDATE taskworker_job SET solo = 1, crashes = 2, solo_crashes = 1, state = 'ready', run_at = 0")
    task_worker._state().client.wake()
    wait_for(lambda: job.refresh().attempt == 2)
    assert rows("SELECT solo, solo_crashes, crashes, state FROM taskworker_job") == [(0, 0, 2, "scheduled")]
