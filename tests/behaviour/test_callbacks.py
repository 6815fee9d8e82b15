"""What a task calls when a job of it has ended. On every database alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, g

from flask_taskworker import BackgroundTaskWorker, CancelJob, Every, Retry, current_job
from flask_taskworker.errors import ArgumentsError, DeclarationError
from tests.support.twins import twin_of
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

PATIENCE = 20
Rows = Callable[..., list[tuple[Any, ...]]]
MakeWorker = Callable[..., BackgroundTaskWorker]


class Shop:
    """A task that fails or succeeds on request, and callbacks that note for which job they were called."""

    def __init__(self, task_worker: BackgroundTaskWorker, **options: Any) -> None:
        self.heard: list[tuple[str, int | None]] = []
        self.error: type[Exception] | None = ValueError

        @task_worker.task
        def praise() -> None:
            self.heard.append(("praise", current_job.parent))

        @task_worker.task
        def alarm(team: str) -> None:
            self.heard.append((team, current_job.parent))

        @task_worker.task(on_success=praise, on_failure=alarm.bind("ops"), **options)
        def work() -> int:
            if self.error is not None:
                raise self.error("no")
            return 1

        self.praise, self.alarm, self.work = praise, alarm, work


def settled(task_worker: BackgroundTaskWorker) -> None:
    """Every job has ended."""
    wait_for(lambda: not any(not job.state.finished for job in task_worker.jobs()))


def test_a_failure_for_good_calls_once_and_attempts_that_are_repeated_do_not(task_worker: BackgroundTaskWorker) -> None:
    shop = Shop(task_worker, retry=Retry(3, base=0.001))
    job = shop.work.enqueue().wait(PATIENCE)
    settled(task_worker)
    assert shop.heard == [("ops", job.id)]


def test_a_success_calls_what_was_declared_for_it_and_a_cancellation_nothing(task_worker: BackgroundTaskWorker) -> None:
    shop = Shop(task_worker)
    shop.error = None
    jobs = shop.work.enqueue_many([()] * 30)
    settled(task_worker)
    assert sorted(shop.heard) == [("praise", job.id) for job in jobs]
    shop.heard.clear()
    shop.error = CancelJob
    assert shop.work.enqueue().wait(PATIENCE).state == "cancelled"
    assert shop.work.using(delay=60).enqueue().cancel()
    settled(task_worker)
    assert shop.heard == []


def test_a_job_that_is_retried_by_hand_calls_once_for_each_of_its_endings(task_worker: BackgroundTaskWorker) -> None:
    shop = Shop(task_worker)
    job = shop.work.enqueue().wait(PATIENCE)
    assert job.retry()
    job.wait(PATIENCE)
    shop.error = None
    assert job.retry()
    assert job.wait(PATIENCE).state == "succeeded"
    settled(task_worker)
    assert shop.heard == [("ops", job.id)] * 2 + [("praise", job.id)]


def test_a_callback_is_stored_together_with_the_ending_so_that_none_is_there_twice_or_missing(
    task_worker: BackgroundTaskWorker, app: Flask, make_worker: MakeWorker, rows: Rows
) -> None:
    shop, twin = Shop(task_worker), Shop(make_worker(twin_of(app)))
    jobs = shop.work.enqueue_many([()] * 60)
    settled(task_worker)
    assert sorted(shop.heard + twin.heard) == [("ops", job.id) for job in jobs]
    uids = sorted(uid for (uid,) in rows("SELECT uid FROM taskworker_job WHERE task = ?", shop.alarm.name))
    assert uids == sorted(f"ended:{job.id}:1:failure" for job in jobs)


def test_jobs_of_schedules_call_too(task_worker: BackgroundTaskWorker) -> None:
    shop = Shop(task_worker, schedule=Every(seconds=0.1))
    wait_for(lambda: shop.heard)
    assert shop.heard[0][0] == "ops"
    assert task_worker.get_job(shop.heard[0][1] or 0).task == shop.work.name


def test_a_callback_has_callbacks_and_options_of_its_own_and_carries_what_the_job_carried(
    task_worker: BackgroundTaskWorker, app: Flask
) -> None:
    task_worker.carry("tenant", save=lambda: g.get("tenant"))
    seen: list[Any] = []

    @task_worker.task
    def last() -> None:
        seen.append(("last", current_job.queue, current_job.carried.get("tenant")))

    @task_worker.task(on_success=last.using(queue="other").bind())
    def middle() -> None:
        seen.append(("middle", current_job.queue, current_job.carried.get("tenant")))

    @task_worker.task(on_success=middle)
    def first() -> None: ...

    with app.app_context():
        g.tenant = "ana"
        first.enqueue()
    wait_for(lambda: len(seen) == 2)
    assert seen == [("middle", "default", "ana"), ("last", "other", "ana")]


def test_a_job_without_callbacks_has_no_mark_and_no_more_in_its_row(
    task_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    shop = Shop(task_worker)
    shop.praise.using(delay=60).enqueue()
    assert rows("SELECT marks, origin FROM taskworker_job") == [(0, None)]


@pytest.mark.parametrize("event", ["success", "failure"])
def test_what_cannot_be_called_is_refused_where_it_is_declared(task_worker: BackgroundTaskWorker, event: str) -> None:
    shop, stranger = Shop(task_worker), Shop(BackgroundTaskWorker())

    def declare(call: object) -> None:
        @task_worker.task(**{f"on_{event}": call})
        def other() -> None: ...

    for call, words in (
        (lambda: None, rf"on_{event} = <function .* Give a call: on_{event}=task\.bind"),
        (shop.alarm, "team"),
        (shop.alarm.using(uid="one").bind("ops"), "takes no uid"),
        (stranger.praise, "belongs to another TaskWorker"),
    ):
        with pytest.raises((ArgumentsError, DeclarationError), match=words):
            declare(call)
    with pytest.raises(ArgumentsError, match="'ended:'"):
        shop.praise.using(uid="ended:1:1:failure")
