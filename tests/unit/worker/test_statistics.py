"""Figures appear while a worker works, and those of its last seconds when it ends."""

from __future__ import annotations

import asyncio
import logging

import pytest

from flask_taskworker import BackgroundTaskWorker, CancelJob, Job, JobState, Retry, RetryJob, SnoozeJob, current_job
from flask_taskworker.core.clock import to_ms
from flask_taskworker.ops.browse import Browser
from flask_taskworker.store.schema import ROLLUP_FIGURES
from flask_taskworker.store.sql import MAX_ID, Store
from tests.support.stored import Rows, store_jobs
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.both_databases(slow="postgresql"), pytest.mark.timing(figures=0.02)]


def counts(store: Store, *, span: int = 60) -> dict[str, tuple[int, int, int, int]]:
    """Succeeded, failed, retried and cancelled, by task."""
    found = Browser(store).figures(0, step=MAX_ID, by="task", span=span)  # type: ignore[arg-type]
    return {f.key: (f.succeeded, f.failed, f.retried, f.cancelled) for f in found}


def test_every_ending_of_a_try_is_counted(idle_worker: BackgroundTaskWorker, store: Store) -> None:
    @idle_worker.task(name="well", queue="q")
    async def well() -> None: ...

    @idle_worker.task(name="tells", queue="q")
    def tells() -> int:
        current_job.progress(1, 2)
        return 7

    @idle_worker.task(name="badly")
    def badly() -> None:
        raise ValueError

    @idle_worker.task(name="twice", retry=Retry(max_attempts=3, base=0.001))
    def twice() -> None:
        if current_job.attempt < 3:
            raise RetryJob(delay=0)

    @idle_worker.task(name="later")
    def later() -> None:
        if current_job.claim == 1:
            raise SnoozeJob(0)

    @idle_worker.task(name="not")
    def cancelled() -> None:
        raise CancelJob("no")

    jobs: list[Job[None]] = [task.enqueue() for task in (badly, twice, later, cancelled)]
    jobs += well.enqueue_many([()] * 5)
    number = tells.enqueue()
    idle_worker.start()
    wait_for(lambda: all(job.refresh().state.finished for job in [*jobs, number]))
    idle_worker.stop(timeout=20)
    expected = {
        "well": (5, 0, 0, 0),
        "tells": (1, 0, 0, 0),
        "badly": (0, 1, 0, 0),
        "twice": (1, 0, 2, 0),
        "later": (1, 0, 0, 0),
        "not": (0, 0, 0, 1),
    }
    assert counts(store) == counts(store, span=3600) == expected
    queues = Browser(store).figures(0, step=MAX_ID, by="queue")
    assert {f.key: f.ended for f in queues} == {"q": 6, "default": 4}
    (total,) = Browser(store).figures(0, step=MAX_ID)
    assert sum(total.run) == sum(total.wait) == 12
    first = jobs[0].created_at
    assert first is not None
    assert Browser(store).figures(to_ms(first) - 60_000, step=60_000)


def test_figures_appear_while_the_worker_works(task_worker: BackgroundTaskWorker, store: Store) -> None:
    task = task_worker.task(name="well")(lambda: None)
    task.enqueue().result(timeout=20)
    wait_for(lambda: counts(store) == {"well": (1, 0, 0, 0)})
    for queue in Browser(store).queues():
        assert (queue.name, queue.figures and queue.figures.succeeded) == ("default", 1)
    # Those that follow are added to them.
    task.enqueue().result(timeout=20)
    wait_for(lambda: counts(store) == {"well": (2, 0, 0, 0)})


@pytest.mark.timing(figures=3600)
def test_figures_of_the_last_seconds_are_stored_when_the_worker_ends(
    task_worker: BackgroundTaskWorker, store: Store
) -> None:
    task = task_worker.task(name="well")(lambda: None)
    task.enqueue().result(timeout=20)
    wait_for(lambda: counts(store) == {"well": (1, 0, 0, 0)})
    task.enqueue().result(timeout=20)
    assert counts(store) == {"well": (1, 0, 0, 0)}
    task_worker.stop(timeout=20)
    assert counts(store) == {"well": (2, 0, 0, 0)}


def test_a_job_that_should_run_again_but_was_cancelled_is_counted_once(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    @idle_worker.task(name="stopped", retry=5)
    async def stopped() -> None:
        # As another process would ask, a moment before the heartbeat tells this one.
        await asyncio.to_thread(rows, "UPDATE taskworker_job SET cancel_requested = 1")
        raise ValueError

    job = stopped.enqueue()
    idle_worker.start()
    wait_for(lambda: job.refresh().state is JobState.CANCELLED)
    idle_worker.stop(timeout=20)
    assert counts(store) == {"stopped": (0, 0, 0, 1)}


def test_a_job_that_ends_with_its_worker_is_counted(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    store.driver.prepare()
    rows(
        "INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) "
        "VALUES ('gone', 'h', 1, 1, ?, 'dead', '{}')",
        store.clock(),
    )
    held = {"state": "running", "worker_id": "gone", "started_at": store.clock() - 500, "claim": 1}
    again, once = store_jobs(rows, {**held, "task": "again"}, {**held, "task": "once", "at_most_once": 1})
    idle_worker.start()
    wait_for(lambda: store.record(once).state == "failed" and store.record(again).state != "running")
    wait_for(lambda: counts(store) == {"once": (0, 1, 0, 0)})


def test_figures_wait_for_a_database_that_does_not_take_them(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "flask_taskworker.worker")
    task = idle_worker.task(name="well")(lambda: None)
    idle_worker.start()
    task.enqueue().result(timeout=20)
    wait_for(lambda: counts(store) == {"well": (1, 0, 0, 0)})
    rows("ALTER TABLE taskworker_rollup RENAME TO away")
    task.enqueue().result(timeout=20)
    wait_for(lambda: "not stored yet" in caplog.text)
    rows("ALTER TABLE away RENAME TO taskworker_rollup")
    wait_for(lambda: counts(store) == {"well": (2, 0, 0, 0)})


@pytest.mark.timing(lines_kept=1000)
def test_lines_that_the_database_never_takes_do_not_fill_the_memory(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    says = idle_worker.task(name="says")(lambda: logging.getLogger("shop").warning("x" * 500))
    idle_worker.start()
    rows("ALTER TABLE taskworker_log RENAME TO away")
    says.enqueue_many([()] * 5)
    wait_for(lambda: "log lines of jobs are lost" in caplog.text)
    wait_for(lambda: counts(store) == {"says": (5, 0, 0, 0)}, "figures are stored anyway")
    rows("ALTER TABLE away RENAME TO taskworker_log")
    kept = wait_for(lambda: rows("SELECT job_id FROM taskworker_log"))
    assert len(kept) < 5


def test_old_figures_are_deleted(idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    now = store.clock()
    names = ["span", "start", "task", "queue", *ROLLUP_FIGURES]
    day = 24 * 3_600_000
    for span, age, task in ((60, 3, "old"), (60, 1, "new"), (3600, 63, "old hour"), (3600, 61, "new hour")):
        values = [span, now - age * day, task, "q", *[1] * (len(names) - 4)]
        store.driver.prepare()
        rows(f"INSERT INTO taskworker_rollup ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", *values)
    idle_worker.start()
    wait_for(lambda: not {"old", "old hour"} & {row[0] for row in rows("SELECT task FROM taskworker_rollup")})
    assert {row[0] for row in rows("SELECT task FROM taskworker_rollup")} == {"new", "new hour"}
