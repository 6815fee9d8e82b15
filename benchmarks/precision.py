"""How late scheduled jobs start: never early, and by how many milliseconds late."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from .common import Row, an_app, folder, median, percentile, wait_until

JOBS = 200
APART = 0.025
"""Seconds: an idle worker is meant, that wakes for each."""


def main() -> list[Row]:
    """Jobs with a time each, and what the clock says when they start."""
    late: list[float] = []
    with folder() as path, an_app(path) as task_worker:

        @task_worker.task(name="note")
        async def note(at: float) -> None:
            late.append((time.time() - at) * 1000)

        begin = datetime.now(UTC) + timedelta(seconds=2)
        for number in range(JOBS):
            # Whole milliseconds are stored, rounded up.
            at = (begin + timedelta(seconds=APART * number)).replace(microsecond=number * 5 % 1000 * 1000)
            note.using(run_at=at).enqueue(at.timestamp())
        task_worker.start()
        wait_until(lambda: len(late) == JOBS)
    return [
        Row("scheduled jobs, earliest", min(late), "ms", "goal: not below 0"),
        Row("scheduled jobs, median lateness", median(late), "ms", "goal: 2"),
        Row("scheduled jobs, p99 lateness", percentile(late, 0.99), "ms", "goal: 10"),
    ]
