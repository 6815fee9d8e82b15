"""What the database refuses, and what another session has locked, holds up nothing else."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import psycopg
import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Every, JobState, current_job
from flask_taskworker.core.rows import Claim, Failure, NewJob, Outcome, OutcomeKind, Progress, ProgressReport
from flask_taskworker.store.driver import Run
from flask_taskworker.store.sql import Store
from flask_taskworker.store.statements.jobs import in_pieces
from flask_taskworker.store.work import DueSchedule, Ended, Firing, WorkerStore
from tests.support.postgres import connect
from tests.support.stored import counts_of, store_many
from tests.support.waiting import wait_for

T = TypeVar("T")
Rows = Callable[..., list[tuple[Any, ...]]]

SIZE_LIMIT = 50_000
NUL = "a\0b"
"""PostgreSQL refuses it; SQLite is set to refuse texts that are longer than SIZE_LIMIT."""


def new(number: int, **fields: Any) -> NewJob:
    values: dict[str, Any] = {
        "uid": f"uid-{number}", "task": "t", "queue": "q", "kind": "async", "priority": 0, "run_at": 0,
        "args": "[[],{}]", "max_attempts": 1, "timeout": None, "created_at": 1,
    }  # fmt: skip
    return NewJob(**values | fields)


@pytest.fixture
def do(app: Flask, idle_worker: object, store: Store, rows: Rows, driver: str) -> Iterator[Callable[..., Any]]:
    """Do something with a worker's store; small texts in it are too much for SQLite."""
    store.driver.prepare()
    rows("INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) VALUES (?,?,?,?,?,?,?)",
         "w", "h", 1, 1, 1, "alive", "{}")  # fmt: skip

    def run(call: Callable[[WorkerStore], Awaitable[T]]) -> T:
        async def body() -> T:
            work = await WorkerStore.open(store)
            if driver == "sqlite":
                link: Any = work._link._link
                link._durable.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, SIZE_LIMIT)
                link._light.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, SIZE_LIMIT)
            try:
                return await call(work)
            finally:
                await work.close()

        return asyncio.run(body())

    yield run
    store.driver.close()


def refused_text(driver: str) -> str:
    return "x" * SIZE_LIMIT if driver == "sqlite" else NUL


def claimed(do: Callable[..., Any], store: Store, number: int) -> list[Claim]:
    store.add([new(i) for i in range(number)])
    claims: list[Claim] = do(lambda work: work.claim("w", "q", "async", number))
    return claims


