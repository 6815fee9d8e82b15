"""Kill workers at random instants inside atomic jobs that add a row each: there are as many rows as jobs, ever.

``python -m tests.system.chaos.atomic 200`` kills 200 times on each database.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select

from tests.system.chaos.fleet import Fleet, a_fleet, a_place
from tests.system.chaos.worker import effect, metadata

WORKERS = 3
THREADS = 2


class Found(NamedTuple):
    """What came of it."""

    jobs: int
    rows: int
    doubled: int
    kills: int
    kills_with_a_job_in_flight: int
    rescued: int
    states: dict[str, int]
    failures: list[tuple[str, int, int, str]]
    """Kind, crashes, solo crashes and error of failed jobs."""


def kill_many(url: str, folder: Path, *, kills: int, jobs: int, seconds: float) -> Found:
    """Run *jobs*, each for up to twice *seconds*, while *kills* workers are killed."""
    with a_fleet(url, folder, TASKER_THREADS=THREADS, TASKER_LOOP_INTERVAL=0.2) as fleet:
        metadata.create_all(fleet.shop.engine)
        fleet.enqueue("add", [(x, seconds) for x in range(jobs)])
        fleet.start(WORKERS)
        hits = sum(_kill_one(fleet, seconds) for _ in range(kills))
        states = fleet.await_end(300)
        fleet.stop()
        return _found(fleet, jobs, kills, hits, states)


def _kill_one(fleet: Fleet, seconds: float) -> int:
    """Kill the worker that was started first; whether it held a job."""
    child = fleet.children[0]
    while not (held := _held(fleet, child.pid)) and fleet.states()["ready"]:
        time.sleep(0.002)
    time.sleep(random.random() * 2 * seconds)
    fleet.kill(child)
    held = _held(fleet, child.pid)
    fleet.start()
    return bool(held)


def _held(fleet: Fleet, pid: int) -> int:
    """Jobs that run beside others: one that runs alone is failed when that kills its process three times."""
    sql = (
        "SELECT count(*) FROM taskworker_job WHERE state = 'running' AND solo = 0 AND worker_id IN "
        "(SELECT id FROM taskworker_worker WHERE pid = :pid AND state = 'alive')"
    )
    return int(fleet.shop.store.driver.read(sql, {"pid": pid})[0][0])


def _found(fleet: Fleet, jobs: int, kills: int, hits: int, states: Counter[str]) -> Found:
    with fleet.shop.engine.connect() as connection:
        rows = [x for (x,) in connection.execute(select(effect.c.x))]
    ((rescued,),) = fleet.shop.store.driver.read("SELECT count(*) FROM taskworker_job WHERE crashes > 0", {})
    why = "SELECT failure_kind, crashes, solo_crashes, error FROM taskworker_job WHERE state = 'failed'"
    failures = [
        (kind, crashes, solo, error[:300]) for kind, crashes, solo, error in fleet.shop.store.driver.read(why, {})
    ]
    return Found(jobs, len(set(rows)), len(rows) - len(set(rows)), kills, hits, rescued, dict(states), failures)


def main() -> None:
    """Do it on both databases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", nargs="?", type=int, default=200)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], action="append")
    arguments = parser.parse_args()
    for database in arguments.database or ["sqlite", "postgresql"]:
        with a_place(database) as (url, folder):
            began = time.monotonic()
            found = kill_many(url, folder, kills=arguments.kills, jobs=arguments.kills * 20, seconds=0.01)
            print(f"{database}: {found._asdict()} in {time.monotonic() - began:.0f} s", flush=True)
            assert found.rows == found.states["succeeded"], found
            assert not found.doubled, found


if __name__ == "__main__":
    main()
