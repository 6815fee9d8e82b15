"""Schedules that are due at the same time: fired in one transaction, and no less exactly."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from flask import Flask

from flask_taskworker import At, BackgroundTaskWorker, Every, signals
from flask_taskworker.core.rows import NewJob
from flask_taskworker.core.triggers import Trigger, trigger_to_text
from flask_taskworker.store.sql import Store
from flask_taskworker.store.work import DueSchedule, Firing, WorkerStore
from flask_taskworker.worker.scheduling import Scheduler
from tests.support.twins import twin_of
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

MakeWorker = Callable[..., BackgroundTaskWorker]
Rows = Callable[..., list[tuple[Any, ...]]]
T = TypeVar("T")

HOUR = 3_600_000
# Half an hour off the beat, so that none is due while these tests run.
HOURLY = Every(hours=1, start=datetime.now(UTC) - timedelta(minutes=30))


def store_due(store: Store, names: Sequence[str], next_at: int, trigger: Trigger = HOURLY, **columns: object) -> None:
    """Schedules of the task ``note``, made at run time, that are due since *next_at*."""
    row = {
        "task": "note",
        "trigger": trigger_to_text(trigger),
        "args": "[[],{}]",
        "next_at": next_at,
        "source": "runtime",
        "seen_at": next_at,
    } | columns
    listed = ", ".join(f":{name}" for name in row)
    sql = f"INSERT INTO taskworker_schedule (name, {', '.join(row)}) VALUES (:name, {listed})"
    store.driver.prepare()
    store.driver.transaction(lambda run: [run(sql, {"name": name, **row}) for name in names])


def in_loop(store: Store, body: Callable[[WorkerStore], Awaitable[T]]) -> T:
    """Run *body* with a worker's face of the store, in an event loop of its own."""

    async def run() -> T:
        work = await WorkerStore.open(store)
        try:
            return await body(work)
        finally:
            await work.close()

    return asyncio.run(run())


async def fired_by(task_worker: BackgroundTaskWorker, work: WorkerStore) -> list[str]:
    """Fire until nothing is due; the names of the schedules that were ours."""
    scheduler = Scheduler(task_worker._registry, task_worker._state().store.clock)
    await scheduler.declare(work)
    ours: list[str] = []
    while await work.due_schedules(scheduler.may_fire, 1):
        ours += [name for name, _ in await scheduler.fire_due(work)]
    return ours


def jobs_of(rows: Rows) -> list[tuple[str, int]]:
    """The schedule and fire time of each job, in the order of their ids."""
    return rows("SELECT schedule, fire_at FROM taskworker_job ORDER BY id")


def test_two_workers_that_fire_the_same_schedules_make_each_job_once(
    app: Flask, make_worker: MakeWorker, rows: Rows
) -> None:
    workers = [make_worker(app, start=False)]
    workers.append(make_worker(twin_of(app), start=False))
    for worker in workers:
        worker.task(name="note")(lambda: None)
    names = [f"s{number:03}" for number in range(500)]
    due = workers[0]._state().store.clock() - 1000
    store_due(workers[0]._state().store, names, due)
    both = threading.Barrier(2)

    async def fire(worker: BackgroundTaskWorker, work: WorkerStore) -> list[str]:
        both.wait(20)
        return await fired_by(worker, work)

    with ThreadPoolExecutor(2) as threads:
        ours = list(threads.map(lambda w: in_loop(w._state().store, lambda work: fire(w, work)), workers))
    assert sorted(ours[0] + ours[1]) == names, "each worker reports its own"
    assert sorted(jobs_of(rows)) == [(name, due) for name in names]


def test_workers_that_move_the_same_schedules_in_other_orders_do_not_block_each_other(
    idle_worker: BackgroundTaskWorker, store: Store
) -> None:
    now = store.clock()
    names = [f"s{number:03}" for number in range(100)]
    # Enough that PostgreSQL goes by the index, in the order in which it is given the names.
    store_due(store, [*names, *(f"t{number}" for number in range(3000))], now)
    both = threading.Barrier(2)

    def firings(turn: int) -> list[Firing]:
        moved = [DueSchedule(name, "note", "", "[[],{}]", now + turn) for name in names]
        return [Firing(schedule=s, next_at=now + turn + 1, jobs=[], overlap=True) for s in moved]

    async def fire(work: WorkerStore, step: int) -> list[set[str]]:
        won = []
        for turn in range(5):
            both.wait(20)
            won.append(set((await work.fire(firings(turn)[::step])).made))
            await work.see_schedules(names[::-step])
        return won

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda step: in_loop(store, lambda work: fire(work, step)), (1, -1))
    for a, b in zip(one, other, strict=True):
        assert a ^ b == set(names), "one of them, never both"


