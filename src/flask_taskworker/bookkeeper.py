"""The bookkeeper: stores what people want to see of the work that was done, apart from the work itself.

Its writes ride on the worker's loop, some seconds after the facts and without a wait for the disk. The death of a
process may cost the figures of those seconds, never a job.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from .errors import StoreError
from .rollups import Tally
from .store.work import Ended, WorkerStore

log = logging.getLogger(__name__)

INTERVAL = 2.0
"""Seconds between two writes of figures."""
_CLEANING_INTERVAL = 3600.0


class Bookkeeper:
    """One worker's. For its loop only."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._next = 0.0
        self._next_cleaning = 0.0

    @property
    def pending(self) -> bool:
        """Whether there is something to store."""
        return bool(self._tally)

    def note(self, ended: Iterable[Ended], states: Mapping[int, str]) -> None:
        """Count these tries, but for those whose claim was lost: *states* lacks them."""
        add = self._tally.add
        for e in ended:
            claim = e.claim
            if claim.id in states:
                due_at = max(claim.run_at, claim.created_at)
                ending = e.outcome.ending
                add(claim.task, claim.queue, ending, due_at=due_at, started_at=e.started_at, ended_at=e.ended_at)

    async def keep_up(self, work: WorkerStore, now: float) -> None:
        """Store what is pending when its time has come. *now*: seconds on the loop's clock. Raises StoreError."""
        if self._tally and now >= self._next:
            self._next = now + INTERVAL
            await self._write(work)
        if now >= self._next_cleaning:
            self._next_cleaning = now + _CLEANING_INTERVAL
            await work.remove_old_figures()

    async def close(self, work: WorkerStore) -> None:
        """Store what is pending, if the database takes it."""
        try:
            await self._write(work)
        except StoreError as error:
            log.warning("the figures of the last seconds are lost: %s", error)

    async def _write(self, work: WorkerStore) -> None:
        tally, self._tally = self._tally, Tally()
        if tally:
            await work.add_rollups(tally)
