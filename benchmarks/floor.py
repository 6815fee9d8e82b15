"""What a drain costs at least: a bare asyncio loop with the same SQL on the same driver, and no features.

An asyncio task and an app context a job; for sync jobs the asgiref hop. ``python -m benchmarks.floor KIND FOLDER N``
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiosqlite
from asgiref.sync import sync_to_async
from flask import Flask

from flask_taskworker.store.sqlite.driver import SqliteDriver
from flask_taskworker.store.statements import jobs as job_statements

from .common import an_app
from .drain import declare

BATCH = 100


def drain(path: Path, kind: str, jobs: int) -> float:
    """Jobs a second."""
    with an_app(path) as task_worker:
        task = declare(task_worker, kind)
        for begin in range(0, jobs, 10_000):
            task.enqueue_many([()] * min(10_000, jobs - begin))
        driver = task_worker._state().store.driver
        app = task_worker._state().find_app()
        assert isinstance(driver, SqliteDriver)
        assert app is not None
        return asyncio.run(_drain(app, driver, kind, jobs))


async def _drain(app: Flask, driver: SqliteDriver, kind: str, jobs: int) -> float:
    pool = ThreadPoolExecutor(6)

    def call() -> None:
        with app.app_context():
            pass

    async def job() -> None:
        with app.app_context():
            pass

    run = sync_to_async(call, thread_sensitive=False, executor=pool) if kind == "sync" else job
    connection = await aiosqlite.connect(driver.path, isolation_level=None)
    for pragma in ("synchronous = FULL", "wal_autocheckpoint = 0", "busy_timeout = 5000"):
        await connection.execute_fetchall(f"PRAGMA {pragma}")
    await connection.execute_fetchall(
        "INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) "
        "VALUES ('w', '', 0, 0, 0, 'alive', '')"
    )
    claim, finish = job_statements.claim(driver.dialect, kind), job_statements.finish_succeeded(driver.dialect)
    parameters = {"worker_id": "w", "queue": "default", "number": BATCH, "now": 1}
    begin = time.perf_counter()
    while claims := list(await connection.execute_fetchall(claim, parameters)):
        await asyncio.gather(*(asyncio.create_task(run()) for _ in claims))
        batch = json.dumps({row[0]: row[7] for row in claims})
        await connection.execute_fetchall(finish, {"batch": batch, "now": 1, "expires_at": 2})
    seconds = time.perf_counter() - begin
    await connection.close()
    return jobs / seconds


def inserts(path: Path, jobs: int, *, synchronous: str) -> float:
    """Single INSERTs of jobs on a bare sqlite3 connection; jobs a second."""
    with an_app(path) as task_worker:
        declare(task_worker, "async").enqueue()
        driver = task_worker._state().store.driver
        assert isinstance(driver, SqliteDriver)
        connection = sqlite3.connect(driver.path, isolation_level=None)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        rows = _rows(jobs)
        begin = time.perf_counter()
        for row in rows:
            connection.execute(_INSERT, row).fetchall()
        seconds = time.perf_counter() - begin
        connection.close()
        return jobs / seconds


def bulk(path: Path, jobs: int) -> float:
    """One ``executemany`` on a bare connection; jobs a second."""
    with an_app(path) as task_worker:
        declare(task_worker, "async").enqueue()
        driver = task_worker._state().store.driver
        assert isinstance(driver, SqliteDriver)
        connection = sqlite3.connect(driver.path, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        rows = _rows(jobs)
        begin = time.perf_counter()
        for start in range(0, jobs, 10_000):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, rows[start : start + 10_000])
            connection.execute("COMMIT")
        seconds = time.perf_counter() - begin
        connection.close()
        return jobs / seconds


_INSERT = (
    "INSERT INTO taskworker_job (uid, task, queue, kind, priority, run_at, args, max_attempts, created_at, state) "
    "VALUES (?, 'nothing_async', 'default', 'async', 0, 0, '[[],{}]', 1, ?, 'ready')"
)


def _rows(jobs: int) -> list[tuple[str, int]]:
    now = int(time.time() * 1000)
    return [(f"{now:012x}{os.urandom(10).hex()}", now) for _ in range(jobs)]


def main() -> None:
    """One floor, in this process."""
    what, folder, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    match what:
        case "async" | "sync":
            rate = drain(folder, what, number)
        case "bulk":
            rate = bulk(folder, number)
        case _:
            rate = inserts(folder, number, synchronous=what)
    print(json.dumps(rate), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
