"""From ``enqueue`` to the first line of the task, with an idle worker: in one process, and across two."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from flask_taskworker import BackgroundTaskWorker

from .common import Row, an_app, child, folder, fsync_ms, median, percentile, wait_until

TIMES = 300


def declare(task_worker: BackgroundTaskWorker, found: Path) -> None:
    """Tasks that note how late they were."""

    @task_worker.task(name="late")
    def late(enqueued_at: float) -> None:
        seconds = time.time() - enqueued_at
        with found.open("a") as file:
            file.write(f"{seconds}\n")

    @task_worker.task(name="late_async")
    async def late_async(enqueued_at: float) -> None:
        seconds = time.time() - enqueued_at
        with found.open("a") as file:
            file.write(f"{seconds}\n")


def measure(task_worker: BackgroundTaskWorker, found: Path, name: str) -> tuple[list[float], list[float]]:
    """Enqueue one job after the other, each when the last has ended.

    Milliseconds from the call, and from its return.
    """
    task = task_worker._registry.find(name)
    found.write_text("")
    enqueueing = []
    for number in range(1, TIMES + 1):
        called = time.time()
        task.enqueue(called)
        enqueueing.append((time.time() - called) * 1000)
        wait_until(lambda number=number: found.read_text().count("\n") >= number)
        # An idle worker is meant: let it go to sleep.
        time.sleep(0.005)
    late = [float(line) * 1000 for line in found.read_text().split()]
    return late, [whole - own for whole, own in zip(late, enqueueing, strict=True)]


def rows_of(what: str, measured: tuple[list[float], list[float]]) -> list[Row]:
    """Median and p99."""
    from_call, from_return = measured
    return [
        Row(f"{what}, median", median(from_call), "ms", "from the call of enqueue"),
        Row(f"{what}, median", median(from_return), "ms", "from its return: the job is accepted"),
        Row(f"{what}, p99", percentile(from_call, 0.99), "ms", "from the call of enqueue"),
    ]


def main() -> list[Row]:
    """Measure both ways, sync and async tasks."""
    rows = []
    with folder() as path, an_app(path) as task_worker:
        declare(task_worker, path / "late")
        with child("pickup", str(path)):
            for name in ("late", "late_async"):
                rows += rows_of(f"{name}: two processes", measure(task_worker, path / "late", name))
        task_worker.start()
        for name in ("late", "late_async"):
            rows += rows_of(f"{name}: one process", measure(task_worker, path / "late", name))
        rows.append(Row("one fsync, median", fsync_ms(path), "ms", "an enqueue waits for one"))
    return rows


if __name__ == "__main__":
    with an_app(Path(sys.argv[1])) as worker:
        declare(worker, Path(sys.argv[1]) / "late")
        worker.start()
        print("ready", flush=True)
        sys.stdin.read()
