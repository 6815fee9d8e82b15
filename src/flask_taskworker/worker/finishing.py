"""Writing down what becomes of a worker's jobs, and telling those who want to know.

From time to time the same writer stores what else there is: progress and log lines twice a second, figures every two
seconds. It deletes what is old as fast as jobs end. Once a minute it keeps the schedules in order and compares what the
worker holds with what the store believes.
"""

from __future__ import annotations

import asyncio
import math
import random

from ..client.client import Client
from ..core.loggers import Logger, get_logger
from ..core.rows import LIMITED, Claim, OutcomeKind
from ..errors import StoreError
from ..store.admission import Admitted, Wish
from ..store.flows import Effects
from ..store.work import PRUNE_BATCH, WorkerStore
from .queue_view import QueueView
from .running import RunningJobs
from .scheduling import Scheduler
from .signalling import WorkerSignals
from .statistics import Statistics
from .timing import Timing

log: Logger = get_logger("jobs")

FLUSH_DELAY = 0.002
"""Seconds for which endings wait for company while other jobs run."""
FLUSH_AT = 64
LOCKED_INTERVAL = 0.5
"""An outcome whose row another session has locked is tried again after this many seconds."""
REPORT_INTERVAL = 0.5
"""Seconds."""
PRUNE_SPELL = 0.05
"""It goes on for this long at once. Seconds."""
PRUNE_PAUSE = 0.02
"""While there are more of them, others get the write lock for this time. Seconds."""
PRUNE_SHARE = 0.1
"""The part of the time that goes into it where a turn takes longer than that."""


