"""Which part of the work a worker takes on, and when it stops by itself."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.loggers import Logger, get_logger

log: Logger = get_logger("worker")

WEIGHING_INTERVAL = 1.0
"""Seconds between two looks at the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRole:
    """Which part of the work a worker takes on, and under which name."""

    exclude: frozenset[str] = frozenset()
    """The queues whose jobs it leaves to others."""
    schedules: bool = True
    """Whether it fires schedules."""
    name: str = ""
    """The name that people see."""

    def words(self, queues: Sequence[str] | None) -> str:
        """What it works on, of these queues or of all."""
        excluded = f", but not {', '.join(sorted(self.exclude))}" if self.exclude else ""
        return ", ".join(queues or ("all queues",)) + excluded


EVERY_ROLE = WorkerRole()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When a worker stops by itself."""

    drain: bool = False
    """As soon as no job is ready; jobs that are due later stay."""
    max_jobs: int | None = None
    """Stop after this many jobs."""
    max_idle: float | None = None
    """Stop after this many seconds without a job."""
    max_memory_mb: float | None = None
    """Stop once the process holds more MB of memory, but not before its first job. Linux only."""


NO_BOUNDS = Bounds()


class BoundsWatch:
    """What one worker has used of its limits. For its loop only; moments are seconds on the loop's clock."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.is_limited: bool = bounds != NO_BOUNDS
        """Whether there is a limit at all."""
        self.idle_until: float = math.inf
        """When the worker will have been idle for as long as it may."""
        self._next_weighing = 0.0

    def is_over(self, now: float, *, worker_id: str, jobs_done: int, idle: bool) -> bool:
        """Whether the worker should stop. *idle*: there is nothing that it could do."""
        bounds = self._bounds
        if bounds.max_jobs is not None and jobs_done >= bounds.max_jobs:
            return True
        # Not before the first job has ended: under a supervisor that would be an endless restart.
        if bounds.max_memory_mb is not None and jobs_done and now >= self._next_weighing:
            self._next_weighing = now + WEIGHING_INTERVAL
            resident = resident_mb()
            if resident is not None and resident > bounds.max_memory_mb:
                words = "worker %s stops: it holds %.0f MB of memory, %.0f are allowed"
                log.warning(words, worker_id, resident, bounds.max_memory_mb)
                return True
        if not idle:
            self.idle_until = math.inf if bounds.max_idle is None else now + bounds.max_idle
            return False
        return bounds.drain or now >= self.idle_until


def resident_mb() -> float | None:
    """This process's resident memory in MB, where the system tells."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:  # no Linux, or no descriptor left
        return None