def test_ending_that_is_refused_becomes_a_failure_and_the_others_are_recorded(
    do: Callable[..., Any], store: Store, driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    claims = claimed(do, store, 5)
    results = ["1", "2", refused_text(driver), "4", "5"]
    ended = [
        Ended(claim, Outcome(OutcomeKind.SUCCEEDED, result=r), 1, 2) for claim, r in zip(claims, results, strict=True)
    ]
    recorded = do(lambda work: work.finish("w", ended))
    bad = claims[2].id
    assert recorded.states == {c.id: "failed" if c.id == bad else "succeeded" for c in claims}
    assert [e.outcome.ending for e in recorded.ended].count(OutcomeKind.FAILED) == 1
    assert store.ending(claims[3].id).result == "4"
    failure = Failure._from_text(store.ending(bad).error, store.ending(bad).failure_kind)
    assert (failure.kind, failure.type) == ("result", "RowRefused")
    assert "cannot be stored" in caplog.text


def test_failure_that_is_refused_still_ends_its_job(do: Callable[..., Any], store: Store, driver: str) -> None:
    claims = claimed(do, store, 2)
    odd = Failure(kind="exception", type=refused_text(driver), message="no")
    ended = [Ended(c, Outcome(OutcomeKind.FAILED, failure=f), 1, 2) for c, f in zip(claims, [odd, odd], strict=True)]
    assert set(do(lambda work: work.finish("w", ended)).states.values()) == {"failed"}
    assert [len(store.attempts(c.id)) for c in claims] == [1, 1]


def test_schedule_that_is_refused_is_left_out_and_the_others_fire(
    do: Callable[..., Any], store: Store, rows: Rows, driver: str
) -> None:
    firings = []
    for number, args in enumerate(["[]", refused_text(driver), "[]"]):
        rows("INSERT INTO taskworker_schedule (name, task, trigger, args, next_at, source, seen_at) "
             "VALUES (?,?,?,?,?,?,?)", f"s{number}", "t", "{}", "[[],{}]", 5, "runtime", 1)  # fmt: skip
        job = new(number, schedule=f"s{number}", fire_at=5, args=args)
        due = DueSchedule(f"s{number}", "t", "{}", args, 5)
        firings.append(Firing(schedule=due, next_at=9, jobs=[job], overlap=True))
    fired = do(lambda work: work.fire(firings))
    assert sorted(fired.made) == ["s0", "s2"]
    assert sorted(fired.refused) == ["s1"]
    assert rows("SELECT next_at FROM taskworker_schedule ORDER BY name") == [(9,), (5,), (9,)]


def test_batch_is_cut_by_size() -> None:
    assert list(in_pieces([1, 2, 3, 4], lambda _: 1_500_000)) == [[1, 2], [3, 4]]
    assert list(in_pieces([], lambda _: 1)) == []
    assert list(in_pieces([1], lambda _: 10**9)) == [[1]]


def test_many_large_jobs_are_stored_in_one_transaction(app: Flask, idle_worker: object, store: Store) -> None:
    jobs = [new(i, args=f'[["{"x" * 500_000}"],{{}}]') for i in range(12)]
    records = store.add(jobs)
    assert [record.uid for record in records] == [job.uid for job in jobs]
    assert counts_of(store)["ready"] == 12
    again = store.add([*jobs[:10], new(99)]) if store.driver.dialect.name == "postgresql" else []
    assert [record.id for record in again[:10]] == [record.id for record in records[:10]][: len(again)]


# -- locked rows: SQLite has none --------------------------------------------------------------------------------------


@contextmanager
def row_lock(url: str, table: str, key: str, value: object) -> Iterator[psycopg.Connection[Any]]:
    with connect(url) as session, session.transaction():
        session.execute(f"SELECT 1 FROM {table} WHERE {key} = %s FOR UPDATE", [value])
        yield session


@pytest.fixture
def url(app: Flask, driver: str, idle_worker: object) -> str:
    if driver == "sqlite":
        pytest.skip("one writer at a time, and no row locks")
    found: str = app.config["TASKER_DATABASE_URI"]
    return found


@pytest.mark.parametrize("result", [None, "1"])
def test_ending_of_a_locked_row_waits_and_the_others_are_recorded(
    do: Callable[..., Any], store: Store, url: str, result: str | None
) -> None:
    claims = claimed(do, store, 3)
    ended = [Ended(claim, Outcome(OutcomeKind.SUCCEEDED, result=result), 1, 2) for claim in claims]
    with row_lock(url, "taskworker_job", "id", claims[1].id):
        recorded = do(lambda work: work.finish("w", ended))
    assert set(recorded.states) == {claims[0].id, claims[2].id}
    assert [e.claim.id for e in recorded.later] == [claims[1].id]
    assert do(lambda work: work.finish("w", recorded.later)).states == {claims[1].id: "succeeded"}


def test_locked_rows_stop_no_worker(app: Flask, idle_worker: BackgroundTaskWorker, url: str) -> None:
    """The row of a running job, that of a due job and that of a schedule."""
    gate = asyncio.Event()

    @idle_worker.task
    async def held() -> int:
        await gate.wait()
        return 7

    @idle_worker.task
    async def other() -> int:
        return 1

    @idle_worker.task(schedule=Every(seconds=0.2))
    async def tick() -> None:
        pass

    with app.app_context():
        idle_worker.start()
        assert other.enqueue().result(timeout=20) == 1
        running = held.enqueue()
        due = other.using(delay=0.3).enqueue()
        with ExitStack() as locks:
            for table, key, value in (
                ("taskworker_job", "id", due.id),
                ("taskworker_schedule", "source", "code"),
            ):
                locks.enter_context(row_lock(url, table, key, value))
            (worker,) = idle_worker._workers()
            while not worker.running_jobs():
                assert other.enqueue().result(timeout=20) == 1
            locks.enter_context(row_lock(url, "taskworker_job", "id", running.id))
            worker._loop.call_soon_threadsafe(gate.set)
            for _ in range(5):
                assert other.enqueue().result(timeout=5) == 1
        assert running.result(timeout=20) == 7
        assert due.result(timeout=20) == 1


def test_last_progress_is_stored_with_the_ending_where_the_row_was_locked_before(
    app: Flask, idle_worker: BackgroundTaskWorker, url: str
) -> None:
    go_on, gate = asyncio.Event(), asyncio.Event()

    @idle_worker.task
    async def counts(done: int) -> None:
        if done == 9:
            await go_on.wait()
        current_job.progress(done)
        await gate.wait()

    with app.app_context():
        idle_worker.start()
        job = counts.enqueue(9)
        wait_for(lambda: job.refresh().state is JobState.RUNNING)
        (worker,) = idle_worker._workers()
        with row_lock(url, "taskworker_job", "id", job.id):
            worker._loop.call_soon_threadsafe(go_on.set)
            wait_for(lambda: [one.reported for _, one in worker.running_jobs()] == [ProgressReport(Progress(9))])
            wait_for(lambda: not worker.work_loop.jobs.reporting, "the worker has taken it")
            later = counts.enqueue(1)
            wait_for(lambda: later.refresh().progress, "what is reported later is stored")
        assert job.refresh().progress is None
        worker._loop.call_soon_threadsafe(gate.set)
        job.result(timeout=20)
        assert job.refresh().progress == Progress(9)


def test_rescue_leaves_a_locked_row_and_takes_the_others(
    do: Callable[..., Any], store: Store, rows: Rows, url: str
) -> None:
    from flask_taskworker.store.statements.workers import sweep

    claims = claimed(do, store, 3)
    rows("UPDATE taskworker_worker SET state = 'dead'")
    values = {"now": 5, "expires_at": 9, "failed_expires_at": 9, "crashed": "{}", "interrupted": "{}"}
    with row_lock(url, "taskworker_job", "id", claims[0].id):
        assert len(store.driver.write(sweep(store.driver.dialect, "dead"), values)) == 2
    assert len(store.driver.write(sweep(store.driver.dialect, "dead"), values)) == 1


@pytest.mark.no_tables_yet
def test_workers_statements_are_planned_again_as_the_tables_grow(do: Callable[..., Any], rows: Rows, url: str) -> None:
    sql = "SELECT state FROM taskworker_job WHERE uid = :uid"
    scans_so_far = "SELECT pg_stat_get_xact_numscans('taskworker_job'::regclass)"

    def scans(run: Run) -> int:
        ((before,),) = run(scans_so_far, {})
        run(sql, {"uid": "u5"})
        ((after,),) = run(scans_so_far, {})
        return int(after - before)

    async def before_and_after(work: WorkerStore) -> list[int]:
        link: Any = work._link._link
        before = [await work._link.transaction(scans) for _ in range(20)][-1]
        store_many(rows, 20_000, uid="'v' || i")
        link._planned_at = -math.inf
        return [before, await work._link.transaction(scans)]

    store_many(rows, 9, uid="'u' || i")
    rows("ANALYZE taskworker_job")
    assert do(before_and_after) == [1, 0]
