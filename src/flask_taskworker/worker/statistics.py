"""The bookkeeper: stores what people want to see of the work that was done, apart from the work itself.

Its writes ride on the worker's loop, some seconds after the facts and without a wait for the disk. The death of a
process may cost the figures of those seconds, never a job.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..core.loggers import Logger, get_logger
from ..core.rows import Claim, JobRecord, OutcomeKind
from ..errors import StoreError
from ..store.rollups import Tally
from ..store.work import Ended, WorkerStore
from .timing import Timing

log: Logger = get_logger("worker")

_CLEANING_INTERVAL = 3600.0


class Statistics:
    """One worker's. For its loop only."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._tally = Tally()
        self._lines: dict[tuple[int, int], tuple[Claim, str]] = {}
        self._next = 0.0
        self._next_figures = 0.0
        self._next_cleaning = 0.0

    @property
    def pending(self) -> bool:
        """Whether there is something to store."""
        return bool(self._tally or self._lines)

    def note(self, ended: Iterable[Ended], states: Mapping[int, str]) -> None:
        """Count these tries, but for those whose claim was lost: *states* lacks them."""
        add = self._tally.add
        for e in ended:
            claim = e.claim
            if (state := states.get(claim.id)) is not None:
                due_at = max(claim.run_at, claim.created_at)
                # What was to run again, and was asked to stop meanwhile, has been cancelled.
                ending = OutcomeKind.CANCELLED if state == "cancelled" else e.outcome.ending
                add(claim.task, claim.queue, ending, due_at=due_at, started_at=e.started_at, ended_at=e.ended_at)
                if e.lines is not None:
                    self._lines[claim.id, claim.claim] = (claim, e.lines)

    def logged(self, lines: Iterable[tuple[Claim, str]]) -> None:
        """Running jobs have logged these lines so far."""
        for claim, text in lines:
            self._lines[claim.id, claim.claim] = (claim, text)

    def rescued(self, records: Iterable[JobRecord]) -> None:
        """Count those that ended with their worker: the others run again."""
        for r in records:
            if r.finished_at is not None:
                due_at, started_at = max(r.run_at, r.created_at), r.started_at or r.finished_at
                ended = {"due_at": due_at, "started_at": started_at, "ended_at": r.finished_at}
                self._tally.add(r.task, r.queue, OutcomeKind(r.state), **ended)

    async def keep_up(self, work: WorkerStore, now: float) -> None:
        """Store log lines now, and figures when their time has come. *now*: seconds on the loop's clock.

        What the database does not take is kept for the next time; no job waits for it.
        """
        if now < self._next:
            return
        try:
            if self._tally and now >= self._next_figures:
                self._next_figures = now + self._timing.figures
                await self._write(work)
            await self._write_lines(work)
            if now >= self._next_cleaning:
                self._next_cleaning = now + _CLEANING_INTERVAL
                await work.remove_old_figures()
        except StoreError as error:
            self._next = now + self._timing.figures
            log.debug("figures and log lines are not stored yet: %s", error)
            # What the database never takes must not fill the memory.
            size = sum(len(text) for _, text in self._lines.values())
            if size > self._timing.lines_kept:
                log.warning("log lines of jobs are lost: %s", error)
            while size > self._timing.lines_kept:
                _, text = self._lines.pop(next(iter(self._lines)))
                size -= len(text)

    async def close(self, work: WorkerStore) -> None:
        """Store what is pending, if the database takes it."""
        try:
            await self._write_lines(work)
            await self._write(work)
        except StoreError as error:
            log.warning("the figures and log lines of the last seconds are lost: %s", error)

    async def _write_lines(self, work: WorkerStore) -> None:
        some = list(self._lines.items())
        if some:
            await work.add_lines([line for _, line in some])
            for key, _ in some:
                del self._lines[key]

    async def _write(self, work: WorkerStore) -> None:
        tally, self._tally = self._tally, Tally()
        if tally:
            try:
                await work.add_rollups(tally)
            except StoreError:
                # An answer that got lost may count it twice, which harms less than a gap.
                self._tally.put_back(tally)
                raise