def test_schedules_in_the_middle_that_cannot_fire_harm_no_other(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def note(sender: Flask, *, schedule: str, **_: object) -> None:
        told.append(schedule)

    signals.schedule_fired.connect(note)
    idle_worker.task(name="note")(lambda: None)
    now = store.clock()
    good = [f"s{number:03}" for number in range(60)]
    for number, name in enumerate(good):
        store_due(store, [name], now - 1000 + number)
    store_due(store, ["unreadable"], now - 980, trigger=HOURLY)
    rows("UPDATE taskworker_schedule SET trigger = '{}' WHERE name = 'unreadable'")
    store_due(store, ["of no task"], now - 970, task="gone")
    idle_worker.start()
    wait_for(lambda: len(told) >= len(good))
    assert told == good, "the most overdue one first"
    assert [name for name, _ in jobs_of(rows)] == good
    assert caplog.text.count("schedule 'unreadable' cannot fire") == 1
    assert rows("SELECT count(*) FROM taskworker_schedule WHERE next_at < ?", now) == [(2,)]


def test_many_schedules_that_cannot_fire_hide_no_other(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    """After a rollback, for example, there may be many of a kind that the former code does not know."""
    idle_worker.task(name="note")(lambda: None)
    now = store.clock()
    store_due(store, [f"bad {number}" for number in range(150)], now - HOUR)
    rows("UPDATE taskworker_schedule SET trigger = '{}'")
    store_due(store, ["good"], now - 1000)
    idle_worker.start()
    wait_for(lambda: jobs_of(rows) == [("good", now - 1000)])


def test_missed_times_are_made_up_for_in_order_and_in_more_than_one_transaction(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    idle_worker.task(name="note")(lambda: None)
    start = datetime.now(UTC) - timedelta(minutes=300)
    first = int(start.timestamp() * 1000)
    every = Every(minutes=1, start=start, misfire="all", overlap="allow")
    store_due(store, ["a", "b", "c"], first, trigger=every)
    lengths: list[int] = []

    async def fire(work: WorkerStore) -> None:
        scheduler = Scheduler(idle_worker._registry, store.clock)
        await scheduler.declare(work)
        while made := await scheduler.fire_due(work):
            lengths.append(len(made))

    in_loop(store, fire)
    assert len(lengths) == 3, "one transaction for all these jobs would keep others waiting"
    found = jobs_of(rows)
    for name in ("a", "b", "c"):
        times = [at for schedule, at in found if schedule == name]
        assert times[:301] == [first + 60_000 * number for number in range(301)]


def test_of_missed_times_without_overlap_the_first_that_has_no_job_is_made(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    now = store.clock()
    store_due(store, ["free", "taken", "busy"], now)

    def jobs(schedule: str) -> list[NewJob]:
        return [
            NewJob(
                f"{schedule} {at}", "note", "q", "sync", 0, 0, "[[],{}]", 1, None, now, schedule=schedule, fire_at=at
            )
            for at in (now, now + 1, now + 2)
        ]

    store.add([jobs("taken")[0], jobs("busy")[2]])
    rows("UPDATE taskworker_job SET state = 'succeeded', finished_at = 1, expires_at = 1 WHERE schedule = 'taken'")
    firings = [
        Firing(schedule=DueSchedule(s, "note", "", "[[],{}]", now), next_at=now + 3, jobs=jobs(s), overlap=False)
        for s in ("free", "taken", "busy")
    ]
    made = in_loop(store, lambda work: work.fire(firings)).made
    assert {name: [job.fire_at for job in jobs] for name, jobs in made.items()} == {
        "free": [now],
        "taken": [now + 1],
        "busy": [],
    }


def test_schedules_for_one_moment_are_gone_when_they_have_fired_together(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    idle_worker.task(name="note")(lambda: None)
    now = store.clock()
    store_due(store, [f"once {number}" for number in range(120)], now, trigger=At(datetime.fromtimestamp(0, UTC)))
    store_due(store, ["hourly"], now)
    assert len(in_loop(store, lambda work: fired_by(idle_worker, work))) == 121
    assert [schedule.name for schedule in store.schedules()] == ["hourly"]
