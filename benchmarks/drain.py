"""Draining a backlog of jobs that do nothing, beside the floor: the same statements with nothing around them."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.store.sqlite.driver import SqliteDriver
from flask_taskworker.store.statements import jobs as job_statements
from flask_taskworker.worker.bounds import resident_mb

from .common import Row, an_app, drained, folder, median, wait_until

ROUNDS = 3
JOBS = {"async": 30_000, "sync": 10_000}
BATCH = 100


def drain(path: Path, kind: str, jobs: int) -> tuple[float, float, float]:
    """Jobs a second for a bulk enqueue and for draining it, and by how many MB the process grew."""
    with an_app(path) as task_worker:
        task = declare(task_worker, kind)
        begin = time.perf_counter()
        task.enqueue_many([()] * jobs)
        enqueued = time.perf_counter()
        before = resident_mb() or 0.0
        task_worker.start()
        wait_until(lambda: drained(task_worker))
        end = time.perf_counter()
        return jobs / (enqueued - begin), jobs / (end - enqueued), (resident_mb() or 0.0) - before


def declare(task_worker: BackgroundTaskWorker, kind: str):  # type: ignore[no-untyped-def]
    """A task of that kind that does nothing."""
    if kind == "async":

        @task_worker.task(name="nothing_async")
        async def nothing_async() -> None: ...

        return nothing_async

    @task_worker.task(name="nothing")
    def nothing() -> None: ...

    return nothing


def statements_alone(path: Path, jobs: int) -> float:
    """Claim and finish on a bare sqlite3 connection, in batches; jobs a second."""
    with an_app(path) as task_worker:
        declare(task_worker, "async").enqueue_many([()] * jobs)
        driver = task_worker._state().store.driver
        assert isinstance(driver, SqliteDriver)
        connection = driver._open()
        connection.execute(
            "INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) "
            "VALUES ('w', '', 0, 0, 0, 'alive', '')"
        )
        claim, finish = job_statements.claim(driver.dialect, "async"), job_statements.finish_succeeded(driver.dialect)
        begin = time.perf_counter()
        parameters = {"worker_id": "w", "queue": "default", "number": BATCH, "now": 1}
        while claims := connection.execute(claim, parameters).fetchall():
            batch = json.dumps({row[0]: row[7] for row in claims})
            connection.execute(finish, {"batch": batch, "now": 1, "expires_at": 2}).fetchall()
        seconds = time.perf_counter() - begin
        connection.close()
        return jobs / seconds


def main() -> list[Row]:
    """Measure in turns, and once 100,000 jobs for the memory."""
    rates: dict[str, list[float]] = {"async": [], "sync": [], "bulk": [], "floor": []}
    for _ in range(ROUNDS):
        for kind in ("async", "sync"):
            with folder() as path:
                bulk, rate, _ = drain(path, kind, JOBS[kind])
                rates[kind].append(rate)
                rates["bulk"].append(bulk)
        with folder() as path:
            rates["floor"].append(statements_alone(path, JOBS["async"]))
    with folder() as path:
        _, _, growth = drain(path, "async", 100_000)
    return [
        Row("drain async jobs, one process", median(rates["async"]), "jobs/s"),
        Row("drain sync jobs, one process", median(rates["sync"]), "jobs/s"),
        Row("enqueue in bulk", median(rates["bulk"]), "jobs/s"),
        Row("the SQL of a drain alone", median(rates["floor"]), "jobs/s", f"claim and finish, batches of {BATCH}"),
        Row("memory gained by draining 100,000 jobs", growth, "MB"),
    ]
