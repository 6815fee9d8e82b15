"""Failures by their cause, so that five hundred of them are one line; and what to do about all of one cause."""

from __future__ import annotations

from flask import Response

from ...ops.browse import GROUPED, HOUR_MS
from ...ops.views import with_more
from ..rows import brief
from ..view import Route, View

WINDOWS = {"1h": (HOUR_MS, 120_000), "24h": (24 * HOUR_MS, HOUR_MS), "7d": (168 * HOUR_MS, 6 * HOUR_MS)}
"""How far back to look, and the length of a slice, in milliseconds."""

SHOWN = 50
"""Groups on the page: the latest."""
_MESSAGE = 300


def page(view: View) -> Response:
    """The groups of failures, latest first."""
    window = view.choice("window", WINDOWS, "24h")
    length, step = WINDOWS[window]
    start = (view.now - length) // step * step
    groups = []
    for shown, recent in view.browser.failures(start, step=step, limit=SHOWN):
        groups.append(
            with_more(
                shown,
                error=shown.error and brief(shown.error, _MESSAGE),
                is_new=view.now - shown.first_at <= HOUR_MS,
                by_slice=[recent.get(at, 0) for at in range(start, view.now + 1, step)],
            )
        )
    data = {
        "window": window,
        "windows": list(WINDOWS),
        "since": start,
        "step_ms": step,
        "groups": groups,
        "grouped": GROUPED,
        "shown": SHOWN,
    }
    return view.page("failures.html", data, title="Failures")


ROUTES = (Route("/failures", "failures", page, arguments=("window",)),)
