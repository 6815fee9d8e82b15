"""Overview: is it healthy, and what has changed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, NamedTuple

from flask import Response

from ...core.failures import read_cut
from ...core.filters import JobFilter
from ...mail.queue.queue import DELIVER
from ...ops.browse import HOUR_MS
from ...ops.health import is_late
from ...ops.overview import FAILURES, EndedSlice, FailureLine, Overview, ended, latest_failures
from ...ops.rows import Figures, add_up
from ...store.sql import ScheduleRow
from .. import charts, words
from ..filtering import filter_text
from ..redact import without_logins
from ..routes import Route
from ..view import View

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


def page(view: View) -> Response:
    """The overview: four statements, whatever there is."""
    window = view.choice("window", WINDOWS, "1h")
    seen = Overview.take(view.state.store)
    bars = _bars(view, WINDOWS[window])
    start = view.now // _SLICE_MS * _SLICE_MS - (_SLICES - 1) * _SLICE_MS
    by_task = view.browser.figures(start, step=_SLICE_MS, by="task")
    failures = latest_failures(view.state.store, view.now - HOUR_MS, _FEW)
    hour = _Hour(start, by_task)
    data = {
        "health": _health(seen, hour),
        "tiles": _tiles(view, seen, hour),
        "window": window,
        "windows": list(WINDOWS),
        "throughput": [{f.name: getattr(bar, f.name) for f in fields(bar)} for bar in bars],
        "chart": charts.throughput(
            bars, name="throughput", title=f"Jobs that ended in the last {window}", days=window == "7d"
        ),
        "slowest": _slowest(hour),
        "failures": [_failure(line, view.now) for line in failures],
        "failures_counted": bool(hour.total is None or hour.total.failed <= FAILURES),
        "schedules": [_schedule(schedule, seen.now) for schedule in _next(seen.schedules)],
        "is_new": not seen.workers and not seen.has_jobs,
    }
    return view.page("overview.html", data, title="Overview")


# -- health ------------------------------------------------------------------------------------------------------------


def _health(seen: Overview, hour: _Hour) -> dict[str, Any]:
    problems = seen.problems()
    return {
        "healthy": not problems,
        "problems": problems,
        "workers": len(seen.claiming),
        "oldest_ready_at": _oldest(seen),
        "failed_in_hour": hour.total.failed if hour.total else 0,
        "paused_queues": sorted(seen.paused),
    }


def _oldest(seen: Overview) -> int | None:
    return min((queue.oldest_at for queue in seen.queues), default=None)


# -- tiles -------------------------------------------------------------------------------------------------------------


class _Hour:
    """The figures of the last hour in twelve slices."""

    def __init__(self, start: int, by_task: Sequence[Figures]) -> None:
        self.starts = range(start, start + HOUR_MS, _SLICE_MS)
        self.by_task: dict[str, dict[int, Figures]] = {}
        by_slice: dict[int, list[Figures]] = {}
        for figures in by_task:
            self.by_task.setdefault(figures.key, {})[figures.start] = figures
            by_slice.setdefault(figures.start, []).append(figures)
        self.slices = [add_up(by_slice.get(at, ())) for at in self.starts]
        self.total = add_up(by_task)


def _tiles(view: View, seen: Overview, hour: _Hour) -> list[dict[str, Any]]:
    done = [slice_.ended if slice_ else 0 for slice_ in hour.slices]
    failed = [slice_.failed if slice_ else 0 for slice_ in hour.slices]
    waits = [(p95.ms if slice_ and (p95 := slice_.wait_percentile(0.95)) else 0) / 1000 for slice_ in hour.slices]
    mails = [_succeeded(hour.by_task.get(DELIVER, {}).get(at)) for at in hour.starts]
    # The slice that has just begun says nothing yet.
    minutes = (view.now - hour.starts[-2]) / _MINUTE_MS
    rate = (done[-1] + done[-2]) / minutes
    return [
        _tile("Done a minute", rate, f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}", done, "Ended in 5 minutes each"),
        _tile("Failed in an hour", sum(failed), f"{sum(failed):,}", failed, "Failed in 5 minutes each", "failed"),
        _tile("Waiting", seen.ready, words.number(seen.ready), [], "", detail=_due(seen)),
        {**_tile("Oldest wait", 0, "–", waits, "95 % waited at most this many seconds"), "since": _oldest(seen)},
        _tile("Mails in an hour", sum(mails), f"{sum(mails):,}", mails, "Mails sent in 5 minutes each", "ok"),
    ]


def _due(seen: Overview) -> str:
    return f"{words.number(seen.scheduled)} scheduled" if seen.scheduled else ""


def _succeeded(figures: Figures | None) -> int:
    return figures.succeeded if figures else 0


def _tile(
    label: str, value: float, text: str, series: Sequence[float], title: str, kind: str = "run", detail: str = ""
) -> dict[str, Any]:
    chart = charts.sparkline(series, title, kind=kind) if series else None
    return {
        "label": label,
        "value": round(value, 1),
        "text": text,
        "series": list(series),
        "chart": chart,
        "detail": detail,
        "since": None,
    }


# -- the chart and the lists -------------------------------------------------------------------------------------------


def _bars(view: View, window: Window) -> list[charts.Bar]:
    last = view.now // window.step * window.step
    starts = range(last - (window.bars - 1) * window.step, last + 1, window.step)
    found = {slice_.start: slice_ for slice_ in ended(view.state.store, starts[0], step=window.step, span=window.span)}
    slices = (found.get(start) or EndedSlice(start, 0, 0, 0) for start in starts)
    return [charts.Bar(start=s.start, ok=s.succeeded, failed=s.failed, cancelled=s.cancelled) for s in slices]


def _slowest(hour: _Hour) -> list[dict[str, Any]]:
    """The tasks whose slowest tries took longest, in the last hour."""
    rows = []
    for task, slices in hour.by_task.items():
        total = add_up(list(slices.values()))
        p95 = total.run_percentile(0.95) if total else None
        if total is None or p95 is None:
            continue
        series = [round(_p95(slices.get(at)) / 1000, 3) for at in hour.starts]
        rows.append(
            {
                "task": task,
                "filter": filter_text(JobFilter(task=task)),
                "p95_ms": round(p95.ms),
                "p95_at_least": p95.at_least,
                "text": words.percentile(p95),
                "tries": sum(total.run),
                "chart": charts.sparkline(series, "95 % took at most this many seconds, in 5 minutes each"),
            }
        )
    return sorted(rows, key=lambda row: -int(str(row["p95_ms"])))[:_FEW]


def _p95(figures: Figures | None) -> float:
    p95 = figures.run_percentile(0.95) if figures else None
    return p95.ms if p95 else 0.0


def _failure(line: FailureLine, now: int) -> dict[str, Any]:
    failure = read_cut(line.error, line.failure_kind)
    return {
        "group": line.group,
        "filter": filter_text(JobFilter(group=line.group) if line.group else JobFilter(task=line.task)),
        "task": line.task,
        "type": failure.type or failure.kind,
        "message": without_logins(failure.message.split("\n", 1)[0][:200]),
        "count": line.number,
        "last_at": line.last_at,
        "is_new": now - line.first_at <= HOUR_MS,
        "sample": line.id,
    }


def _next(schedules: Sequence[ScheduleRow]) -> list[ScheduleRow]:
    waiting = [schedule for schedule in schedules if not schedule.paused and schedule.next_at is not None]
    return sorted(waiting, key=lambda schedule: (schedule.next_at or 0, schedule.name))[:_FEW]


def _schedule(schedule: ScheduleRow, now: int) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "next_at": schedule.next_at,
        "last_at": schedule.last_at,
        "late": is_late(schedule, now),
    }


ROUTES = (Route("/", "overview", page, arguments=("window",)),)