class OutcomeWriter:
    """One worker's. For its loop only."""

    def __init__(
        self,
        work: WorkerStore,
        jobs: RunningJobs,
        *,
        client: Client,
        signals: WorkerSignals,
        statistics: Statistics,
        scheduler: Scheduler,
        view: QueueView,
        timing: Timing,
        prunes: bool,
    ) -> None:
        """*prunes*: whether what is old is deleted."""
        self._timing = timing
        self._work = work
        self._jobs = jobs
        self._client = client
        self._signals = signals
        self._statistics = statistics
        self._scheduler = scheduler
        self._view = view
        self._loop = asyncio.get_running_loop()
        self._next_cleaning = 0.0 if prunes else math.inf
        self._pruned_at = -math.inf if prunes else math.inf
        self._jitter = 1.0
        self._has_more_to_prune = False
        self._ended_before = 0
        self._next_report = self._next_locked = 0.0
        self._in_doubt = False
        self.healed: int = 0
        """How many places in line, and endings, were not followed: none, without a bug."""
        self.must_go_on: bool = False
        """Whether jobs are to be cancelled because of others."""
        self.must_reconcile: bool = False
        """Whether claims may have been committed without their rows reaching the worker."""

    async def flush(self, worker_id: str, wish: Wish | None = None, *, at_once: bool = False) -> list[Admitted]:
        """Record what ended, in one statement; unless *at_once*, a few endings wait a moment for company.

        Returns what got the room of limited jobs; of these is claimed what is wished for. What the database does not
        take is kept for the next time. Raises StoreError.
        """
        jobs, now = self._jobs, self._loop.time()
        if at_once or now >= self._next_locked:
            jobs.ended[:0], jobs.locked = jobs.locked, []
        is_time = len(jobs.ended) >= FLUSH_AT or not jobs.busy or now - jobs.ended_since >= FLUSH_DELAY
        if not jobs.ended or not (at_once or is_time):
            return []
        ended = jobs.take_ended()
        try:
            states, ended, later, effects, admitted = await self._work.finish(worker_id, ended, wish)
            if self._in_doubt:
                # The database took them, and its answer was lost.
                states |= await self._work.recorded([e for e in ended if e.claim.id not in states])
        except BaseException:
            self._in_doubt = True
            jobs.ended[:0] = ended
            raise
        self._in_doubt = False
        if later:
            jobs.locked += later
            self._next_locked = self._loop.time() + LOCKED_INTERVAL
        # Most say nothing more: they cost one look.
        telling = [e for e in ended if e.claim.marks or e.outcome.ending is not OutcomeKind.SUCCEEDED]
        if not admitted and any(e.claim.marks & LIMITED for e in telling):
            # There is room for others now.
            self._view.must_admit = True
        if ready := self._view.limited_queues(e.claim.queue for e in ended):
            self._client.wake(ready)
        if any(e.outcome.delay is not None for e in telling):
            # One of them may be due before anything that is known.
            self._view.must_look = True
        if any(e.outcome.ending is OutcomeKind.RELEASED for e in telling):
            # Another worker may have a slot for them now.
            self._client.wake()
        self._statistics.note(ended, states)
        self._signals.ended(ended, states)
        self._follow(effects)
        return admitted

    def _follow(self, effects: Effects) -> None:
        """What has changed besides: jobs that waited for others, and callbacks of batches."""
        if effects.ready:
            self._client.wake(effects.ready)
        self._view.must_admit |= effects.admits
        self._signals.cancelled(effects.cancelled)
        self.must_go_on |= effects.is_more

    async def flush_all(self, worker_id: str) -> bool:
        """Record every ending; False if the database does not take them. Then the jobs are rescued later."""
        try:
            for admitted in await self.flush(worker_id, at_once=True):
                self._client.wake(admitted.ready)
        except StoreError as error:
            log.warning("worker %s could not record %s endings: %s", worker_id, len(self._jobs.ended), error)
            return False
        return True

    async def hand_back(self, worker_id: str) -> bool:
        """Hand back the jobs of the threads that run, and deregister. The process must end right after this.

        False if the database does not take it. In one transaction: a worker without a row must hold no job.
        """
        self._jobs.leave_threads(at_most_once=False)
        try:
            await self._work.hand_back(worker_id, self._jobs.take_ended())
        except StoreError as error:
            log.warning("worker %s could not hand back its jobs, which are rescued later: %s", worker_id, error)
            return False
        return True

    # -- from time to time ------------------------------------------------------------------------------------------

    async def keep_up(self, worker_id: str) -> None:
        """Write what is to be written by now. Raises StoreError."""
        now = self._loop.time()
        if self.must_go_on:
            self.must_go_on = False
            self._follow(await self._work.go_on())
        if self._jobs.reporting and now >= self._next_report:
            self._next_report = now + REPORT_INTERVAL
            self._statistics.logged(self._jobs.take_lines())
            if reports := self._jobs.take_reports():
                await self._work.report_progress(reports)
        await self._statistics.keep_up(self._work, now)
        await self._prune(now)
        if now >= self._next_cleaning:
            await self._scheduler.keep_up(self._work)
            if self._view.limits:
                self.healed += await self._work.tidy_limits(self._view.declared_limits)
            wrong, effects = await self._work.tidy_flows()
            self.healed += wrong
            self._follow(effects)
            if self._client.on_minute is not None:
                self._client.on_minute()
            # A server may have committed a claim long after the connection was lost.
            await self.reconcile(worker_id)
            self._next_cleaning = now + self._timing.cleaning_interval * random.uniform(0.8, 1.2)

    async def _prune(self, now: float) -> None:
        """If it is time, delete what is old: twice as much as has ended meanwhile, in pieces that lock briefly.

        Claims and endings wait for it, so it goes on for a moment only.
        """
        ended = self._jobs.jobs_done - self._ended_before
        pause = self._timing.prune_interval if ended else self._timing.cleaning_interval
        if now - self._pruned_at < (PRUNE_PAUSE if self._has_more_to_prune else pause * self._jitter):
            return
        since = now - self._pruned_at if self._has_more_to_prune else 0.0
        self._pruned_at, self._ended_before, self._jitter = now, self._jobs.jobs_done, random.uniform(0.8, 1.2)
        for _ in range(prune_batches(ended, since)):
            self._has_more_to_prune = await self._work.prune() == PRUNE_BATCH
            if not self._has_more_to_prune or self._loop.time() - now > max(PRUNE_SPELL, since * PRUNE_SHARE):
                break

    def delays(self) -> list[float]:
        """How long what is pending may wait. Seconds."""
        pending = [
            (REPORT_INTERVAL, self._jobs.reporting),
            (self._timing.figures, self._statistics.pending),
            (PRUNE_PAUSE, self._has_more_to_prune),
            (
                self._timing.prune_interval * self._jitter,
                self._jobs.jobs_done != self._ended_before and self._pruned_at < math.inf,
            ),
        ]
        return [delay for delay, is_pending in pending if is_pending]

    async def reconcile(self, worker_id: str) -> None:
        """After a failure of the database a claim may have been committed without its rows reaching us."""
        held = await self._work.held(worker_id)
        in_hand = self._jobs.claims()
        # Enough of a claim to hand it back.
        unknown = [
            Claim(job_id, "", "", "", "async", 0, "[[],{}]", claim, 0, 0, 1, None, 0, 0, None, None, marks=marks)
            for (job_id, claim), marks in held.items()
            if (job_id, claim) not in in_hand
        ]
        self._jobs.release(unknown)
        self.must_reconcile = False


def prune_batches(ended: int, since: float) -> int:
    """The most batches to delete now: twice what has *ended*, and one for each pause that a slow turn has left out.

    *since*: seconds since the last one, if there was more to delete.
    """
    return 1 + 2 * ended // PRUNE_BATCH + int(since / PRUNE_PAUSE)
