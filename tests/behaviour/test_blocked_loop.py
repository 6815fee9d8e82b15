"""A blocked event loop holds no lock: user code on it can be slow, and never stops another thread or process."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Every, Retry, TaskWorkerError
from flask_taskworker.core.clock import from_ms
from flask_taskworker.core.rows import Claim, Failure, NewJob, Outcome, OutcomeKind, Progress, ProgressReport
from flask_taskworker.core.tasks import DeclaredSchedule
from flask_taskworker.errors import NotAccepted
from flask_taskworker.store.drivers import make_driver
from flask_taskworker.store.sql import Store
from flask_taskworker.store.sqlite.holder import write_lock_holder
from flask_taskworker.store.work import DueSchedule, Ended, Firing, WorkerStore

Rows = Callable[..., list[tuple[Any, ...]]]
Act = Callable[[WorkerStore, list[Claim]], Awaitable[object]]

FAILED = Outcome(OutcomeKind.FAILED, failure=Failure(kind="exception", type="ValueError", message="no"))
LARGE = "[[" + '"x"' + f',"{"y" * 8_000_000}"' + "],{}]"
"""Arguments that fit into no socket's buffer: a server that cannot send them all does not commit."""


def new(number: int, **fields: Any) -> NewJob:
    values: dict[str, Any] = {
        "uid": f"uid-{number}", "task": "t", "queue": "q", "kind": "async", "priority": 0, "run_at": 0,
        "args": "[[],{}]", "max_attempts": 1, "timeout": None, "created_at": 1,
    }  # fmt: skip
    return NewJob(**values | fields)


def fail(work: WorkerStore, claims: list[Claim]) -> Awaitable[object]:
    return work.finish("w", [Ended(claim, FAILED, 1, 2) for claim in claims])


def fire(work: WorkerStore, _: list[Claim]) -> Awaitable[object]:
    schedule = DueSchedule("s", "t", "{}", "[[],{}]", 5)
    return work.fire([Firing(schedule=schedule, next_at=9, jobs=[new(99, schedule="s", fire_at=5)], overlap=True)])


def declare(work: WorkerStore, _: list[Claim]) -> Awaitable[object]:
    schedule = DeclaredSchedule(name="d", task="t", trigger=Every(seconds=1), args="[[],{}]")
    return work.declare_schedules([schedule], from_ms)


def hand_back(work: WorkerStore, claims: list[Claim]) -> Awaitable[object]:
    return work.hand_back("w", [Ended(claim, Outcome(OutcomeKind.RELEASED), 1, 2) for claim in claims])


ACTS: dict[str, Act] = {
    "record failures": fail,
    "hand jobs back": hand_back,
    "fire a schedule": fire,
    "declare schedules": declare,
    "prune": lambda work, _: work.prune(),
    "promote": lambda work, _: work.promote(),
    "admit limited jobs": lambda work, _: work.admit(),
    "look after batches": lambda work, _: work.tidy_flows(),
    "report progress": lambda work, claims: work.report_progress(
        [(claim, ProgressReport(Progress(1, 2))) for claim in claims]
    ),
    "claim large jobs": lambda work, _: work.claim("w", "large", "async", 5),
}


