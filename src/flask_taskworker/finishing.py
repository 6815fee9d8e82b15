"""The finisher: has the store record what became of a worker's jobs, and tells those who want to know."""

from __future__ import annotations

import asyncio

from .bookkeeper import Bookkeeper
from .client import Client
from .crew import Crew
from .errors import StoreError
from .herald import Herald
from .jobs import Ending
from .loggers import get_logger
from .outlook import Outlook
from .store.work import WorkerStore

log = get_logger("jobs")

FLUSH_DELAY = 0.002
"""Endings wait so long for company while other jobs run. Seconds."""
FLUSH_AT = 64


class Finisher:
    """One worker's. For its loop only."""

    def __init__(
        self, work: WorkerStore, crew: Crew, *, books: Bookkeeper, herald: Herald, outlook: Outlook, client: Client
    ) -> None:
        self._work = work
        self._crew = crew
        self._books = books
        self._herald = herald
        self._outlook = outlook
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._in_doubt = False

    async def flush(self, worker_id: str, *, at_once: bool = False) -> None:
        """Record what ended, in one statement; unless *at_once*, a few endings wait a moment for company.

        What the database does not take is kept for the next time. Raises StoreError.
        """
        if not self._crew.ended or not (at_once or self._is_time()):
            return
        ended = self._crew.take_ended()
        try:
            states = await self._work.finish(worker_id, ended)
            if self._in_doubt:
                # The database took them, and its answer was lost.
                states |= await self._work.recorded([e for e in ended if e.claim.id not in states])
        except BaseException:
            self._in_doubt = True
            self._crew.put_back(ended)
            raise
        self._in_doubt = False
        if any(e.outcome.delay is not None for e in ended):
            # One of them may be due before anything that is known.
            self._outlook.must_look = True
        if any(e.outcome.ending is Ending.RELEASED for e in ended):
            # Another worker may have a slot for them now.
            self._client.wake()
        self._books.note(ended, states)
        self._herald.ended(ended, states)

    def _is_time(self) -> bool:
        crew = self._crew
        return len(crew.ended) >= FLUSH_AT or not crew.busy or self._loop.time() - crew.ended_since >= FLUSH_DELAY

    async def flush_all(self, worker_id: str) -> bool:
        """Record every ending; False if the database does not take them. Then the jobs are rescued later."""
        try:
            await self.flush(worker_id, at_once=True)
        except StoreError as error:
            log.warning("worker %s could not record %s endings: %s", worker_id, len(self._crew.ended), error)
            return False
        return True

    async def hand_back(self, worker_id: str) -> bool:
        """Hand back the jobs of the threads that run, and deregister. The process must end right after this.

        False if the database does not take it. In one transaction: a worker without a row must hold no job.
        """
        self._crew.abandon()
        ended = self._crew.take_ended()
        try:
            await self._work.hand_back(worker_id, ended)
        except StoreError as error:
            log.warning("worker %s could not hand back its jobs, which are rescued later: %s", worker_id, error)
            return False
        return True
