"""``flask_taskworker.testing.Jobs``: what was enqueued, and running it all the way."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, has_request_context

from flask_taskworker import (
    BackgroundTaskWorker,
    CancelJob,
    Every,
    JobState,
    Retry,
    RetryJob,
    Task,
    TaskWorkerError,
    current_job,
)
from flask_taskworker.client.rows import new_jobs
from flask_taskworker.core.tasks import EnqueueOptions
from flask_taskworker.errors import ArgumentsError, StoreError
from flask_taskworker.signals import worker_stopped
from flask_taskworker.testing import Jobs, LiveWorker, Outbox, TaskClock
from tests.support.threads import no_threads_left


@pytest.fixture
def ran() -> list[Any]:
    """What tasks have done."""
    return []


@pytest.fixture
def add(task_worker: BackgroundTaskWorker, ran: list[Any]) -> Task[..., Any, Any]:
    @task_worker.task
    def add(x: int, y: int = 1, **more: int) -> int:
        ran.append((x, y))
        return x + y

    return add


@pytest.fixture
def fail(task_worker: BackgroundTaskWorker) -> Task[..., Any, Any]:
    @task_worker.task
    async def fail(words: str = "no") -> None:
        raise LookupError(words)

    return fail


# -- what was enqueued -------------------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_job_is_found_by_some_of_its_arguments_and_properties(jobs: Jobs, add: Task[..., Any, Any]) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    job = add.using(queue="slow", priority=3, run_at=tomorrow).enqueue(1, y=2, z=3)
    for found in (
        jobs.assert_enqueued(add),
        jobs.assert_enqueued(add, 1),
        jobs.assert_enqueued(add, y=2, z=3, queue="slow"),
        jobs.assert_enqueued(add, x=1, priority=3, run_at=tomorrow, times=1),
        jobs.assert_enqueued(add.name, where={"y": 2}),
    ):
        assert found == job
        assert found.arguments == {"x": 1, "y": 2, "z": 3}
    jobs.assert_not_enqueued(add, 2)
    jobs.assert_not_enqueued(add, run_at=None)
    jobs.assert_not_enqueued(add, run_at=tomorrow + timedelta(minutes=1))


@pytest.mark.sqlite_only
def test_defaults_of_the_task_count_as_given(jobs: Jobs, add: Task[..., Any, Any]) -> None:
    add.enqueue(1)
    jobs.assert_enqueued(add, y=1, run_at=None)


@pytest.mark.sqlite_only
def test_failure_names_the_nearest_miss_field_by_field_and_lists_what_there_is(
    jobs: Jobs, add: Task[..., Any, Any], fail: Task[..., Any, Any]
) -> None:
    fail.enqueue("early")
    far = add.enqueue(7, 7)
    near = add.enqueue(1, 2)
    with pytest.raises(AssertionError) as caught:
        jobs.assert_enqueued(add, 1, y=3, queue="mail")
    text = str(caught.value)
    assert text.startswith(f"No job is {add.name}(x=1, y=3), queue='mail'.")
    assert f"Nearest miss: job {near.id}\n  y: wanted 3, is 2\n  queue: wanted 'mail', is 'default'\n" in text
    assert "Enqueued (3):" in text
    assert f"job {far.id}  {add.name}(x=7, y=7)  ready, queue='default'" in text
    assert "words='early'" in text


@pytest.mark.sqlite_only
def test_failure_says_that_nothing_of_the_task_was_enqueued(
    jobs: Jobs, add: Task[..., Any, Any], fail: Task[..., Any, Any]
) -> None:
    with pytest.raises(AssertionError, match="Nothing was enqueued"):
        jobs.assert_enqueued(add)
    fail.enqueue()
    with pytest.raises(AssertionError, match="No job of .*add was enqueued at all"):
        jobs.assert_enqueued(add)


@pytest.mark.sqlite_only
def test_times_are_counted(jobs: Jobs, add: Task[..., Any, Any]) -> None:
    add.enqueue_many([(1,), (1,), (2,)])
    jobs.assert_enqueued(add, 1, times=2)
    jobs.assert_enqueued(add, 3, times=0)
    with pytest.raises(AssertionError, match="3 jobs are .*; wanted: 2"):
        jobs.assert_enqueued(add, times=2)
    with pytest.raises(AssertionError, match=r"add\(x=2\) was enqueued"):
        jobs.assert_not_enqueued(add, 2)


@pytest.mark.sqlite_only
def test_misspelt_argument_is_an_error_and_not_just_no_match(jobs: Jobs, fail: Task[..., Any, Any]) -> None:
    with pytest.raises(ArgumentsError, match="wrods"):
        jobs.assert_not_enqueued(fail, wrods="no")


def test_only_jobs_since_the_start_of_the_test_count(app: Flask, add: Task[..., Any, Any]) -> None:
    add.enqueue(1)
    jobs = Jobs(app)
    assert jobs.enqueued() == []
    second = add.enqueue(2)
    assert jobs.enqueued() == jobs.enqueued(add) == jobs.enqueued(add.name) == [second]
    assert jobs.enqueued("another") == []


@pytest.mark.sqlite_only
def test_capture_holds_what_was_enqueued_in_its_block(jobs: Jobs, add: Task[..., Any, Any]) -> None:
    add.enqueue(1)
    with jobs.capture() as captured:
        add.enqueue(2)
    add.enqueue(3)
    assert [job.arguments["x"] for job in captured] == [2]


# -- draining ----------------------------------------------------------------------------------------------------------


def test_drain_runs_jobs_and_those_that_they_enqueue(
    jobs: Jobs, task_worker: BackgroundTaskWorker, add: Task[..., Any, Any], ran: list[Any]
) -> None:
    @task_worker.task(queue="other")
    async def spread(number: int) -> None:
        await add.aenqueue_many([(i,) for i in range(number)])

    spread.enqueue(3)
    jobs.assert_enqueued(spread, number=3)
    with pytest.raises(AssertionError):
        jobs.assert_performed(spread)
    drained = jobs.drain()
    assert (drained.succeeded, drained.total, drained.errors) == (4, 4, ())
    assert sorted(ran) == [(0, 1), (1, 1), (2, 1)]
    jobs.assert_performed(spread, times=1)
    jobs.assert_performed(add, times=3)
    assert jobs.drain().total == 0


def test_arguments_take_the_way_through_the_database(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    given: dict[str, Any] = {"when": datetime(2026, 1, 1, tzinfo=UTC), "pair": (1, 2)}
    seen: list[Any] = []

    @task_worker.task
    def keep(value: dict[str, Any]) -> None:
        seen.append((value, current_job.id))

    job = keep.enqueue(given)
    given["late"] = True
    jobs.drain()
    assert seen == [({"when": datetime(2026, 1, 1, tzinfo=UTC), "pair": (1, 2)}, job.id)]
    assert job.refresh().state is JobState.SUCCEEDED


def test_drain_raises_what_the_task_has_raised(
    jobs: Jobs, fail: Task[..., Any, Any], add: Task[..., Any, Any], ran: list[Any]
) -> None:
    failed = fail.enqueue("gone")
    add.enqueue(1)
    with pytest.raises(LookupError, match="gone") as caught:
        jobs.drain()
    assert f"Raised by job {failed.id} ({fail.name}) in attempt 1 of 1" in caught.value.__notes__[0]
    assert ran == [(1, 1)]
    fail.enqueue()
    drained = jobs.drain(raise_errors=False)
    assert (drained.failed, [type(error) for error in drained.errors]) == (1, [LookupError])


@pytest.mark.sqlite_only
def test_exit_of_a_task_does_not_end_the_test_run(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def leave() -> None:
        raise SystemExit(3)

    leave.enqueue()
    with pytest.raises(AssertionError, match=r"leave\) has failed: SystemExit\(3\)"):
        jobs.drain()


def test_retries_wait_for_their_time_or_are_run_on_request(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    attempts = []

    @task_worker.task(retry=Retry(max_attempts=5, base=3600))
    def flaky() -> str:
        attempts.append(current_job.attempt)
        if len(attempts) < 3:
            raise ConnectionError("later")
        return "done"

    job = flaky.enqueue()
    with pytest.raises(ConnectionError) as caught:
        jobs.drain()
    assert "it is tried again in" in caught.value.__notes__[0]
    assert (jobs.drain().total, attempts) == (0, [1])
    drained = jobs.drain(scheduled=True)
    assert (drained.retrying, drained.succeeded, attempts) == (1, 1, [1, 2, 3])
    assert job.result(timeout=0) == "done"


@pytest.mark.sqlite_only
def test_job_that_asks_for_a_retry_is_not_an_error(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def patient() -> None:
        if current_job.attempt == 1:
            raise RetryJob(delay=60)
        raise CancelJob("enough")

    patient.enqueue()
    assert jobs.drain().retrying == 1
    assert jobs.drain(scheduled=True).cancelled == 1


def test_delayed_jobs_run_at_their_time_up_to_the_given_moment(
    jobs: Jobs, add: Task[..., Any, Any], ran: list[Any]
) -> None:
    add.using(delay=7200).enqueue(2)
    add.using(delay=3600).enqueue(1)
    add.using(delay=86400).enqueue(3)
    assert jobs.drain().total == 0
    assert jobs.drain(until=datetime.now(UTC) + timedelta(hours=3)).succeeded == 2
    assert ran == [(1, 1), (2, 1)]
    assert add.enqueue(4).created_at == pytest.approx(datetime.now(UTC), abs=timedelta(minutes=1))
    assert jobs.drain(scheduled=True).succeeded == 2


@pytest.mark.sqlite_only
def test_job_that_enqueues_itself_forever_is_found_out(
    jobs: Jobs, app: Flask, task_worker: BackgroundTaskWorker
) -> None:
    @task_worker.task
    def again() -> None:
        app.extensions["taskworker"].registry.find(current_job.task).enqueue()

    again.enqueue()
    with pytest.raises(TaskWorkerError, match=r"More than 5 jobs have run: .*again 6 times"):
        jobs.drain(max=5)


@pytest.mark.sqlite_only
def test_drain_fires_no_schedule(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(schedule=Every(seconds=1))
    def often() -> None:
        """Would run in every test."""

    assert jobs.drain().total == 0
    assert jobs.drain(scheduled=True).total == 0


@pytest.mark.sqlite_only
def test_job_may_wait_for_the_result_of_another(
    jobs: Jobs, task_worker: BackgroundTaskWorker, add: Task[..., Any, Any]
) -> None:
    @task_worker.task
    def outer() -> int:
        result: int = add.enqueue(2, 3).result(timeout=20)
        return result

    job = outer.enqueue()
    jobs.drain()
    assert job.result(timeout=0) == 5


@pytest.mark.sqlite_only
def test_drain_works_inside_requests_and_app_contexts_of_which_jobs_see_nothing(
    app: Flask, jobs: Jobs, task_worker: BackgroundTaskWorker, add: Task[..., Any, Any]
) -> None:
    seen = []

    @task_worker.task
    async def look() -> None:
        seen.append(has_request_context())

    look.enqueue()
    with app.test_request_context("/"):
        jobs.drain()
    add.enqueue(1)
    with app.app_context():
        assert jobs.drain().succeeded == 1
    assert seen == [False]


def test_drain_works_in_coroutines(jobs: Jobs, add: Task[..., Any, Any]) -> None:
    async def work() -> tuple[int, int, int]:
        await add.aenqueue(1)
        first = await jobs.adrain()
        await add.aenqueue(2)
        return first.succeeded, jobs.drain().succeeded, await jobs.aperform(add, 3, y=4)

    assert asyncio.run(work()) == (1, 1, 7)


@pytest.mark.sqlite_only
def test_worker_that_runs_already_is_not_joined(
    jobs: Jobs, task_worker: BackgroundTaskWorker, add: Task[..., Any, Any]
) -> None:
    task_worker.start()
    try:
        assert add.enqueue(1).result(timeout=20) == 2
        with pytest.raises(TaskWorkerError, match=r"Stop it first: task_worker.stop\(\)"):
            jobs.drain()
    finally:
        task_worker.stop()
    add.enqueue(1)
    assert jobs.drain().succeeded == 1


@pytest.mark.sqlite_only
def test_jobs_of_others_are_not_run(app: Flask, add: Task[..., Any, Any], ran: list[Any]) -> None:
    old = add.enqueue(1)
    created_at = old.created_at
    assert created_at is not None
    jobs = Jobs(app, begun=int(created_at.timestamp() * 1000) + 1000)
    with pytest.raises(TaskWorkerError, match="Give tests a database of their own"):
        jobs.drain()
    assert ran == []
    assert Jobs(app, begun=int(created_at.timestamp() * 1000) - 1000).drain().succeeded == 1


def test_clearing_cancels_only_jobs_that_these_tests_enqueued(app: Flask, add: Task[..., Any, Any]) -> None:
    jobs = Jobs(app)
    store = app.extensions["taskworker"].store
    ours = add.enqueue(1)
    by_another_process = new_jobs(add, ["[[1], {}]"], EnqueueOptions(), store.clock(), None)
    inside_ours = new_jobs(add, ["[[1], {}]"], EnqueueOptions(), store.clock(), json.dumps({"job": ours.id}))
    theirs, inside = (store.add(rows)[0].id for rows in (by_another_process, inside_ours))
    jobs.clear()
    assert store.record(theirs).state == "ready"
    assert store.record(inside).state == "cancelled"
    assert ours.refresh().state is JobState.CANCELLED


def test_nothing_is_run_beside_the_worker_of_a_running_application(
    app: Flask, add: Task[..., Any, Any], ran: list[Any]
) -> None:
    jobs = Jobs(app, begun=0)
    add.enqueue(1)
    state = app.extensions["taskworker"]
    values = {"now": int(time.time() * 1000), "pid": os.getppid()}
    state.store.driver.write(
        "INSERT INTO taskworker_worker (id, host, pid, state, started_at, beat_at, info) "
        "VALUES ('theirs', 'h', :pid, 'alive', :now, :now, '{}')",
        values,
    )
    with pytest.raises(TaskWorkerError, match=r"theirs \(h:\d+\).*Give tests a database of their own"):
        jobs.drain()
    assert ran == []
    state.store.driver.write("UPDATE taskworker_worker SET state = 'left' WHERE id = 'theirs'", {})
    assert jobs.drain().succeeded == 1


@pytest.mark.sqlite_only
def test_job_cannot_drain(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def nested() -> None:
        jobs.drain()

    with pytest.raises(RuntimeError, match="A job cannot run the worker that runs it"):
        jobs.perform(nested)


# -- one job -----------------------------------------------------------------------------------------------------------


def test_perform_runs_one_job_and_no_other(
    jobs: Jobs, add: Task[..., Any, Any], fail: Task[..., Any, Any], ran: list[Any]
) -> None:
    fail.enqueue()
    add.using(priority=100).enqueue(9)
    assert jobs.perform(add, 1, y=2) == 3
    assert ran == [(1, 2)]
    with pytest.raises(LookupError, match="just so"):
        jobs.perform(fail, "just so")


@pytest.mark.sqlite_only
def test_perform_of_a_job_that_does_not_end_says_so(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def later() -> None:
        raise RetryJob(delay=5)

    with pytest.raises(TaskWorkerError, match="did not end: it was scheduled after its first run"):
        jobs.perform(later)


# -- inline ------------------------------------------------------------------------------------------------------------


def test_inline_runs_each_job_when_it_is_stored(
    jobs: Jobs, task_worker: BackgroundTaskWorker, add: Task[..., Any, Any], ran: list[Any]
) -> None:
    @task_worker.task
    def outer() -> None:
        add.enqueue(1)
        ran.append("outer")

    with jobs.inline():
        outer.enqueue()
        assert ran == ["outer", (1, 1)]
        add.using(delay=60).enqueue(2)
        assert add.enqueue(5).result(timeout=0) == 6
    assert ran == ["outer", (1, 1), (5, 1)]
    add.enqueue(6)
    assert len(ran) == 3


def test_inline_runs_what_another_thread_stores_while_the_worker_ends(
    jobs: Jobs, add: Task[..., Any, Any], ran: list[Any]
) -> None:
    late = [2]

    def on_stopped(*_: Any, **__: Any) -> None:
        if late:
            add.enqueue(late.pop())

    with worker_stopped.connected_to(on_stopped), jobs.inline():
        add.enqueue(1)
    assert ran == [(1, 1), (2, 1)]


@pytest.mark.sqlite_only
def test_inline_raises_at_its_end_and_not_where_jobs_are_enqueued(jobs: Jobs, fail: Task[..., Any, Any]) -> None:
    reached = []

    def work() -> None:
        with jobs.inline():
            fail.enqueue("first")
            reached.append(True)

    with pytest.raises(LookupError, match="first"):
        work()
    assert reached
    with jobs.inline(raise_errors=False):
        assert fail.enqueue().refresh().state is JobState.FAILED


# -- faults ------------------------------------------------------------------------------------------------------------


def test_run_twice_runs_each_job_twice_under_two_claims(
    jobs: Jobs, task_worker: BackgroundTaskWorker, fail: Task[..., Any, Any]
) -> None:
    claims = []

    @task_worker.task
    def once(number: int) -> int:
        claims.append((current_job.uid, current_job.claim))
        return number

    @task_worker.task(at_most_once=True)
    def never_twice() -> None:
        claims.append(("never", current_job.claim))

    with jobs.run_twice():
        assert jobs.perform(once, 5) == 5
        never_twice.enqueue()
        once.enqueue(6)
        drained = jobs.drain()
        assert (drained.succeeded, drained.released, drained.total) == (2, 0, 2)
        with pytest.raises(LookupError):
            jobs.perform(fail)
    once.enqueue(1)
    assert jobs.drain().total == 1
    assert sorted(claim for uid, claim in claims if uid != "never") == [1, 1, 1, 2, 2]
    assert [claim for uid, claim in claims if uid == "never"] == [1]
    assert claims[0][0] == claims[1][0]


def test_crash_before_the_finish_runs_the_job_again_after_its_rescue(
    jobs: Jobs, add: Task[..., Any, Any], ran: list[Any]
) -> None:
    first, second = add.enqueue(1), add.enqueue(2)
    jobs.crash()
    assert jobs.drain().crashed == 1
    assert (first.refresh().state, second.refresh().state, ran) == (JobState.RUNNING, JobState.READY, [(1, 1)])
    assert jobs.drain().succeeded == 1
    assert first.refresh().state is JobState.RUNNING
    assert jobs.recover() == [first]
    assert first.refresh().state is JobState.READY
    assert jobs.drain().succeeded == 1
    assert ran == [(1, 1), (2, 1), (1, 1)]
    assert jobs.recover() == []


def test_job_that_a_rescue_ends_calls_what_its_task_has_for_a_failure(
    jobs: Jobs, task_worker: BackgroundTaskWorker
) -> None:
    heard: list[int | None] = []

    @task_worker.task
    def alarm() -> None:
        heard.append(current_job.parent)

    @task_worker.task(at_most_once=True, on_failure=alarm)
    def charge() -> None: ...

    job = charge.enqueue()
    jobs.crash()
    jobs.drain()
    jobs.recover()
    assert job.refresh().state is JobState.FAILED
    assert jobs.drain().succeeded == 1
    assert heard == [job.id]


def test_job_that_crashes_again_and_again_fails_in_the_end(
    jobs: Jobs, add: Task[..., Any, Any], ran: list[Any]
) -> None:
    job = add.enqueue(1)
    for _ in range(5):
        jobs.crash(at="before_run")
        assert jobs.drain(scheduled=True).crashed == 1
        jobs.recover()
    assert job.refresh().state is JobState.FAILED
    assert ran == []


@pytest.mark.sqlite_only
def test_crash_of_a_job_that_must_not_run_twice_fails_it(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(at_most_once=True)
    async def pay() -> None:
        """Only once."""

    job = pay.enqueue()
    jobs.crash()
    jobs.drain()
    jobs.recover()
    assert job.refresh().state is JobState.FAILED


@pytest.mark.sqlite_only
def test_crash_is_only_where_one_can_be(jobs: Jobs) -> None:
    with pytest.raises(ValueError, match="Allowed: 'before_run', 'before_finish'"):
        jobs.crash(at="later")  # type: ignore[arg-type]


@pytest.mark.sqlite_only
def test_database_that_fails_ends_the_drain(app: Flask, task_worker: BackgroundTaskWorker, alarms: list[str]) -> None:
    database = app.extensions["taskworker"].config.database_uri.database

    @task_worker.task
    def destroy() -> None:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("DROP TABLE taskworker_job")

    destroy.enqueue()
    with pytest.raises(StoreError, match="taskworker_job"):
        Jobs(app).drain()
    alarms.clear()


@pytest.mark.sqlite_only
def test_crash_leaves_no_lock_behind(app: Flask, jobs: Jobs, add: Task[..., Any, Any]) -> None:
    add.enqueue(1)
    jobs.crash()
    jobs.drain()
    jobs.recover()
    database = app.extensions["taskworker"].config.database_uri.database
    assert list(Path(f"{database}-live").iterdir()) == []


@pytest.mark.sqlite_only
def test_crash_that_did_not_come_about_ends_with_its_block(jobs: Jobs, add: Task[..., Any, Any]) -> None:
    with jobs.crash():
        jobs.drain()
    add.enqueue(1)
    assert jobs.drain().succeeded == 1


# -- what is meant by mistake ------------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
@pytest.mark.parametrize("task", [lambda: None, 3])
def test_what_is_not_a_task_is_refused_with_the_remedy(jobs: Jobs, task: Any) -> None:
    for ask in (
        *(jobs.enqueued, jobs.perform),
        *(jobs.assert_enqueued, jobs.assert_not_enqueued, jobs.assert_performed),
    ):
        with pytest.raises(ArgumentsError, match=r"is not a task\. Give what @task_worker\.task has made"):
            ask(task)


@pytest.mark.parametrize("kind", [Jobs, Outbox, TaskClock, LiveWorker])
def test_what_is_not_an_app_is_refused_with_the_remedy(kind: Any) -> None:
    with pytest.raises(ArgumentsError, match="app is 'shop'. Give the Flask app itself"):
        kind("shop")


# -- traces ------------------------------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_drain_leaves_no_worker_behind(app: Flask, jobs: Jobs, add: Task[..., Any, Any]) -> None:
    add.enqueue(1)
    with no_threads_left():
        jobs.drain()
    assert app.extensions["taskworker"].store.workers() == []
    assert app.extensions["taskworker"].client.on_news is None


@pytest.mark.sqlite_only
def test_what_a_test_leaves_unfinished_is_cancelled(jobs: Jobs, add: Task[..., Any, Any]) -> None:
    job = add.enqueue(1)
    jobs.clear()
    assert job.refresh().state is JobState.CANCELLED


# -- batches and graphs ------------------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_edges_and_callbacks_are_followed(jobs: Jobs, task_worker: BackgroundTaskWorker, ran: list[Any]) -> None:
    @task_worker.task
    def note(word: str) -> None:
        ran.append(word)

    with task_worker.batch("words", on_end=note.bind("end")) as batch:
        first = note.using(batch=batch, delay=60).enqueue("first")
        note.using(batch=batch, after=first).enqueue("second")
    with pytest.raises(AssertionError, match="is running, not succeeded"):
        jobs.assert_batch_ended(batch)
    jobs.drain()
    assert ran == []
    jobs.drain(scheduled=True)
    assert ran == ["first", "second", "end"]
    assert jobs.assert_batch_ended(batch).succeeded == 2
