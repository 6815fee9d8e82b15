"""What the overview page shows: whether everything is healthy, and what has changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..core.words import MOST, counted
from ..mail.queue.queue import DELIVER
from ..store.rollups import Percentile
from ..store.sql import Store
from .browse import HOUR_MS, Browser
from .overview import FAILURES, EndedSlice, LatestFailure, Overview, ended, latest_failures
from .rows import Figures, add_up
from .views import ScheduleView, schedule_view

_MINUTE_MS = 60_000
_SLICE_MS = 5 * _MINUTE_MS
_SLICES = HOUR_MS // _SLICE_MS
_FEW = 6
"""Lines of each list."""


class Window(NamedTuple):
    """How much the chart shows: bars of *step* ms, from the roll-ups of *span* seconds."""

    bars: int
    step: int
    span: Literal[60, 3600]


WINDOWS = {
    "1h": Window(60, _MINUTE_MS, 60),
    "6h": Window(72, _SLICE_MS, 60),
    "24h": Window(24, HOUR_MS, 3600),
    "7d": Window(56, 3 * HOUR_MS, 3600),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether everything is healthy."""

    healthy: bool
    problems: list[str]
    workers: int
    """Those that take jobs."""
    oldest_ready_at: int | None
    failed_in_hour: int
    paused_queues: list[str]


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure, and how it has moved in the last hour."""

    label: str
    value: float
    text: str
    series: Sequence[float] = ()
    title: str = ""
    kind: str = "run"
    detail: str = ""
    oldest_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowTask:
    """A task, and what 95 % of its tries in the last hour took at most."""

    task: str
    p95: Percentile
    tries: int
    series_s: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewPage:
    """The page at one moment. Times are epoch milliseconds."""

    health: Verdict
    tiles: list[Tile]
    throughput: list[EndedSlice]
    slowest: list[SlowTask]
    failures: list[LatestFailure]
    failures_counted: bool
    """Whether all failures of the last hour were looked at."""
    schedules: list[ScheduleView]
    """Those that fire next."""
    is_new: bool
    """Whether no worker and no job was ever there."""

    @classmethod
    def take(cls, store: Store, window: Window) -> OverviewPage:
        """Look now: four statements, whatever there is. Raises StoreError."""
        seen = Overview.take(store)
        last = seen.now // window.step * window.step
        starts = range(last - (window.bars - 1) * window.step, last + 1, window.step)
        found = {one.start: one for one in ended(store, starts[0], step=window.step, span=window.span)}
        hour = _Hour(store, seen.now)
        problems = seen.problems()
        waiting = [row for row in seen.schedules if not row.paused and row.next_at is not None]
        coming = sorted(waiting, key=lambda row: (row.next_at or 0, row.name))[:_FEW]
        return cls(
            health=Verdict(
                healthy=not problems,
                problems=problems,
                workers=len(seen.claiming),
                oldest_ready_at=min((queue.oldest_at for queue in seen.queues), default=None),
                failed_in_hour=sum(hour.failed),
                paused_queues=sorted(seen.paused),
            ),
            tiles=hour.tiles(seen),
            throughput=[found.get(at) or EndedSlice(at, 0, 0, 0) for at in starts],
            slowest=hour.slowest(),
            failures=latest_failures(store, seen.now - HOUR_MS, _FEW),
            failures_counted=sum(hour.failed) <= FAILURES,
            schedules=[schedule_view(row, seen.now) for row in coming],
            is_new=not seen.workers and not seen.has_jobs,
        )


class _Hour:
    """The figures of the last hour in twelve slices, the oldest first."""

    def __init__(self, store: Store, now: int) -> None:
        start = now // _SLICE_MS * _SLICE_MS - (_SLICES - 1) * _SLICE_MS
        self._starts = range(start, start + HOUR_MS, _SLICE_MS)
        self._by_task: dict[str, dict[int, Figures]] = {}
        by_slice: dict[int, list[Figures]] = {}
        for figures in Browser(store).figures(start, step=_SLICE_MS, by="task"):
            self._by_task.setdefault(figures.key, {})[figures.start] = figures
            by_slice.setdefault(figures.start, []).append(figures)
        self._slices = [add_up(by_slice.get(at, ())) for at in self._starts]
        self.failed = [one.failed if one else 0 for one in self._slices]

    def tiles(self, seen: Overview) -> list[Tile]:
        done = [one.ended if one else 0 for one in self._slices]
        waits = [(p95.ms if one and (p95 := one.wait_percentile(0.95)) else 0) / 1000 for one in self._slices]
        sent = self._by_task.get(DELIVER, {})
        mails = [sent[at].succeeded if at in sent else 0 for at in self._starts]
        # The slice that has just begun says nothing yet.
        rate = round((done[-1] + done[-2]) / ((seen.now - self._starts[-2]) / _MINUTE_MS), 1)
        failed, mailed = sum(self.failed), sum(mails)
        others = {"held": min(MOST, sum(seen.held.values())), "scheduled": seen.scheduled}
        detail = ", ".join(f"{counted(number)} {word}" for word, number in others.items() if number)
        oldest_at = min((queue.oldest_at for queue in seen.queues), default=None)
        return [
            Tile("Done a minute", rate, f"{rate:,.{0 if rate >= 10 else 1}f}", done, "Ended in 5 minutes each"),
            Tile("Failed in an hour", failed, f"{failed:,}", self.failed, "Failed in 5 minutes each", "failed"),
            Tile("Waiting", seen.ready, counted(seen.ready), detail=detail),
            Tile("Oldest wait", 0, "–", waits, "95 % waited at most this many seconds", oldest_at=oldest_at),
            Tile("Mails in an hour", mailed, f"{mailed:,}", mails, "Mails sent in 5 minutes each", "ok"),
        ]

    def slowest(self) -> list[SlowTask]:
        """The tasks whose slowest tries took longest."""
        tasks = []
        for task, slices in self._by_task.items():
            total = add_up(list(slices.values()))
            if total is not None and (p95 := total.run_percentile(0.95)) is not None:
                each = [slices[at].run_percentile(0.95) if at in slices else None for at in self._starts]
                series = [round(one.ms / 1000, 3) if one else 0 for one in each]
                tasks.append(SlowTask(task=task, p95=p95, tries=sum(total.run), series_s=series))
        return sorted(tasks, key=lambda slow: -slow.p95.ms)[:_FEW]
