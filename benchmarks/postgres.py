"""PostgreSQL: enqueueing, draining with one process and with four, and the pick-up across two processes.

The server is started for it, waits for the disk as one in production does, and shares the machine with everything else.
``python -m benchmarks postgres``
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.core.rows import Claim, NewJob
from flask_taskworker.store.postgresql.connections import PostgresqlServer, ThreadLink
from flask_taskworker.store.statements import jobs as job_statements
from flask_taskworker.store.statements import workers as worker_statements
from tests.support.postgres import PostgresServer, a_schema, run_sql

from . import drain, pickup
from .common import Row, an_app, child, drained, folder, fsync_ms, median, percentile, wait_until

ROUNDS = 3
SINGLE = 500
BULK = 20_000
JOBS = {"async": 30_000, "sync": 10_000}
MANY = 100_000
PROCESSES = 4
BATCH = 100
MILLION = 1_000_000
BESIDE_HISTORY = 20_000
BEHIND_TRANSACTION = 200_000
CLAIMS = 300

Measure = Callable[[BackgroundTaskWorker, Path, str], list[Row]]


@contextlib.contextmanager
def a_task_worker(path: Path, url: str) -> Iterator[BackgroundTaskWorker]:
    """An app on that database."""
    with an_app(path, TASKER_DRIVER="postgresql", TASKER_DATABASE_URI=url) as task_worker:
        try:
            yield task_worker
        finally:
            task_worker.stop(0)
            task_worker._state().client.close()


def pick_up(task_worker: BackgroundTaskWorker, path: Path, url: str) -> list[Row]:
    """From ``enqueue`` here to the first line of the task in another process."""
    pickup.declare(task_worker, path / "late")
    rows: list[Row] = []
    with child("postgres", str(path), url):
        for name in ("late", "late_async"):
            rows += pickup.rows_of(f"{name}: two processes", pickup.measure(task_worker, path / "late", name))
    return rows


# -- enqueueing --------------------------------------------------------------------------------------------------------


def enqueue(task_worker: BackgroundTaskWorker, path: Path, url: str) -> list[Row]:
    """One job a call beside psycopg alone with the same row, in turns; and many in one call."""
    task = drain.declare(task_worker, "async")
    task.enqueue()
    link = ThreadLink(PostgresqlServer(make_url(url), prepares=True))
    ours, bare = [], []
    for _ in range(ROUNDS):
        ours += [seconds_for(task.enqueue) for _ in range(SINGLE)]
        bare += [seconds_for(lambda: link.write(job_statements.ADD_JOB, a_row())) for _ in range(SINGLE)]
    link.close()
    bulk = seconds_for(lambda: [task.enqueue_many([()] * 1000) for _ in range(BULK // 1000)])
    return [
        Row("enqueue one job, median", median(ours) * 1000, "ms"),
        Row("enqueue one job, p99", percentile(ours, 0.99) * 1000, "ms"),
        Row("the same INSERT over psycopg alone, median", median(bare) * 1000, "ms"),
        Row("enqueue, share of the bare INSERT", median(bare) / median(ours) * 100, "%", "goal: 75"),
        Row("enqueue in bulk, 1,000 a call", BULK / bulk, "jobs/s"),
    ]


def seconds_for(call: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def a_row() -> dict[str, Any]:
    """The parameters of ``add_job`` for a job that does nothing."""
    row = dict.fromkeys((*NewJob._fields, "state"))
    values = {"uid": secrets.token_hex(16), "task": "nothing_async", "queue": "default", "kind": "async"}
    numbers = {"priority": 0, "run_at": 0, "max_attempts": 1, "created_at": 1, "at_most_once": 0}
    return {**row, **values, **numbers, "args": "[[],{}]", "state": "ready"}


# -- draining ----------------------------------------------------------------------------------------------------------


def drain_here(task_worker: BackgroundTaskWorker, kind: str, jobs: int) -> float:
    """Jobs a second for a backlog of jobs that do nothing, with a worker of this process."""
    task = task_worker._registry.get(NAMES[kind]) or drain.declare(task_worker, kind)
    for _ in range(jobs // 5000):
        task.enqueue_many([()] * 5000)
    begin = time.perf_counter()
    task_worker.start()
    wait_until(lambda: drained(task_worker))
    seconds = time.perf_counter() - begin
    task_worker.stop()
    return jobs / seconds


NAMES = {"async": "nothing_async", "sync": "nothing"}


def drain_by_one(kind: str) -> Measure:
    """One process, which also holds the backlog's clients."""
    return lambda task_worker, path, url: [
        Row(f"drain {kind} jobs, one process", drain_here(task_worker, kind, JOBS[kind]), "jobs/s")
    ]


