"""Jobs as pages show them: their views together with their arguments, with secrets covered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ..ops.operations import is_possible
from ..ops.rows import JobRow
from ..ops.views import ErrorView, JobView, job_view, with_more
from . import redact
from .redact import Unreadable, without_logins
from .view import View

MESSAGE = 200
"""Characters of an error in a list."""


class Action(NamedTuple):
    """What can be done to jobs, as the pages say it."""

    word: str
    permission: str
    done: str
    """What has happened, with the jobs for the braces."""


ACTIONS = {
    "retry": Action("Retry", "retry", "{} back in the queue"),
    "run": Action("Run now", "run", "{} made ready"),
    "cancel": Action("Cancel", "cancel", "{} cancelled, or asked to stop"),
    "discard": Action("Discard", "discard", "{} discarded; that can be undone until pruning"),
    "restore": Action("Restore", "discard", "{} restored"),
}
"""In the order of the buttons."""


def job_line(view: View, row: JobRow) -> dict[str, Any]:
    """One line of a list."""
    job = job_view(row)
    args: str | None = None
    if view.may("payload"):
        try:
            args = redact.brief(redact.arguments(row.args, view.task(job.task)))
        except Unreadable:
            # Of what was cut off, or is damaged, what is secret is unknown.
            args = "… (open the job to see them)"
    return with_more(job, args=args, error=job.error and brief(job.error), word=job.word, at=job.at or job.created_at)


def brief(error: ErrorView, most: int = MESSAGE) -> ErrorView:
    """An error on one line, covered."""
    line = without_logins(error.message.split("\n", 1)[0])
    return replace(error, message=line if len(line) <= most else f"{line[:most]}…")


def possible(view: View, job: JobView) -> Mapping[str, str]:
    """The actions that the visitor may do to the job, with their words."""
    return {
        name: action.word for name, action in ACTIONS.items() if is_possible(name, job) and view.may(action.permission)
    }
