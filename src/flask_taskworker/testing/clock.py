"""The clock in a test: it stands still, and moves on when the test says so."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Self

from flask import Flask

from ..core.clock import as_timedelta, from_ms, require_aware, to_ms
from .drive import Bench, MovableClock, Plan
from .jobs import MAX_JOBS, Drained, raise_first, refuse_endless, summary


class TaskClock:
    """Freezes the time by which the jobs and schedules of *app* go, from ``with TaskClock(app) as clock`` on.

    Moving it on is as if a worker had run all the while: every schedule fires at its time, in order, and every job
    runs that is due. Only this package's time is frozen, not ``datetime.now()`` in a task: ``current_job.fire_at``
    says for which time a scheduled job stands.
    """

    def __init__(self, app: Flask) -> None:
        self._bench = Bench.of(app)
        self._store = self._bench.state.store

    def __enter__(self) -> Self:
        if self._bench.clock is not None:
            raise RuntimeError("The clock of this app is frozen already. Use the TaskClock that did it.")
        self._before = self._store.clock
        self._bench.clock = self._store.clock = MovableClock(self._before())
        return self

    def __exit__(self, *exc: object) -> None:
        self._store.clock = self._before
        self._bench.clock = None

    @property
    def now(self) -> datetime:
        """The time that it is (UTC)."""
        return from_ms(self._clock.ms)

    def advance(
        self,
        period: float | timedelta = 0,
        *,
        weeks: float = 0,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        max: int = MAX_JOBS,
        perform: bool = True,
        raise_errors: bool = True,
    ) -> Drained:
        """Move on by *period*, in seconds or a timedelta; see :meth:`set`."""
        __tracebackhide__ = True
        more = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
        return self.set(
            self.now + as_timedelta(period, "period") + more, max=max, perform=perform, raise_errors=raise_errors
        )

    def set(
        self,
        moment: datetime,
        *,
        max: int = MAX_JOBS,
        perform: bool = True,
        raise_errors: bool = True,
    ) -> Drained:
        """Move on to *moment*: fire what fires until then, run what is due, and say what has run.

        ``perform=False`` fires schedules and makes due jobs ready, but runs none. ``max`` and ``raise_errors``: as in
        :meth:`Jobs.drain`. Raises ValueError for a moment that is over: see :meth:`jump`.
        """
        __tracebackhide__ = True
        clock, last = self._clock, to_ms(require_aware(moment, "moment"))
        if last < clock.ms:
            raise ValueError(f"{moment} is over: it is {self.now}. Time goes forward only; jump() may go back.")
        report = self._bench.run(Plan(max_jobs=max + 1, until=last, schedules=True, perform=perform))
        if not report.died and not report.is_cut_short:
            clock.ms = last
        if raise_errors:
            raise_first([report])
        refuse_endless(report, max)
        return summary(report)

    def jump(self, moment: datetime) -> None:
        """Be at *moment*, as if no worker had run until then. To start a test at a certain time, say so first.

        What was missed is made up for, or not, when the clock next moves on: as each trigger's ``misfire`` says.
        """
        self._clock.ms = to_ms(require_aware(moment, "moment"))

    @property
    def _clock(self) -> MovableClock:
        if self._bench.clock is None:
            raise RuntimeError("The clock is not frozen. Use it so: with TaskClock(app) as clock: …")
        return self._bench.clock