def drain_by_four(kind: str) -> Measure:
    """Four processes, that are there before the jobs; each job must be claimed once."""

    def measure(task_worker: BackgroundTaskWorker, path: Path, url: str) -> list[Row]:
        task = drain.declare(task_worker, kind)
        with contextlib.ExitStack() as processes:
            for _ in range(PROCESSES):
                processes.enter_context(child("postgres", str(path), url))
            begin = time.perf_counter()
            for _ in range(MANY // 5000):
                task.enqueue_many([()] * 5000)
            wait_until(lambda: drained(task_worker), pause=0.02)
            seconds = time.perf_counter() - begin
        once = run_sql(url, "SELECT count(*) FROM taskworker_job WHERE state = 'succeeded' AND claim = 1")[0][0]
        assert once == MANY, f"{once} of {MANY} jobs were claimed once and succeeded"
        note = f"{MANY:,} jobs, each once; a fifth process enqueues them meanwhile"
        return [Row(f"enqueue and drain {kind} jobs, four processes", MANY / seconds, "jobs/s", note)]

    return measure


# -- the statements alone ----------------------------------------------------------------------------------------------


def claim_and_finish(task_worker: BackgroundTaskWorker, path: Path, url: str) -> list[Row]:
    """What the two statements of a job cost by themselves, one job at a time and in batches."""
    task = drain.declare(task_worker, "async")
    task.enqueue_many([()] * (CLAIMS + CLAIMS * BATCH))
    rows = []
    with a_link(url) as link:
        for number in (1, BATCH):
            seconds = [claim_and_finish_once(link, number) for _ in range(CLAIMS)]
            what = f"claim and finish alone, {number} at a time, median"
            rows.append(Row(what, median(seconds) / number * 1e6, "µs a job"))
    return rows


@contextlib.contextmanager
def a_link(url: str) -> Iterator[ThreadLink]:
    """A bare connection, and a worker's row for the claims that are made over it."""
    link = ThreadLink(PostgresqlServer(make_url(url), prepares=True))
    row = {"id": "0", "host": "", "pid": 0, "now": 1, "server_started_at": None, "info": "{}"}
    link.write(worker_statements.ADD_WORKER, row)
    yield link
    link.close()


def claim_and_finish_once(link: ThreadLink, number: int) -> float:
    """Seconds for a claim of that many jobs and for their ending."""
    finish = job_statements.finish_succeeded(job_statements.POSTGRESQL)
    begin = time.perf_counter()
    rows = claim(link, number)
    batch = job_statements.batch_of({row.id: row.claim for row in rows})
    ended = link.write(finish, {"batch": batch, "now": 1, "expires_at": 2})
    seconds = time.perf_counter() - begin
    assert len(ended) == number
    return seconds


def claim(link: ThreadLink, number: int) -> list[Claim]:
    """Claim that many jobs."""
    sql = job_statements.claim(job_statements.POSTGRESQL, "async")
    rows = link.write(sql, {"worker_id": "0", "queue": "default", "number": number, "now": 1})
    return [Claim._make(row) for row in rows]


# -- what must not slow a claim ----------------------------------------------------------------------------------------


def beside_history(task_worker: BackgroundTaskWorker, path: Path, url: str) -> list[Row]:
    """Drain with a million finished and a million future jobs in the store, and with none, in turns."""
    rates: dict[str, list[float]] = {"full": [], "empty": []}
    with a_schema(server_of(url)) as full_url, a_task_worker(path / "full", full_url) as full:
        full._state().store.driver.prepare()
        fill(full_url)
        for _ in range(ROUNDS):
            for name, one in (("full", full), ("empty", task_worker)):
                rates[name].append(drain_here(one, "async", BESIDE_HISTORY))
    share = median(rates["full"]) / median(rates["empty"]) * 100
    return [
        Row("drain, empty store", median(rates["empty"]), "jobs/s"),
        Row("drain, a million finished and a million future jobs", median(rates["full"]), "jobs/s"),
        Row("drain beside two million jobs, share of the empty store", share, "%", "goal: 85"),
    ]


def server_of(url: str) -> str:
    """The URL without the schema."""
    return url.partition("&options=")[0]


_FILL = """
INSERT INTO taskworker_job (uid, task, queue, kind, state, run_at, args, created_at, finished_at, expires_at)
SELECT '{state}' || i, 'nothing_async', 'default', 'async', '{state}', {run_at}, '[[],{{}}]', 1, {finished_at},
{expires_at} FROM generate_series(1, {count}) AS i
"""


def fill(url: str) -> None:
    """Store a million jobs of each kind, and let the server tidy up as it does by itself after a while."""
    later = time.time_ns() // 1_000_000 + 86_400_000
    finished = {"state": "succeeded", "run_at": 0, "finished_at": 1, "expires_at": later}
    future = {"state": "scheduled", "run_at": later, "finished_at": "NULL", "expires_at": "NULL"}
    for values in (finished, future):
        run_sql(url, _FILL.format(**values, count=MILLION))
    run_sql(url, "VACUUM ANALYZE taskworker_job")


def beside_a_long_transaction(task_worker: BackgroundTaskWorker, path: Path, url: str) -> list[Row]:
    """What a claim costs after many finished jobs that an open transaction keeps from being cleaned up."""
    task = drain.declare(task_worker, "async")
    task.enqueue()
    other = PostgresqlServer(make_url(url), prepares=False).open()
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    other.execute("SELECT count(*) FROM taskworker_job")
    drain_here(task_worker, "async", BEHIND_TRANSACTION)
    task.enqueue_many([()] * CLAIMS)
    with a_link(url) as link:
        seconds = [seconds_for(lambda: claim(link, 1)) for _ in range(CLAIMS)]
    other.close()
    note = f"after {BEHIND_TRANSACTION:,} jobs; the transaction is older than all of them"
    return [
        Row("claim beside a long transaction, median", median(seconds) * 1000, "ms", note),
        Row("claim beside a long transaction, p95", percentile(seconds, 0.95) * 1000, "ms"),
    ]


MEASURES: tuple[Measure, ...] = (
    pick_up,
    enqueue,
    drain_by_one("async"),
    drain_by_one("sync"),
    drain_by_four("async"),
    drain_by_four("sync"),
    claim_and_finish,
    beside_history,
    beside_a_long_transaction,
)


def main() -> list[Row]:
    """Take each measure on an empty schema."""
    rows: list[Row] = []
    server = PostgresServer(fsync=True)
    try:
        server.start()
        version = run_sql(server.url(), "SHOW server_version")[0][0].split()[0]
        with folder() as path:
            for measure in MEASURES:
                with a_schema(server.url()) as url, a_task_worker(path, url) as task_worker:
                    rows += measure(task_worker, path, url)
            rows.append(Row("one fsync, median", fsync_ms(path), "ms", f"PostgreSQL {version} on the same machine"))
    finally:
        server.close()
    return rows


if __name__ == "__main__":
    with a_task_worker(Path(sys.argv[1]), sys.argv[2]) as worker:
        for kind in NAMES:
            drain.declare(worker, kind)
        pickup.declare(worker, Path(sys.argv[1]) / "late")
        worker.start()
        print("ready", flush=True)
        sys.stdin.read()