@pytest.mark.parametrize("act", ACTS)
def test_no_transaction_of_a_worker_waits_for_its_loop(
    app: Flask, idle_worker: object, store: Store, rows: Rows, act: str
) -> None:
    """The loop is blocked at every moment of the transaction, and by what would wait for its lock."""
    store.driver.prepare()
    rows("INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) VALUES (?,?,?,?,?,?,?)",
         "w", "h", 1, 1, 1, "alive", "{}")  # fmt: skip
    rows("INSERT INTO taskworker_schedule (name, task, trigger, args, next_at, source, seen_at) VALUES (?,?,?,?,?,?,?)",
         "s", "t", "{}", "[[],{}]", 5, "runtime", 1)  # fmt: skip

    async def body() -> float:
        work = await WorkerStore.open(store)
        ids = [record.id for record in store.add([new(i) for i in range(5)] + [new(50, args=LARGE, queue="large")])]
        claims = await work.claim("w", "q", "async", 9)
        doing = asyncio.ensure_future(ACTS[act](work, claims))
        longest = 0.0
        while not doing.done():
            # One step of the loop: as far as the next await, and there user code writes to the same rows, plainly.
            await asyncio.sleep(0)
            begun = time.monotonic()
            for job_id in ids:
                store.cancel(job_id)
            longest = max(longest, time.monotonic() - begun)
        await doing
        await work.close()
        return longest

    assert asyncio.run(body()) < 5
    store.driver.close()


def test_jobs_that_enqueue_plainly_on_the_loop_stop_no_other_process(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    app.config["TASKER_KEEP_SUCCEEDED"] = app.config["TASKER_KEEP_FAILED"] = 0
    task_worker = make_worker(app, start=False)
    refused: list[BaseException] = []
    stops: list[float] = []

    @task_worker.task(retry=Retry(max_attempts=2, base=0.01))
    async def flaky(x: int) -> None:
        if x % 3 == 0:
            raise ConnectionError("upstream")

    @task_worker.task
    async def parent(n: int) -> None:
        for i in range(n):
            await asyncio.sleep(random.random() * 0.004)
            try:
                job = flaky.enqueue(i)
                if i % 4 == 0:
                    job.cancel()
            except TaskWorkerError as error:
                refused.append(error)

    @task_worker.task(schedule=Every(seconds=0.1))
    async def tick() -> None:
        pass

    task_worker.start()
    config = app.extensions["taskworker"].config
    done = threading.Event()

    def neighbour() -> None:
        # As another process would: with a driver of its own.
        other = Store(make_driver(config), keep_succeeded=timedelta(), keep_failed=timedelta())
        numbers = itertools.count(1000)
        while not done.wait(0.01):
            begun = time.monotonic()
            other.add([new(next(numbers), queue="elsewhere")])
            stops.append(time.monotonic() - begun)
        other.driver.close()

    with app.app_context():
        thread = threading.Thread(target=neighbour)
        thread.start()
        parents = parent.enqueue_many([(40,) for _ in range(5)])
        for job in parents:
            job.result(timeout=30)
        done.set()
        thread.join()
    assert refused == []
    assert stops
    # On a busy machine one may be late; the fault took TASKER_LOCK_TIMEOUT, 30 seconds.
    assert max(stops) < 3


# -- who holds the lock ------------------------------------------------------------------------------------------------

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_holder(database: Path) -> Iterator[Callable[[], int]]:
    processes: list[subprocess.Popen[str]] = []

    def hold() -> int:
        command = [sys.executable, "-c", HOLD, str(database)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process.pid

    yield hold
    for process in processes:
        process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel lists locks in /proc")
def test_refusal_names_the_process_that_holds_the_lock(
    app: Flask, idle_worker: object, store: Store, database: Path, other_holder: Callable[[], int]
) -> None:
    store.driver.prepare()
    store.driver._lock_timeout = 0.1  # type: ignore[attr-defined]
    pid = other_holder()
    assert write_lock_holder(database) == pid
    with pytest.raises(NotAccepted, match=rf"Process {pid} \(.*python.* -c .*\) held the write lock"):
        store.add([new(1)])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel lists locks in /proc")
def test_refusal_says_so_when_this_process_holds_the_lock_itself(
    app: Flask, idle_worker: object, store: Store, database: Path
) -> None:
    store.driver.prepare()
    store.driver._lock_timeout = 0.1  # type: ignore[attr-defined]
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert write_lock_holder(database) == os.getpid()
        with pytest.raises(NotAccepted, match="This process holds the write lock itself"):
            store.add([new(1)])
