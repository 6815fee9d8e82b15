"""Row 35: a million jobs wait."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from flask_taskworker import Every
from flask_taskworker.store.work import WorkerStore
from tests.system.chaos.row import Result, Run, row
from tests.system.chaos.stage import Stage, a_stage, settle
from tests.system.chaos.verifier import percentile

FILL = """
INSERT INTO taskworker_job (uid, task, queue, kind, state, run_at, args, created_at)
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
SELECT 'b' || i, 'shop.hold', 'default', 'async', 'ready', 0, '[["x"],{}]', 1 FROM n
"""
MB = 1_000_000
PATIENCE = 30.0
"""Seconds that a busy machine has to end the first job."""


@row("35", "backlog", "a million jobs wait, the first with 64 KB of arguments each, and 10,000 schedules are due")
def backlog(run: Run) -> Result:
    """A worker starts, claims as fast as ever, and holds no more memory than it needs."""
    number, large, schedules, seconds = run.choose((1_000_000, 2_000, 10_000, 60.0), (20_000, 100, 100, 2.0))
    with a_stage(run, TASKER_CONCURRENCY=100, TASKER_THREADS=8) as stage:
        stage.shop.store.driver.prepare()
        stage.accept(stage.enqueue("hold", [("x" * 64_000,)] * large))
        _fill(stage, number)
        _declare_schedules(stage, schedules)
        claims = asyncio.run(_time_claims(stage, run.choose(300, 50)))
        began = time.monotonic()
        stage.start()
        settle(stage, 1)
        booted = time.monotonic() - began
        resident, ended = _watch(stage, seconds)
        assert stage.all_live()
    result = Result(
        done=f"{number:,} ready jobs, {large:,} of 64 KB, {schedules:,} due schedules; {seconds:g} s of work"
    )
    p95 = percentile(claims, 0.95)
    result.figures |= {
        "claim p95": f"{p95 * 1000:.1f} ms",
        "memory": f"{resident / MB:.0f} MB",
        "worker registered after": f"{booted:.1f} s",
        "ended meanwhile": f"{ended:,}",
    }
    result.expect("claim p95 < 50 ms", p95 < run.within(0.05))
    result.expect("memory < 300 MB", resident < 300 * MB)
    result.expect("it works", ended > seconds * run.choose(100, 1))
    return result


def _fill(stage: Stage, number: int) -> None:
    driver = stage.shop.store.driver
    for statement in (FILL, "ANALYZE"):
        driver.write(statement, {"count": number} if ":count" in statement else {})


def _declare_schedules(stage: Stage, number: int) -> None:
    """Each was due an hour ago: at the first look all fire."""
    with stage.shop.app.app_context():
        for n in range(number):
            stage.shop.pulse.schedule(Every(hours=2), name=f"s{n}", args=(0.001,))
    now = stage.shop.store.clock()
    sql = "UPDATE taskworker_schedule SET next_at = :moment"
    stage.shop.store.driver.write(sql, {"moment": now - now % 7_200_000})


async def _time_claims(stage: Stage, number: int) -> list[float]:
    """The seconds of that number of claims of ten jobs, as a worker makes them; then they are given back."""
    store = stage.shop.store
    work: Any = await WorkerStore.open(store)
    add = (
        "INSERT INTO taskworker_worker (id, host, pid, started_at, server_started_at, beat, beat_at, state, info) "
        "VALUES ('probe', 'h', 1, 1, NULL, 0, 1, 'alive', '{}')"
    )
    store.driver.write(add, {})
    took = []
    try:
        for _ in range(number):
            began = time.monotonic()
            claims = await work.claim("probe", "default", "async", 10)
            took.append(time.monotonic() - began)
            assert claims
    finally:
        await work.close()
    give_back = "UPDATE taskworker_job SET state = 'ready', worker_id = NULL WHERE worker_id = 'probe'"
    store.driver.write(give_back, {})
    store.driver.write("DELETE FROM taskworker_worker WHERE id = 'probe'", {})
    return took


def _watch(stage: Stage, seconds: float) -> tuple[int, int]:
    """The most memory that the worker held, in bytes, and how many jobs ended."""
    (child,) = stage.children
    most = 0
    over = time.monotonic() + seconds
    while time.monotonic() < over or (not stage.states()["succeeded"] and time.monotonic() < over + PATIENCE):
        with open(f"/proc/{child.pid}/statm", encoding="ascii") as file:
            most = max(most, int(file.read().split()[1]) * 4096)
        time.sleep(0.1)
    return most, stage.states()["succeeded"]
