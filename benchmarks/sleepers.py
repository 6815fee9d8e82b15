"""Jobs that wait: ten sync sleepers at once, and an async job beside a blocked sync one."""

from __future__ import annotations

import time

from .common import Row, an_app, folder, median, wait_until


def main() -> list[Row]:
    """Measure with the default number of threads."""
    with folder() as path, an_app(path, TASKER_THREADS=16) as task_worker:
        started: list[float] = []

        @task_worker.task(name="sleeper")
        def sleeper(seconds: float) -> None:
            time.sleep(seconds)

        @task_worker.task(name="note")
        async def note() -> None:
            started.append(time.perf_counter())

        task_worker.start()
        note.enqueue().result(5)
        runs = []
        for _ in range(5):
            begin = time.perf_counter()
            jobs = sleeper.enqueue_many([(0.2,)] * 10)
            for job in jobs:
                job.result(5)
            runs.append(time.perf_counter() - begin)
        late = []
        sleeper.enqueue(3.0)
        for number in range(50):
            started.clear()
            begin = time.perf_counter()
            note.enqueue()
            wait_until(lambda: bool(started))
            late.append((started[0] - begin) * 1000)
            time.sleep(0.01 if number else 0.05)
        return [
            Row("ten sync sleepers of 0.2 s", median(runs), "s"),
            Row("async job beside a blocked sync one: enqueue to start", median(late), "ms", "the enqueue included"),
        ]
