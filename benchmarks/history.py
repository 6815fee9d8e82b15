"""A million finished and a million future jobs in the store: do they slow a drain, or an idle worker?"""

from __future__ import annotations

import resource
import time
from pathlib import Path

from flask_taskworker import BackgroundTaskWorker

from .common import Row, an_app, drained, folder, median, wait_until
from .drain import declare

MILLION = 1_000_000
JOBS = 20_000
ROUNDS = 3
IDLE_SECONDS = 10.0

_FILL = """
INSERT INTO taskworker_job (uid, task, queue, kind, state, run_at, args, created_at, finished_at, expires_at)
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
SELECT :state || i, 'nothing_async', 'default', 'async', :state, :run_at, '[[],{}]', 1, :finished_at, :expires_at FROM n
"""


def fill(task_worker: BackgroundTaskWorker) -> None:
    """Store a million jobs of each kind."""
    later = time.time_ns() // 1_000_000 + 86_400_000
    store = task_worker._state().store
    store.driver.prepare()
    finished = {"state": "succeeded", "run_at": 0, "finished_at": 1, "expires_at": later}
    future = {"state": "scheduled", "run_at": later, "finished_at": None, "expires_at": None}
    for values in (finished, future):
        store.driver.write(_FILL, {**values, "count": MILLION})
    store.driver.upkeep()


def rate(task_worker: BackgroundTaskWorker) -> float:
    """Jobs a second for one drain."""
    task = task_worker._registry.get("nothing_async") or declare(task_worker, "async")
    task.enqueue_many([()] * JOBS)
    begin = time.perf_counter()
    task_worker.start()
    wait_until(lambda: drained(task_worker))
    seconds = time.perf_counter() - begin
    task_worker.stop()
    return JOBS / seconds


def idle(task_worker: BackgroundTaskWorker) -> float:
    """CPU seconds a minute of an idle worker, the process's other threads included."""
    task_worker.start()
    time.sleep(1.0)
    begin = cpu()
    time.sleep(IDLE_SECONDS)
    used = cpu() - begin
    task_worker.stop()
    return used * 60 / IDLE_SECONDS


def cpu() -> float:
    """CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> list[Row]:
    """Measure the full and the empty store in turns."""
    rates: dict[str, list[float]] = {"full": [], "empty": []}
    with folder() as full_path, folder() as empty_path:
        with an_app(full_path) as full:
            fill(full)
        for _ in range(ROUNDS):
            for name, path in (("full", full_path), ("empty", empty_path)):
                rates[name].append(measured(path, rate))
        idles = {name: measured(path, idle) for name, path in (("full", full_path), ("empty", empty_path))}
    share = median(rates["full"]) / median(rates["empty"])
    return [
        Row("drain, empty store", median(rates["empty"]), "jobs/s"),
        Row("drain, a million finished and a million future jobs", median(rates["full"]), "jobs/s", f"{share:.0%}"),
        Row("idle, empty store", idles["empty"], "CPU s/min"),
        Row("idle, a million finished and a million future jobs", idles["full"], "CPU s/min"),
    ]


def measured(path: Path, measure) -> float:  # type: ignore[no-untyped-def]
    """One measurement on a store."""
    with an_app(path) as task_worker:
        result: float = measure(task_worker)
        return result
