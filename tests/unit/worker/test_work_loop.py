"""One turn of a worker after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.worker.bounds import Bounds
from flask_taskworker.worker.work_loop import WorkerParts, WorkLoop
from tests.support.turns import WORKER, turn_until, with_turns

pytestmark = pytest.mark.both_databases(slow="postgresql")
Rows = Callable[..., list[tuple[Any, ...]]]


def states(rows: Rows) -> list[str]:
    return [row[0] for row in rows("SELECT state FROM taskworker_job ORDER BY id")]


def test_turns_claim_run_and_record_a_job(app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows) -> None:
    ran: list[int] = []
    idle_worker.task(name="work")(lambda x: ran.append(x)).enqueue(5)

    async def test(loop: WorkLoop) -> None:
        await turn_until(loop, lambda: states(rows) == ["succeeded"])

    with_turns(app, rows, test)
    assert ran == [5]


def test_worker_without_work_sleeps_until_its_next_look(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    async def test(loop: WorkLoop) -> None:
        delay = await loop.turn(WORKER)
        interval = app.extensions["taskworker"].config.loop_interval
        assert interval - 1 < delay <= interval
        loop.view.hear(())
        assert loop.delay() == 0.0, "there is news"

    with_turns(app, rows, test)


def test_worker_wakes_when_the_next_job_is_due(app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows) -> None:
    idle_worker.task(name="work")(lambda: None).using(delay=2).enqueue()

    async def test(loop: WorkLoop) -> None:
        assert 0 < await loop.turn(WORKER) <= 2

    with_turns(app, rows, test)


def test_nothing_is_claimed_while_jobs_may_not_begin(app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows) -> None:
    """As after a gap of a lease."""
    idle_worker.task(name="work")(lambda: None).enqueue()
    may_begin = [False]

    async def test(loop: WorkLoop) -> None:
        for _ in range(3):
            await loop.turn(WORKER)
        assert states(rows) == ["ready"]
        may_begin[0] = True
        await turn_until(loop, lambda: states(rows) == ["succeeded"])

    with_turns(app, rows, test, may_begin=lambda: may_begin[0])


def test_claim_that_waits_for_a_slot_does_not_begin_after_a_gap_of_a_lease(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    idle_worker.task(name="work")(lambda: None).enqueue()
    may_begin = [True]

    class Freeze(WorkerParts):
        def on_claim(self) -> None:
            may_begin[0] = False

    async def test(loop: WorkLoop) -> None:
        await loop.turn(WORKER)
        assert states(rows) == ["running"]
        assert loop.jobs.waiting == 1
        assert not loop.jobs.busy
        may_begin[0] = True
        await turn_until(loop, lambda: states(rows) == ["succeeded"])

    with_turns(app, rows, test, parts=Freeze(), may_begin=lambda: may_begin[0])


def test_job_that_waits_for_the_loop_does_not_begin_after_a_gap_of_a_lease(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    may_begin = [True]
    ran: list[int] = []

    async def work(x: int) -> None:
        # It keeps the loop, and meanwhile the machine stands still.
        may_begin[0] = bool(ran)
        ran.append(x)

    idle_worker.task(name="work")(work).enqueue_many([(1,), (2,)])

    async def test(loop: WorkLoop) -> None:
        await turn_until(loop, lambda: states(rows) == ["succeeded", "ready"])
        assert ran == [1]
        may_begin[0] = True
        loop.view.hear(())
        await turn_until(loop, lambda: states(rows) == ["succeeded", "succeeded"])

    with_turns(app, rows, test, may_begin=lambda: may_begin[0])
    assert ran == [1, 2]


def test_parts_decide_how_many_jobs_are_claimed(app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows) -> None:
    idle_worker.task(name="work")(lambda: None).enqueue_many([()] * 3)

    class OneAtATime(WorkerParts):
        def room(self, room: int, loop: WorkLoop) -> int:
            return min(1, room) if not loop.jobs.claims() else 0

    async def test(loop: WorkLoop) -> None:
        await loop.turn(WORKER)
        assert sorted(states(rows)) == ["ready", "ready", "running"]
        await turn_until(loop, lambda: states(rows) == ["succeeded"] * 3)

    with_turns(app, rows, test, parts=OneAtATime())


def test_worker_has_reached_its_bounds_when_its_last_job_has_ended(
    app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    idle_worker.task(name="work")(lambda: None).enqueue()

    async def test(loop: WorkLoop) -> None:
        assert not loop.is_over(WORKER), "it has not looked yet"
        await loop.turn(WORKER)
        assert not loop.is_over(WORKER)
        await turn_until(loop, lambda: loop.is_over(WORKER))
        assert states(rows) == ["succeeded"]

    with_turns(app, rows, test, bounds=Bounds(drain=True))
