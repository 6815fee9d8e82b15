"""Jobs as pages show them: their views together with their arguments, with secrets covered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..ops.rows import JobRow
from ..ops.views import ErrorView, job_view, with_more
from . import redact
from .redact import Unreadable, without_logins
from .view import View

MESSAGE = 200
"""Characters of an error in a list."""

ACTIONS = {"retry": "Retry", "run": "Run now", "cancel": "Cancel", "discard": "Discard", "restore": "Restore"}
"""What can be done to jobs, in the order of the buttons, with their words."""
PERMISSION = {"retry": "retry", "run": "run", "cancel": "cancel", "discard": "discard", "restore": "discard"}
"""The permission that each action needs."""
_FITTING = {
    "retry": ("failed", "cancelled"),
    "run": ("scheduled", "retrying"),
    "cancel": ("scheduled", "retrying", "held", "ready", "running"),
    "discard": ("scheduled", "retrying", "held", "ready", "succeeded", "failed", "cancelled"),
    "restore": ("discarded",),
}


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


def possible(view: View, state: str) -> Mapping[str, str]:
    """The actions that the visitor may do to a job in this state, with their words."""
    return {name: word for name, word in ACTIONS.items() if state in _FITTING[name] and view.may(PERMISSION[name])}
