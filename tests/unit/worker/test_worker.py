"""The life of a worker: what it does where a turn fails, where it cannot begin, and at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.errors import StoreError
from flask_taskworker.worker.runner import Runner
from flask_taskworker.worker.work_loop import WorkerParts
from flask_taskworker.worker.worker import Worker
from tests.support.waiting import wait, wait_for

pytestmark = pytest.mark.both_databases
Rows = Callable[..., list[tuple[Any, ...]]]


class EndsAtOnce(WorkerParts):
    """Ends the worker at the first error, and keeps it."""

    error: BaseException | None = None

    def ends_with(self, error: BaseException, *, has_begun: bool) -> bool:
        self.error = error
        return True


class Dies(WorkerParts):
    """Raises what no worker expects as soon as a second job is claimed."""

    claims = 0

    def on_claim(self) -> None:
        self.claims += 1
        if self.claims == 2:
            raise SystemExit("out of the blue")


def run(app: Flask, parts: WorkerParts, **config: Any) -> Runner:
    state = app.extensions["taskworker"]
    state.store.driver.prepare()
    runner = Runner()
    worker = Worker(
        loop=runner.loop,
        client=state.client,
        registry=state.registry,
        config=replace(state.config, **config),
        find_app=state.find_app,
        parts=parts,
    )
    runner.serve(worker)
    runner.start_thread(debug=False)
    return runner


def test_worker_goes_on_when_its_database_is_back(
    task_worker: BackgroundTaskWorker, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    task = task_worker.task(name="work")(lambda: "done")
    assert task.enqueue().result(timeout=20) == "done"
    (worker,) = task_worker._workers()
    rows("ALTER TABLE taskworker_schedule RENAME TO away")
    worker.wake()
    wait_for(lambda: "Next try in" in caplog.text)
    wait_for(lambda: not worker.is_claiming)
    rows("ALTER TABLE away RENAME TO taskworker_schedule")
    assert task.enqueue().result(timeout=20) == "done"
    wait_for(lambda: worker.is_claiming)


def test_worker_of_a_test_ends_with_the_error_of_its_turn(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    app.extensions["taskworker"].store.driver.prepare()
    rows("ALTER TABLE taskworker_schedule RENAME TO away")
    parts = EndsAtOnce()
    run(app, parts).join()
    rows("ALTER TABLE away RENAME TO taskworker_schedule")
    assert isinstance(parts.error, StoreError)
    assert rows("SELECT count(*) FROM taskworker_worker") == [(0,)]


def test_worker_that_was_not_asked_to_stop_does_not_drain(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows, alarms: list[str]
) -> None:
    """What it cannot hand back counts as a crash: a job may have brought it to its end."""
    release = threading.Event()
    job = idle_worker.task(name="holds")(lambda: wait(release)).enqueue()
    runner = run(app, Dies(), shutdown_timeout=0.1)
    wait_for(lambda: rows("SELECT state FROM taskworker_job") == [("running",)])
    idle_worker.task(name="next")(lambda: None).enqueue()
    runner.join()
    assert isinstance(runner.error, SystemExit)
    assert rows("SELECT state FROM taskworker_worker") == [("alive",)]
    assert rows("SELECT state FROM taskworker_job WHERE id = ?", job.id) == [("running",)]
    release.set()
    alarms.clear()


def test_worker_that_gives_up_records_nothing_and_hands_nothing_back(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    release = threading.Event()
    idle_worker.task(name="holds")(lambda: wait(release)).enqueue()
    runner = run(app, WorkerParts())
    wait_for(lambda: rows("SELECT state FROM taskworker_job") == [("running",)])
    (worker,) = runner._workers
    worker.give_up(declare=True)
    release.set()
    runner.join()
    assert runner.error is None
    assert rows("SELECT state FROM taskworker_worker") == [("dead",)]
    assert rows("SELECT state, claim FROM taskworker_job") == [("running", 1)]
