"""Overview: is it healthy, and what has changed?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from flask import Response

from ...core.failures import read_cut
from ...mail.queue.queue import DELIVER
from ...ops.browse import HOUR_MS
from ...ops.overview import FAILURES, EndedSlice, Overview, ended, latest_failures
from ...ops.rows import Figures, add_up
from ...ops.views import ErrorView, schedule_view
from .. import words
from ..rows import brief
from ..view import Route, View

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
        self.failed = sum(one.failed for one in self.slices if one)


def page(view: View) -> Response:
    """The overview: four statements, whatever there is."""
    name = view.choice("window", WINDOWS, "1h")
    window = WINDOWS[name]
    seen = Overview.take(view.state.store)
    last = view.now // window.step * window.step
    starts = range(last - (window.bars - 1) * window.step, last + 1, window.step)
    found = {one.start: one for one in ended(view.state.store, starts[0], step=window.step, span=window.span)}
    start = view.now // _SLICE_MS * _SLICE_MS - (_SLICES - 1) * _SLICE_MS
    hour = _Hour(start, view.browser.figures(start, step=_SLICE_MS, by="task"))
    problems = seen.problems()
    waiting = [row for row in seen.schedules if not row.paused and row.next_at is not None]
    coming = sorted(waiting, key=lambda row: (row.next_at or 0, row.name))[:_FEW]
    oldest_at = min((queue.oldest_at for queue in seen.queues), default=None)
    data = {
        "health": {
            "healthy": not problems,
            "problems": problems,
            "workers": len(seen.claiming),
            "oldest_ready_at": oldest_at,
            "failed_in_hour": hour.failed,
            "paused_queues": sorted(seen.paused),
        },
        "tiles": _tiles(view.now, seen, hour, oldest_at),
        "window": name,
        "windows": list(WINDOWS),
        "throughput": [(found.get(at) or EndedSlice(at, 0, 0, 0))._asdict() for at in starts],
        "slowest": _slowest(hour),
        "failures": _failures(view),
        "failures_counted": hour.failed <= FAILURES,
        "schedules": [schedule_view(row, view.now) for row in coming],
        "is_new": not seen.workers and not seen.has_jobs,
    }
    return view.page("overview.html", data, title="Overview")


def _tiles(now: int, seen: Overview, hour: _Hour, oldest_at: int | None) -> list[dict[str, Any]]:
    done = [one.ended if one else 0 for one in hour.slices]
    failed = [one.failed if one else 0 for one in hour.slices]
    waits = [(p95.ms if one and (p95 := one.wait_percentile(0.95)) else 0) / 1000 for one in hour.slices]
    sent = hour.by_task.get(DELIVER, {})
    mails = [sent[at].succeeded if at in sent else 0 for at in hour.starts]
    # The slice that has just begun says nothing yet.
    rate = (done[-1] + done[-2]) / ((now - hour.starts[-2]) / _MINUTE_MS)
    scheduled = f"{words.number(seen.scheduled)} scheduled" if seen.scheduled else ""
    return [
        _tile("Done a minute", rate, done, "EndedSlice in 5 minutes each", text=f"{rate:,.{0 if rate >= 10 else 1}f}"),
        _tile("Failed in an hour", sum(failed), failed, "Failed in 5 minutes each", kind="failed"),
        _tile("Waiting", seen.ready, [], "", text=words.number(seen.ready), detail=scheduled),
        _tile("Oldest wait", 0, waits, "95 % waited at most this many seconds", text="–", oldest_at=oldest_at),
        _tile("Mails in an hour", sum(mails), mails, "Mails sent in 5 minutes each", kind="ok"),
    ]


def _tile(label: str, value: float, series: list[float] | list[int], title: str, **more: Any) -> dict[str, Any]:
    shown = {"text": f"{value:,}", "kind": "run", "detail": "", "oldest_at": None, **more}
    return {"label": label, "value": round(value, 1), "series": series, "title": title, **shown}


def _slowest(hour: _Hour) -> list[dict[str, Any]]:
    """The tasks whose slowest tries took longest, in the last hour."""
    rows: list[dict[str, Any]] = []
    for task, slices in hour.by_task.items():
        total = add_up(list(slices.values()))
        if total is not None and (p95 := total.run_percentile(0.95)) is not None:
            each = [slices[at].run_percentile(0.95) if at in slices else None for at in hour.starts]
            series = [round(one.ms / 1000, 3) if one else 0 for one in each]
            rows.append({"task": task, "p95": p95, "tries": sum(total.run), "series_s": series})
    return sorted(rows, key=lambda row: -row["p95"].ms)[:_FEW]


def _failures(view: View) -> list[dict[str, Any]]:
    rows = []
    for line in latest_failures(view.state.store, view.now - HOUR_MS, _FEW):
        failure = read_cut(line.error, line.failure_kind)
        error = ErrorView(kind=failure.kind, type=failure.type, message=failure.message)
        rows.append(
            {
                "group": line.group,
                "task": line.task,
                "error": brief(error),
                "count": line.number,
                "last_at": line.last_at,
                "is_new": view.now - line.first_at <= HOUR_MS,
                "newest": line.id,
            }
        )
    return rows


ROUTES = (Route("/", "overview", page, arguments=("window",)),)
