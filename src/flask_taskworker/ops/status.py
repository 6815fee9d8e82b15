"""How it stands: what ``flask tasks status`` prints and ``task_worker.status()`` returns."""

from __future__ import annotations

from dataclasses import dataclass

from ..store.sql import Store
from .browse import Browser
from .overview import Overview
from .rows import StateCounts
from .views import QueueSummary, ScheduleView, WorkerView, queue_summary, schedule_view, worker_view

LAST_RUNS = 3
"""Jobs of each schedule that say how it stands: one that waits or runs, and the one that ended last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How one app's workers, queues, jobs and schedules stand. Times are epoch milliseconds."""

    at: int
    """When this was."""
    problems: list[str]
    """What is wrong, a sentence each; empty when everything is healthy."""
    workers: tuple[WorkerView, ...]
    queues: tuple[QueueSummary, ...]
    counts: StateCounts
    next_due_at: int | None
    """When the next scheduled job is due."""
    schedules: tuple[ScheduleView, ...]


def take_status(store: Store) -> Status:
    """Look now; creates nothing. Raises StoreError."""
    store.look()
    overview, browser = Overview.take(store), Browser(store)
    now = overview.now
    runs = browser.schedule_runs([schedule.name for schedule in overview.schedules], LAST_RUNS)
    return Status(
        at=now,
        problems=overview.problems(),
        workers=tuple(worker_view(worker, now) for worker in overview.workers),
        queues=tuple(queue_summary(queue, overview.workers, now) for queue in browser.queues()),
        counts=browser.state_counts(),
        next_due_at=overview.next_due,
        schedules=tuple(schedule_view(s, now, runs.get(s.name, ())) for s in overview.schedules),
    )
