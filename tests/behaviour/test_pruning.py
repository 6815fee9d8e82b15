"""Finished jobs are deleted as fast as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from tests.support.stored import store_many
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

Rows = Callable[..., list[tuple[Any, ...]]]


def test_a_backlog_of_finished_jobs_is_gone_in_seconds(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    app.extensions["taskworker"].store.driver.prepare()
    store_many(rows, 10_000, expires_at="5", finished_at="5")
    store_many(rows, 10, uid="'kept' || i")
    idle_worker.start()
    wait_for(lambda: rows("SELECT count(*) FROM taskworker_job") == [(10,)], deadline=15)


@pytest.mark.timing(prune_interval=0.1, cleaning_interval=0.5)
def test_what_ends_is_deleted_soon_by_a_worker_that_had_nothing_to_do_before(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    app = make_app(TASKER_KEEP_SUCCEEDED=0)
    worker = make_worker(app)

    @worker.task
    async def quick() -> None:
        pass

    store = app.extensions["taskworker"].store
    with app.app_context():
        # With the first one comes the first look for what is old.
        quick.enqueue().result(timeout=10)
        quick.enqueue().result(timeout=10)
        wait_for(lambda: store.driver.read("SELECT count(*) FROM taskworker_job", {}) == [(0,)], deadline=20)


@pytest.mark.timing(prune_interval=0.1, cleaning_interval=0.5)
def test_what_ends_is_deleted_while_the_worker_works(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    app = make_app(TASKER_KEEP_SUCCEEDED=0)
    worker = make_worker(app, start=False)

    @worker.task
    async def quick() -> None:
        pass

    store = app.extensions["taskworker"].store
    with app.app_context():
        quick.enqueue_many([()] * 1000)
        worker.start()
        wait_for(lambda: store.driver.read("SELECT count(*) FROM taskworker_job", {}) == [(0,)], deadline=30)
