"""Counts what happens to jobs, by listening to the worker's signals."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from flask import Flask

from flask_taskworker import Job, Task, signals

EVENTS = {
    "enqueued": signals.job_enqueued,
    "fired": signals.schedule_fired,
    "started": signals.job_started,
    "succeeded": signals.job_succeeded,
    "retrying": signals.job_retrying,
    "failed": signals.job_failed,
    "cancelled": signals.job_cancelled,
    "rescued": signals.job_rescued,
}
FINAL = ("succeeded", "failed", "cancelled")


class Tally:
    """How often each event happened to the jobs of each task, in this process. Safe from any thread."""

    def __init__(self, app: Flask) -> None:
        self.begun: list[int] = []
        """The ids of the jobs that were begun, in order; a job that is tried again comes again."""
        self.endings: Counter[int] = Counter()
        """How often each job has ended, by its id: once."""
        self.last_end = 0.0
        """When the latest job ended."""
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._lock = threading.Lock()
        for event, signal in EVENTS.items():
            # weak=False: nothing but the signal keeps these receivers alive.
            signal.connect(self._receiver(event), app, weak=False)

    def _receiver(self, event: str) -> Callable[..., None]:
        def count(app: Flask, *, job: Job[Any], **_: Any) -> None:
            with self._lock:
                self._counts[job.task][event] += 1
                if event == "started":
                    self.begun.append(job.id)
                elif event in FINAL:
                    self.endings[job.id] += 1
                    self.last_end = time.perf_counter()

        return count

    def of(self, task: Task[..., Any, Any], event: str) -> int:
        """How often *event* happened to jobs of *task*."""
        with self._lock:
            return self._counts[task.name][event]

    def ended(self, task: Task[..., Any, Any]) -> int:
        """How many jobs of *task* have ended, whichever way."""
        with self._lock:
            return sum(self._counts[task.name][event] for event in FINAL)

    def by_task(self) -> dict[str, Counter[str]]:
        """A copy of all counts, by the task's short name, with the jobs that wait and run now."""
        with self._lock:
            counts = {name.rpartition(".")[2]: Counter(events) for name, events in self._counts.items()}
        for events in counts.values():
            ended = sum(events[event] for event in FINAL)
            events["running"] = max(0, events["started"] - events["retrying"] - ended)
            events["waiting"] = max(0, events["enqueued"] + events["fired"] - events["running"] - ended)
        return counts

    def total(self) -> Counter[str]:
        """All tasks together."""
        total: Counter[str] = Counter()
        for events in self.by_task().values():
            total.update(events)
        return total
