"""Changing a job that waits. On every database alike."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, JobState, Limit, Unique
from flask_taskworker.errors import ArgumentsError, DeclarationError
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

MakeWorker = Callable[..., BackgroundTaskWorker]
Rows = Callable[..., list[tuple[Any, ...]]]


def test_job_that_waits_is_changed(app: Flask, make_worker: MakeWorker) -> None:
    task_worker = make_worker(app, start=False)
    ran: list[str] = []

    @task_worker.task
    def work(name: str, times: int = 1) -> int:
        ran.append(name)
        return times

    first, second, later = work.enqueue("first"), work.enqueue("second"), work.using(delay=3600).enqueue("later")
    assert second.change(priority=5, args=("other",))
    assert later.change(run_at=datetime.now(UTC) - timedelta(1), queue="slow", args={"name": "now", "times": 3})
    assert (later.refresh().state, later.queue, second.refresh().priority) == (JobState.READY, "slow", 5)
    assert first.change(run_at=datetime(2126, 5, 1, tzinfo=UTC))
    assert first.refresh().state is JobState.SCHEDULED
    task_worker.start()
    assert (second.result(timeout=20), later.result(timeout=20)) == (1, 3)
    assert sorted(ran) == ["now", "other"]
    # A worker hears of it at once.
    assert first.change(run_at=datetime.now(UTC) + timedelta(seconds=0.1))
    assert first.result(timeout=20) == 1
    assert not first.change(priority=1)


def test_job_of_a_limit_is_changed_with_its_place(app: Flask, make_worker: MakeWorker, rows: Rows) -> None:
    app.config["TASKER_QUEUES"] = ["slow"]
    task_worker = make_worker(app, start=False)
    ran: list[int] = []

    @task_worker.task(limit=Limit("one", running=1), queue="slow")
    def work(number: int) -> None:
        ran.append(number)

    jobs = [work.enqueue(number) for number in range(3)]
    assert jobs[2].change(priority=1)
    assert jobs[0].change(queue="unserved")
    task_worker.start()
    jobs[1].result(timeout=20)
    assert ran == [2, 1]
    assert jobs[0].refresh().state is JobState.HELD
    assert jobs[0].change(queue="slow")
    jobs[0].result(timeout=20)
    wait_for(lambda: rows("SELECT DISTINCT phase FROM taskworker_permit") == [(5,)])


def test_change_that_cannot_be_is_refused(idle_worker: BackgroundTaskWorker) -> None:
    @idle_worker.task(unique=Unique("x"))
    def keyed(x: int) -> None: ...

    @idle_worker.task
    def work(x: int) -> None: ...

    job, child = work.enqueue(1), work.using(after=keyed.enqueue(1)).enqueue(2)
    with pytest.raises(ArgumentsError, match="takes its key from the arguments"):
        idle_worker.get_job(child.id - 1).change(args=(2,))
    with pytest.raises(ArgumentsError, match="Invalid arguments"):
        job.change(args=(1, 2))
    with pytest.raises(ArgumentsError, match="waits for others"):
        child.change(run_at=datetime.now(UTC))
    with pytest.raises(DeclarationError, match="no time zone"):
        job.change(run_at=datetime(2126, 5, 1))  # noqa: DTZ001
    with pytest.raises(DeclarationError, match="priority"):
        job.change(priority=2**40)
    assert job.refresh().run_at is None


def test_change_by_command_is_in_the_audit_log(app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows) -> None:
    @idle_worker.task
    def work() -> None: ...

    job, run = work.enqueue(), app.test_cli_runner().invoke
    assert run(args=["tasks", "change", str(job.id), "--priority", "7", "--queue", "slow"]).exit_code == 0
    assert (job.refresh().priority, job.queue) == (7, "slow")
    ((target,),) = rows("SELECT target FROM taskworker_audit WHERE action = 'change'")
    assert target.endswith(": priority 0 → 7, queue default → slow")
    assert run(args=["tasks", "change", str(job.id)]).exit_code == 2
    job.cancel()
    assert run(args=["tasks", "change", str(job.id), "--priority", "8"]).exit_code == 3
    assert run(args=["tasks", "change", "99", "--priority", "8"]).exit_code == 3
