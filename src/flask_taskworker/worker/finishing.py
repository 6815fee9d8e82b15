"""The finisher: has the store record what became of a worker's jobs, and tells those who want to know."""

from __future__ import annotations

import asyncio

from ..client.client import Client
from ..core.loggers import get_logger
from ..core.rows import Ending
from ..errors import StoreError
from ..store.work import WorkerStore
from .queue_view import QueueView
from .running import RunningJobs
from .signalling import WorkerSignals
from .statistics import Statistics

log = get_logger("jobs")

FLUSH_DELAY = 0.002
"""Endings wait so long for company while other jobs run. Seconds."""
FLUSH_AT = 64
LOCKED_INTERVAL = 0.5
"""An outcome whose row another session has locked is tried again after this many seconds."""


class OutcomeWriter:
    """One worker's. For its loop only."""

    def __init__(
        self,
        work: WorkerStore,
        running_jobs: RunningJobs,
        *,
        books: Statistics,
        worker_signals: WorkerSignals,
        queue_view: QueueView,
        client: Client,
    ) -> None:
        self._work = work
        self._running_jobs = running_jobs
        self._books = books
        self._signals = worker_signals
        self._queue_view = queue_view
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._in_doubt = False
        self._look_at_locked = 0.0

    async def flush(self, worker_id: str, *, at_once: bool = False) -> None:
        """Record what ended, in one statement; unless *at_once*, a few endings wait a moment for company.

        What the database does not take is kept for the next time. Raises StoreError.
        """
        if at_once or self._loop.time() >= self._look_at_locked:
            self._running_jobs.retry_locked()
        if not self._running_jobs.ended or not (at_once or self._is_time()):
            return
        ended = self._running_jobs.take_ended()
        try:
            states, ended, later = await self._work.finish(worker_id, ended)
            if self._in_doubt:
                # The database took them, and its answer was lost.
                states |= await self._work.recorded([e for e in ended if e.claim.id not in states])
        except BaseException:
            self._in_doubt = True
            self._running_jobs.put_back(ended)
            raise
        self._in_doubt = False
        if later:
            self._running_jobs.locked += later
            self._look_at_locked = self._loop.time() + LOCKED_INTERVAL
        if any(e.outcome.delay is not None for e in ended):
            # One of them may be due before anything that is known.
            self._queue_view.must_look = True
        if any(e.outcome.ending is Ending.RELEASED for e in ended):
            # Another worker may have a slot for them now.
            self._client.wake()
        self._books.note(ended, states)
        self._signals.ended(ended, states)

    def _is_time(self) -> bool:
        running_jobs = self._running_jobs
        return (
            len(running_jobs.ended) >= FLUSH_AT
            or not running_jobs.busy
            or self._loop.time() - running_jobs.ended_since >= FLUSH_DELAY
        )

    async def flush_all(self, worker_id: str) -> bool:
        """Record every ending; False if the database does not take them. Then the jobs are rescued later."""
        try:
            await self.flush(worker_id, at_once=True)
        except StoreError as error:
            log.warning("worker %s could not record %s endings: %s", worker_id, len(self._running_jobs.ended), error)
            return False
        return True

    async def hand_back(self, worker_id: str) -> bool:
        """Hand back the jobs of the threads that run, and deregister. The process must end right after this.

        False if the database does not take it. In one transaction: a worker without a row must hold no job.
        """
        self._running_jobs.abandon()
        ended = self._running_jobs.take_ended()
        try:
            await self._work.hand_back(worker_id, ended)
        except StoreError as error:
            log.warning("worker %s could not hand back its jobs, which are rescued later: %s", worker_id, error)
            return False
        return True
