"""The bench of an app: the real worker, driven by a plan."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, JobState
from flask_taskworker.errors import AppError
from flask_taskworker.testing.drive import Bench, MovableClock, Plan


def test_each_app_has_one_bench(app: Flask) -> None:
    assert Bench.of(app) is Bench.of(app)


@pytest.mark.sqlite_only
def test_an_app_without_a_task_worker_is_refused() -> None:
    with pytest.raises(AppError, match="has no TaskWorker"):
        Bench.of(Flask("bare"))


def test_a_run_ends_after_as_many_jobs_as_planned(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    ran: list[Any] = []
    task = task_worker.task(name="note")(lambda number: ran.append(number))
    task.enqueue_many([(number,) for number in range(3)])
    report = Bench.of(app).run(Plan(max_jobs=2))
    assert (ran, report.is_cut_short, report.died) == ([0, 1], True, False)
    assert [execution.state for execution in report.executions] == ["succeeded", "succeeded"]


def test_a_plan_that_performs_nothing_makes_due_jobs_ready(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    bench = Bench.of(app)
    job = task_worker.task(name="note")(lambda: None).using(delay=60).enqueue()
    store = bench.state.store
    before, store.clock = store.clock, MovableClock(store.clock() + 61_000)
    try:
        report = bench.run(Plan(max_jobs=1, perform=False))
    finally:
        store.clock = before
    assert report.executions == []
    assert job.refresh().state is JobState.READY
