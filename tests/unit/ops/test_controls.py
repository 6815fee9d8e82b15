"""Jobs, queues, schedules and the whole in Python: the same facts and acts as with the commands."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import (
    At,
    BackgroundTaskWorker,
    Cron,
    Every,
    JobFailed,
    JobNotFound,
    JobState,
    Limit,
    Retry,
    current_job,
)
from flask_taskworker.errors import ArgumentsError, DeclarationError
from flask_taskworker.ops.browse import Browser
from tests.support.waiting import wait_for

PATIENCE = 20.0
Rows = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def idle(app: Flask, make_worker: Callable[..., BackgroundTaskWorker]) -> BackgroundTaskWorker:
    """A TaskWorker whose jobs wait."""
    return make_worker(app, start=False)


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_quiet_worker_takes_no_more_jobs_and_a_stopped_one_ends(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    task_worker, go, began = make_worker(app), threading.Event(), threading.Event()

    @task_worker.task
    def hold() -> None:
        began.set()
        go.wait(PATIENCE)

    running = hold.enqueue()
    assert began.wait(PATIENCE)
    (name,) = task_worker.workers
    worker = task_worker.workers[name]
    assert worker.quiet(who="ana")
    assert not worker.quiet()
    later = hold.enqueue()
    go.set()
    running.result(timeout=PATIENCE)
    assert worker.summary.state == "draining"
    assert later.refresh().state is JobState.READY
    assert worker.stop(who="ana")
    wait_for(lambda: not list(task_worker.workers))
    assert later.refresh().state is JobState.READY
    notes = [
        (row.who, row.action, row.target.split()[0]) for row in Browser(app.extensions["taskworker"].store).audit()
    ]
    assert notes == [("ana", "stop", "worker"), ("ana", "quiet", "worker")]


@pytest.mark.both_databases
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_worker_runs_more_or_fewer_jobs_at_once_from_its_next_heartbeat_on(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker], kind: str
) -> None:
    task_worker = make_worker(app)
    began: set[int] = set()
    go = threading.Event()

    def hold(number: int) -> None:
        began.add(number)
        go.wait(PATIENCE)

    async def ahold(number: int) -> None:
        began.add(number)
        while not go.is_set():
            await asyncio.sleep(0.01)

    task = task_worker.task(hold if kind == "sync" else ahold)
    wait_for(lambda: list(task_worker.workers))
    (name,) = task_worker.workers
    worker = task_worker.workers[name]

    def at_once(number: int) -> None:
        assert worker.set(**{"threads" if kind == "sync" else "concurrency": number}, who="ana")
        wait_for(lambda: (worker.summary.sync_slots if kind == "sync" else worker.summary.async_slots) == number)

    at_once(2)
    jobs = task.enqueue_many([(number,) for number in range(60)])
    wait_for(lambda: len(began) == 2)
    at_once(50)
    wait_for(lambda: len(began) == 50)
    go.set()
    for job in jobs:
        job.wait(PATIENCE)
    (note, *_) = Browser(app.extensions["taskworker"].store).audit()
    assert (note.who, note.action) == ("ana", "slots")
    assert note.target.endswith(f"{'threads' if kind == 'sync' else 'concurrency'} 2 to 50")


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({}, "Nothing is to be set"),
        ({"threads": 0}, "threads = 0 is not allowed. Allowed: a whole number from 1 to 10,000"),
        ({"concurrency": 1.5}, "concurrency = 1.5 is not allowed"),
    ],
)
def test_a_number_of_slots_that_makes_no_sense_is_refused(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker], slots: dict[str, Any], words: str
) -> None:
    task_worker = make_worker(app)
    wait_for(lambda: list(task_worker.workers))
    with pytest.raises(DeclarationError, match=words):
        next(iter(task_worker.workers.values())).set(**slots)


def test_a_worker_that_does_not_live_cannot_be_stopped(idle: BackgroundTaskWorker) -> None:
    idle._state().store.driver.prepare()
    with pytest.raises(KeyError, match="No living worker"):
        idle.workers["web-1"]


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_job_is_found_by_its_number_or_its_uid(idle: BackgroundTaskWorker) -> None:
    @idle.task
    def work() -> None: ...

    job = work.using(uid="order 7").enqueue()
    assert idle.get_job(job.id) == idle.get_job(uid="order 7") == job
    with pytest.raises(JobNotFound, match="order 8"):
        idle.get_job(uid="order 8")
    for wrong in ({}, {"job_id": job.id, "uid": "order 7"}):
        with pytest.raises(ArgumentsError, match="uid"):
            idle.get_job(**wrong)


def test_jobs_are_found_by_words_and_by_what_they_have(idle: BackgroundTaskWorker) -> None:
    @idle.task(name="shop.send")
    def send(order_id: int) -> None: ...

    @idle.task(name="shop.clean", queue="night")
    def clean() -> None: ...

    assert list(idle.jobs()) == []
    first, second = send.enqueue_many([(1,), (2,)])
    night = clean.enqueue()
    later = send.using(delay=60).enqueue(3)
    assert list(idle.jobs()) == [later, night, second, first]
    assert list(idle.jobs(limit=2)) == [later, night]
    assert list(idle.jobs("task:shop.* queue:night")) == list(idle.jobs(queue="night")) == [night]
    assert list(idle.jobs(task=send, state="ready")) == [second, first]
    assert list(idle.jobs(state=[JobState.SCHEDULED, JobState.RUNNING])) == [later]
    assert list(idle.jobs("state:ready", args={"order_id": 2})) == [second]
    for wrong in ({"state": "lost"}, {"state": ["done"]}):
        with pytest.raises(ArgumentsError, match="state"):
            idle.jobs(**wrong)
    with pytest.raises(ArgumentsError):
        idle.jobs("colour:red")


def test_all_jobs_are_read_however_many_there_are(idle: BackgroundTaskWorker) -> None:
    @idle.task
    def work(number: int) -> None: ...

    jobs = work.enqueue_many([(number,) for number in range(2_500)])
    assert [job.id for job in idle.jobs(task=work)] == [job.id for job in reversed(jobs)]


def test_job_shows_its_arguments_and_its_error(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def divide(number: int, by: int = 0) -> float:
        return number / by

    job = divide.enqueue(1)
    assert job.wait(PATIENCE) is job
    assert job.state is JobState.FAILED
    assert job.arguments == {"number": 1, "by": 0}
    assert job.error is not None
    assert (job.error.kind, job.error.type) == ("exception", "ZeroDivisionError")
    assert "number / by" in job.error.traceback
    done = divide.enqueue(1, by=2).wait(PATIENCE)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)


def test_waiting_for_the_end_of_a_job_ends_with_its_timeout(idle: BackgroundTaskWorker) -> None:
    @idle.task
    def work() -> None: ...

    with pytest.raises(TimeoutError):
        work.enqueue().wait(0.01)


def test_arguments_of_an_unknown_task_are_shown_as_they_are_stored(idle: BackgroundTaskWorker, rows: Rows) -> None:
    @idle.task
    def work(number: int, text: str) -> None: ...

    job = work.enqueue(1, text="a")
    rows("UPDATE taskworker_job SET task = 'gone'")
    assert idle.get_job(job.id).arguments == {"args": (1,), "text": "a"}


def test_job_says_the_address_of_its_page(app: Flask, idle: BackgroundTaskWorker) -> None:
    from flask import Blueprint

    from flask_taskworker.dashboard import create_dashboard

    @idle.task
    def work() -> None: ...

    job = work.enqueue()
    assert job.url is None
    outer = Blueprint("admin", __name__, url_prefix="/admin")
    outer.register_blueprint(create_dashboard(idle), url_prefix="/tasks")
    app.register_blueprint(outer)
    with app.test_request_context():
        assert job.url == f"/admin/tasks/jobs/{job.id}"
    with pytest.raises(RuntimeError, match="SERVER_NAME"):
        job.url  # noqa: B018
    app.config["SERVER_NAME"] = "shop.example.org"
    assert job.url == f"http://shop.example.org/admin/tasks/jobs/{job.id}"


def test_running_job_knows_its_tries_its_age_and_its_parent(task_worker: BackgroundTaskWorker) -> None:
    seen: list[tuple[Any, ...]] = []

    @task_worker.task(retry=Retry(2, base=0.001))
    def child() -> None:
        seen.append((current_job.max_attempts, current_job.is_last_attempt, current_job.parent))
        assert datetime.now(UTC) - current_job.created_at < timedelta(minutes=1)
        raise ValueError("each time")

    @task_worker.task
    def parent() -> int:
        seen.append((current_job.max_attempts, current_job.is_last_attempt, current_job.parent))
        return child.enqueue().id

    job = parent.enqueue()
    with pytest.raises(JobFailed):
        task_worker.get_job(job.result(timeout=PATIENCE)).result(timeout=PATIENCE)
    assert seen == [(1, True, None), (2, False, job.id), (2, True, job.id)]


def test_task_is_enqueued_by_its_name(idle: BackgroundTaskWorker) -> None:
    @idle.task(name="shop.send")
    def send(order_id: int) -> None: ...

    assert list(idle.tasks) == ["shop.send"]
    assert idle.tasks["shop.send"].enqueue(7).arguments == {"order_id": 7}
    with pytest.raises(KeyError):
        idle.tasks["shop.sent"]


# -- queues ------------------------------------------------------------------------------------------------------------


def test_queue_is_paused_and_resumed_for_all_processes(idle: BackgroundTaskWorker, rows: Rows) -> None:
    @idle.task(queue="reports")
    def work() -> None: ...

    work.enqueue()
    queue = idle.queues["reports"]
    assert list(idle.queues) == ["reports"]
    assert (queue.paused, queue.summary.ready) == (False, 1)
    queue.pause(who="Ana")
    assert queue.paused
    assert (queue.summary.state, queue.summary.paused_by) == ("paused", "Ana")
    assert queue.resume()
    assert not queue.resume()
    assert not queue.paused
    assert rows("SELECT who, action, target FROM taskworker_audit ORDER BY id") == [
        ("Ana", "pause", "queue reports"),
        ("code", "resume", "queue reports"),
    ]


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_schedule_is_changed_in_one_argument_and_says_what_it_calls(idle: BackgroundTaskWorker) -> None:
    @idle.task(name="digest")
    def digest(user: int, kind: str = "short", *, copies: int = 1) -> None: ...

    digest.schedule(Every(hours=1), name="of Ana", args=(7,), kwargs={"copies": 2})
    schedule = idle.schedules["of Ana"]
    schedule.change(kind="long")
    assert (schedule.task, schedule.arguments) == ("digest", {"user": 7, "kind": "long", "copies": 2})
    assert schedule.trigger == Every(hours=1)
    schedule.change(Cron("0 1 * * *"))
    assert schedule.arguments == {"user": 7, "kind": "long", "copies": 2}
    schedule.change(args=(8,))
    assert schedule.arguments == {"user": 8, "kind": "short", "copies": 1}
    with pytest.raises(ArgumentsError, match="usr"):
        schedule.change(usr=9)
    with pytest.raises(DeclarationError, match=r"Give Cron\('0 1"):
        schedule.change("0 1 * * *")  # type: ignore[arg-type]


def test_schedule_in_code_says_where_it_is_changed(idle: BackgroundTaskWorker) -> None:
    @idle.task(name="tidy", schedule=Cron("0 4 * * *"))
    def tidy() -> None: ...

    with pytest.raises(DeclarationError, match="declared in code: change it there, or pause it"):
        idle.schedules["tidy"].change(Every(hours=1))
    with pytest.raises(KeyError, match="No schedule is named 'tydy'. There are: tidy"):
        idle.schedules["tydy"]
    assert idle.schedules.get("tydy") is None


def test_wrong_words_for_jobs_are_refused_at_the_call_with_the_right_ones(idle: BackgroundTaskWorker) -> None:
    @idle.task
    def send(order: int, paid: bool = False, note: str | None = None) -> None: ...

    first, second = send.enqueue(1, paid=True), send.enqueue(2, note="x")
    assert list(idle.jobs(args={"paid": True})) == [first]
    assert list(idle.jobs(args={"order": 2, "note": "x"})) == [second]
    with pytest.raises(ArgumentsError, match=r"jobs\(task=…\)"):
        idle.jobs(send)  # type: ignore[arg-type]
    with pytest.raises(ArgumentsError, match="a dict, as"):
        idle.jobs(args="Ana")  # type: ignore[arg-type]
    for limit in (-1, "3", 1.5, True):
        with pytest.raises(ArgumentsError, match="limit = "):
            idle.jobs(limit=limit)  # type: ignore[arg-type]


@pytest.mark.no_tables_yet
def test_status_before_there_are_tables_makes_them(idle: BackgroundTaskWorker) -> None:
    assert idle.status().queues == ()


def test_queue_without_jobs_can_be_paused_and_is_not_among_the_queues(idle: BackgroundTaskWorker) -> None:
    idle.task(queue="mail")(plain)
    assert ("mail" in idle.queues, "none" in idle.queues, idle.queues["none"].paused) == (True, False, False)
    with pytest.raises(DeclarationError, match="queue = 7 is not allowed"):
        idle.queues[7]  # type: ignore[index]


def plain() -> None: ...


def test_limit_to_which_nothing_is_given_says_what_it_takes(idle: BackgroundTaskWorker) -> None:
    idle.task(limit=Limit("carrier", running=2))(plain)
    limit = idle.limits["carrier"]
    assert repr(limit) == "<Limit carrier>"
    with pytest.raises(DeclarationError, match=r"'carrier'. Give it running=…"):
        limit.set()


def test_schedule_in_code_is_run_and_paused_before_any_worker_has_stored_it(idle: BackgroundTaskWorker) -> None:
    @idle.task(name="tidy", schedule=[Cron("0 4 * * *"), Cron("0 5 * * *")])
    def tidy() -> None: ...

    assert idle.schedules["tidy"].run().schedule == "tidy"
    second = idle.schedules["tidy#2"]
    assert second.pause()
    assert second.paused
    assert second.trigger == Cron("0 5 * * *", timezone="UTC")
    with pytest.raises(DeclarationError, match="declared in code"):
        second.remove()


def test_schedule_is_looked_at_run_changed_paused_and_removed(idle: BackgroundTaskWorker) -> None:
    @idle.task
    def digest(user: int, kind: str = "short") -> None: ...

    digest.schedule(Cron("0 8 * * *"), name="digest of Ana", args=(7,))
    schedule = idle.schedules["digest of Ana"]
    assert schedule.trigger == Cron("0 8 * * *")._in_zone("UTC")
    assert schedule.next_at is not None
    assert "0 8 * * *" in schedule.summary.when
    job = schedule.run()
    assert (job.schedule, job.arguments) == ("digest of Ana", {"user": 7, "kind": "short"})
    assert schedule.pause()
    assert schedule.paused
    assert not schedule.pause()
    assert schedule.resume()
    schedule.change(Every(hours=2))
    assert schedule.trigger == Every(hours=2)
    job.cancel()
    assert schedule.run().arguments == {"user": 7, "kind": "short"}
    schedule.change(args=(8,), kind="long")
    assert schedule.trigger == Every(hours=2)
    with pytest.raises(ArgumentsError):
        schedule.change(colour="red")
    assert schedule.remove()
    assert not schedule.remove()
    assert list(idle.schedules) == []
    with pytest.raises(KeyError):
        idle.schedules["digest of Ana"]
    with pytest.raises(DeclarationError, match="digest of Ana"):
        schedule.next_at  # noqa: B018


def test_schedule_in_code_is_there_before_a_worker_has_stored_it_and_cannot_be_changed(
    idle: BackgroundTaskWorker,
) -> None:
    @idle.task(name="nightly", schedule=At(datetime.now(UTC) + timedelta(days=1)))
    def nightly() -> None: ...

    schedule = idle.schedules["nightly"]
    assert schedule.summary.source == "code"
    assert not schedule.paused


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_status_names_what_is_wrong(idle: BackgroundTaskWorker) -> None:
    @idle.task
    def work() -> None: ...

    assert idle.status().problems == []
    work.enqueue()
    status = idle.status()
    assert "flask tasks run" in status.problems[0]
    assert [queue.name for queue in status.queues] == ["default"]
    assert status.workers == ()
