"""Several processes run many jobs, each exactly once.

``python -m tests.system.chaos.drain 100000`` runs that many on PostgreSQL with four processes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

from tests.system.chaos.fleet import a_fleet, a_place


class Found(NamedTuple):
    """What came of it."""

    jobs: int
    run: int
    doubled: int
    by_process: list[int]
    enqueue_s: float
    drain_s: float
    states: dict[str, int]


def drain(url: str, folder: Path, *, jobs: int, processes: int) -> Found:
    """Enqueue, then start the processes, and wait for the end."""
    with a_fleet(url, folder) as fleet:
        began = time.monotonic()
        fleet.enqueue("note", [(x,) for x in range(jobs)])
        enqueued = time.monotonic()
        fleet.start(processes)
        states = fleet.await_end(600)
        ended = time.monotonic()
        fleet.stop()
        lines = fleet.evidence("note")
    run = {line.x for line in lines}
    pids = [line.pid for line in lines]
    by_process = sorted(pids.count(pid) for pid in set(pids))
    return Found(jobs, len(run), len(lines) - len(run), by_process, enqueued - began, ended - enqueued, dict(states))


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="?", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="postgresql")
    arguments = parser.parse_args()
    with a_place(arguments.database) as (url, folder):
        found = drain(url, folder, jobs=arguments.jobs, processes=arguments.processes)
        print(f"{arguments.database}: {found._asdict()}")
        assert found.run == found.jobs == found.states["succeeded"], found
        assert not found.doubled, found


if __name__ == "__main__":
    main()
