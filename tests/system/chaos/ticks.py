"""Several processes declare a schedule that fires each second: each second makes one job.

``python -m tests.system.chaos.ticks 60`` watches four processes on PostgreSQL for that number of seconds.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.system.chaos.fleet import a_fleet, a_place


class Found(NamedTuple):
    """What came of it."""

    seconds: int
    ticks: int
    missed: int
    doubled: int
    latest_s: float
    by_process: list[int]


def watch(url: str, folder: Path, *, seconds: float, processes: int) -> Found:
    """Let them tick for that time."""
    with a_fleet(url, folder, ticks=True) as fleet:
        fleet.start(processes)
        fleet.await_workers(processes)
        time.sleep(seconds)
        fleet.stop()
        lines = fleet.evidence("tick")
    times = Counter(line.x for line in lines)
    spanned = max(times) - min(times) + 1
    late = max(line.at - line.x for line in lines)
    by_process = sorted(Counter(line.pid for line in lines).values())
    return Found(spanned, len(lines), spanned - len(times), len(lines) - len(times), round(late, 3), by_process)


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=60)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="postgresql")
    arguments = parser.parse_args()
    with a_place(arguments.database) as (url, folder):
        found = watch(url, folder, seconds=arguments.seconds, processes=arguments.processes)
        print(f"{arguments.database}: {found._asdict()}")
        assert (found.missed, found.doubled) == (0, 0), found


if __name__ == "__main__":
    main()
