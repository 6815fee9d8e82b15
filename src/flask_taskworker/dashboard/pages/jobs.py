"""Jobs: every state in one list. The address is the question."""

from __future__ import annotations

from typing import Any

from flask import Response

from ...core.filters import HELP, JobFilter
from ...ops.rows import StateCounts
from ..routes import Route
from ..rows import ACTIONS, PERMISSION, WORDS, job_row
from ..view import View

PER_PAGE = 50
MOST_PER_PAGE = 200
_TABS = ("ready", "running", "scheduled", "retrying", "failed", "succeeded", "cancelled")


def page(view: View) -> Response:
    """A page of jobs, newest first. Raises ArgumentsError for a filter that cannot be read."""
    text = view.argument("filter")
    chosen = view.filter(text)
    before = view.number("before")
    limit = view.number("limit", most=MOST_PER_PAGE) or PER_PAGE
    found = view.browser.jobs(chosen, limit=limit, before=before, names=view.names)
    counts = view.browser.state_counts()
    data = {
        "filter": text,
        "tabs": _tabs(counts, chosen),
        "rows": [job_row(view, row) for row in found.rows],
        "before": before,
        "older": found.older,
        "searched_out": found.searched_out,
        "actions": [(action, WORDS[action]) for action in ACTIONS if _offered(view, action, chosen)],
        "help": HELP,
        "limit": limit,
    }
    return view.page("jobs.html", data, title="Jobs")


def _offered(view: View, action: str, chosen: JobFilter) -> bool:
    """Whether the action fits any job of the list."""
    return view.may(PERMISSION[action]) and (action == "restore") == chosen.discarded


def _tabs(counts: StateCounts, chosen: JobFilter) -> list[dict[str, Any]]:
    """The states with how many jobs each has, whatever the filter."""
    tabs = [{"state": None, "word": "All", "count": None, "filter": "", "current": not chosen}]
    for state in _TABS:
        current = chosen == JobFilter(states=(state,))
        tabs.append(
            {
                "state": state,
                "word": state.capitalize(),
                "count": counts.words(state),
                "filter": f"state:{state}",
                "current": current,
            }
        )
    discarded = {"state": "discarded", "word": "Discarded", "count": None, "filter": "discarded:yes"}
    return [*tabs, {**discarded, "current": chosen == JobFilter(discarded=True)}]


ROUTES = (Route("/jobs", "jobs", page, arguments=("filter", "before", "limit")),)
