"""The upkeep: what a worker's loop writes beside the jobs themselves, each when its time has come.

Progress and log lines twice a second, figures every two seconds; once a minute it deletes what is old, keeps the
schedules in order and compares what the worker holds with what the store believes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from ..core.rows import Claim
from ..store.work import PRUNE_BATCH, WorkerStore
from .running import RunningJobs
from .scheduling import Scheduler
from .statistics import INTERVAL as FIGURES_INTERVAL
from .statistics import Statistics

REPORT_INTERVAL = 0.5
CLEANING_INTERVAL = 60.0
"""Seconds."""


class Upkeep:
    """One worker's. For its loop only; *now* is in seconds on the loop's clock."""

    def __init__(self, work: WorkerStore, running_jobs: RunningJobs, books: Statistics, scheduler: Scheduler) -> None:
        self._work = work
        self._running_jobs = running_jobs
        self._books = books
        self._scheduler = scheduler
        self._next_report = 0.0
        self.next_cleaning = 0.0
        """When to delete what is old."""
        self.must_reconcile = False
        """Whether claims may have been committed without their rows reaching the worker."""

    async def keep_up(self, worker_id: str, now: float) -> None:
        """Write what is to be written by now. Raises StoreError."""
        if self._running_jobs.reporting and now >= self._next_report:
            self._next_report = now + REPORT_INTERVAL
            self._books.logged(self._running_jobs.take_lines())
            if reports := self._running_jobs.take_reports():
                await self._work.report_progress(reports)
        await self._books.keep_up(self._work, now)
        if now >= self.next_cleaning:
            # A full batch means that there is more: go on soon, but let jobs pass between.
            full = await self._work.prune() == PRUNE_BATCH
            await self._scheduler.keep_up(self._work)
            # A server may have committed a claim long after the connection was lost.
            await self.reconcile(worker_id)
            self.next_cleaning = now + (REPORT_INTERVAL if full else CLEANING_INTERVAL * random.uniform(0.8, 1.2))

    def delays(self) -> Iterator[float]:
        """How long what is pending may wait. Seconds."""
        if self._running_jobs.reporting:
            yield REPORT_INTERVAL
        if self._books.pending:
            yield FIGURES_INTERVAL

    async def reconcile(self, worker_id: str) -> None:
        """After a failure of the database a claim may have been committed without its rows reaching us."""
        held = await self._work.held(worker_id)
        self._running_jobs.release(_stub(job_id, claim) for job_id, claim in held - self._running_jobs.claims())
        self.must_reconcile = False


def _stub(job_id: int, claim: int) -> Claim:
    """Enough of a claim to hand it back."""
    return Claim(job_id, "", "", "", "async", 0, "[[],{}]", claim, 0, 0, 1, None, 0, 0, None, None)
