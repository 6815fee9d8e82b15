"""Jobs: every state in one list. The address is the question."""

from __future__ import annotations

from flask import Response

from ...core.filters import HELP, JobFilter
from ..rows import ACTIONS, job_line
from ..view import Route, View

PER_PAGE = 50
MOST_PER_PAGE = 200
_TABS = ("held", "ready", "running", "scheduled", "retrying", "waiting", "failed", "succeeded", "cancelled")


def page(view: View) -> Response:
    """A page of jobs, newest first. Raises ArgumentsError for a filter that cannot be read."""
    text = view.argument("filter")
    chosen = view.filter(text)
    before = view.number("before")
    limit = view.number("limit", most=MOST_PER_PAGE) or PER_PAGE
    found = view.browser.jobs(chosen, limit=limit, before=before, names=view.names)
    # "restore" fits discarded jobs only, and all other actions the rest.
    offered = {
        name: action.word
        for name, action in ACTIONS.items()
        if view.may(action.permission) and (name == "restore") == chosen.discarded
    }
    counts = view.browser.state_counts()
    tabs: list[tuple[str | None, str, str, JobFilter]] = [(None, "All", "", JobFilter())]
    # Without a limit no job is held.
    shown = _TABS if counts.held or view.state.registry.limits else _TABS[1:]
    tabs += [(state, state.capitalize(), counts.words(state), JobFilter(states=(state,))) for state in shown]
    tabs += [("discarded", "Discarded", "", JobFilter(discarded=True))]
    data = {
        "filter": text,
        "tabs": [
            {"state": state, "word": word, "count": count, "filter": str(fitting), "current": chosen == fitting}
            for state, word, count, fitting in tabs
        ],
        "jobs": [job_line(view, row) for row in found.rows],
        "before": before,
        "older": found.older,
        "searched_out": found.searched_out,
        "actions": offered,
        "help": HELP,
        "limit": limit,
    }
    return view.page("jobs.html", data, title="Jobs")


ROUTES = (Route("/jobs", "jobs", page, arguments=("filter", "before", "limit")),)
