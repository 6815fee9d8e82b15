"""What is healthy: when a worker is silent, a schedule late, a job waiting for too long."""

from __future__ import annotations

from typing import Any

from ..core.rows import read_stored
from ..store.sql import ScheduleRow, WorkerRow

SILENT_MS = 30_000
"""A worker that has not checked in for this long is frozen, cut off or dead."""

LONG_WAIT_MS = 300_000
"""A ready job that waits longer than this waits too long."""

LATE_MS = 60_000
"""What is due for longer than this, with no worker to take it, is late."""

LATE_PRUNING_MS = 3_600_000
"""A finished job that should have been deleted before this time is kept too long."""

BLOCKED_MS = 5_000
"""An event loop that has not turned for this long is blocked."""


def name_of(worker: WorkerRow) -> str:
    """The worker's machine and process."""
    return f"{worker.host}:{worker.pid}"


def takes(info: dict[str, Any], queue: str) -> bool:
    """Whether a worker that told this of itself works on that queue: on all without a list."""
    names = info.get("queues")
    return (names is None or queue in names) and queue not in (info.get("exclude") or ())


def info_of(worker: WorkerRow) -> dict[str, Any]:
    """What the worker said about itself with its last beat."""
    info: dict[str, Any] = read_stored(worker.info, f"state of worker {worker.id}")
    return info


def is_silent(worker: WorkerRow, now: int) -> bool:
    """Whether the worker should have checked in and has not."""
    return worker.state in ("alive", "draining") and now - worker.beat_at > SILENT_MS


def is_late(schedule: ScheduleRow, now: int) -> bool:
    """Whether a fire time passed more than a minute ago and no worker has fired it."""
    return not schedule.paused and schedule.next_at is not None and now - schedule.next_at > LATE_MS
