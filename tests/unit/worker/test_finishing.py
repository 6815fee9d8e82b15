"""What a worker writes down, and what becomes of it while the database does not take it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, current_job
from flask_taskworker.store.work import PRUNE_BATCH
from flask_taskworker.worker.finishing import PRUNE_PAUSE, prune_batches
from flask_taskworker.worker.work_loop import WorkerParts, WorkLoop
from tests.support.turns import WORKER, turn_until, with_turns

pytestmark = pytest.mark.both_databases
Rows = Callable[..., list[tuple[Any, ...]]]


def test_ending_is_kept_until_the_database_takes_it(app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows) -> None:
    idle_worker.task(name="work")(lambda: None).enqueue()

    async def test(loop: WorkLoop) -> None:
        await loop.turn(WORKER)
        rows("ALTER TABLE taskworker_job RENAME TO away")
        while loop.jobs.busy:
            await loop.jobs.wait_for_one(asyncio.Event(), 1.0)
        assert not await loop.writer.flush_all(WORKER)
        assert len(loop.jobs.ended) == 1
        rows("ALTER TABLE away RENAME TO taskworker_job")
        assert await loop.writer.flush_all(WORKER)
        assert loop.jobs.ended == []

    with_turns(app, rows, test)
    assert rows("SELECT state FROM taskworker_job") == [("succeeded",)]


def test_claim_that_never_reached_the_worker_is_handed_back(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    """Its answer was lost: the store believes that this worker runs the job."""
    idle_worker.task(name="work")(lambda: None).enqueue()
    rows(f"UPDATE taskworker_job SET state = 'running', claim = 4, worker_id = '{WORKER}'")

    async def test(loop: WorkLoop) -> None:
        loop.writer.must_reconcile = True
        await loop.writer.reconcile(WORKER)
        assert await loop.writer.flush_all(WORKER)
        assert not loop.writer.must_reconcile

    with_turns(app, rows, test)
    assert rows("SELECT state, claim, failures FROM taskworker_job") == [("ready", 4, 0)]


def test_progress_is_written_while_the_job_runs(app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows) -> None:
    @idle_worker.task
    async def work() -> None:
        current_job.progress(1, 2, "half")
        await asyncio.Event().wait()

    work.enqueue()

    async def test(loop: WorkLoop) -> None:
        await turn_until(loop, lambda: rows("SELECT progress FROM taskworker_job") == [('[1, 2, "half"]',)])
        assert rows("SELECT state FROM taskworker_job") == [("running",)]
        loop.jobs.lose()

    with_turns(app, rows, test)


@pytest.mark.parametrize("prunes", [True, False])
def test_what_is_old_is_deleted_unless_the_worker_is_a_tests(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows, prunes: bool
) -> None:
    idle_worker.task(name="work")(lambda: None).enqueue()
    rows("UPDATE taskworker_job SET state = 'succeeded', finished_at = 1, expires_at = 2")

    class Parts(WorkerParts):
        pass

    Parts.prunes = prunes

    async def test(loop: WorkLoop) -> None:
        for _ in range(3):
            await loop.turn(WORKER)

    with_turns(app, rows, test, parts=Parts())
    assert rows("SELECT count(*) FROM taskworker_job") == [(0 if prunes else 1,)]


@pytest.mark.parametrize("turn", [0.02, 0.2, 4.0])
def test_as_much_is_deleted_in_slow_turns_as_in_quick_ones(turn: float) -> None:
    """Where the disk is slow, a turn takes seconds: one batch for each would fall behind."""
    turns = int(60 / turn)
    assert turns * prune_batches(0, turn) * PRUNE_BATCH >= 60 / PRUNE_PAUSE * PRUNE_BATCH
