"""Failures by their cause, so that five hundred of them are one line; and what to do about all of one cause."""

from __future__ import annotations

from typing import Any

from flask import Response

from ...core.failures import read_cut
from ...core.filters import JobFilter
from ...ops.browse import GROUPED, HOUR_MS
from ...ops.rows import FailureGroup
from .. import charts
from ..filtering import filter_text
from ..redact import without_logins
from ..routes import Route
from ..view import View

WINDOWS = {"1h": (HOUR_MS, 120_000), "24h": (24 * HOUR_MS, HOUR_MS), "7d": (168 * HOUR_MS, 6 * HOUR_MS)}
"""How far back to look, and the length of a slice, in milliseconds."""

SHOWN = 50
"""Groups on the page: the latest."""
_NEW_MS = HOUR_MS


def page(view: View) -> Response:
    """The groups of failures, latest first."""
    window = view.choice("window", WINDOWS, "24h")
    length, step = WINDOWS[window]
    start = (view.now - length) // step * step
    groups = view.browser.failures(start, step=step, limit=SHOWN)
    data = {
        "window": window,
        "windows": list(WINDOWS),
        "since": start,
        "step_ms": step,
        "groups": [_row(group, range(start, view.now + 1, step), view.now) for group in groups],
        "grouped": GROUPED,
        "shown": SHOWN,
    }
    return view.page("failures.html", data, title="Failures")


def _row(group: FailureGroup, slices: range, now: int) -> dict[str, Any]:
    by_slice = [group.by_slice.get(start, 0) for start in slices]
    failure = read_cut(group.newest.error, group.newest.record.failure_kind)
    return {
        "group": group.group,
        "filter": filter_text(JobFilter(group=group.group)) if group.group else None,
        "task": group.newest.record.task,
        "kind": failure.kind,
        "type": failure.type,
        "message": without_logins(failure.message.split("\n", 1)[0][:300]),
        "place": group.place,
        "count": group.count,
        "older": group.older,
        "all": group.count + group.older,
        "first_at": group.first_at,
        "last_at": group.last_at,
        "is_new": now - group.first_at <= _NEW_MS,
        "sample": group.newest.record.id,
        "by_slice": by_slice,
        "chart": charts.sparkline(by_slice, "Failures, oldest first", kind="failed"),
    }


ROUTES = (Route("/failures", "failures", page, arguments=("window",)),)
