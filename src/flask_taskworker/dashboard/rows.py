"""A job's row as plain values for templates and JSON, with secrets covered."""

from __future__ import annotations

from typing import Any

from ..core.failures import read_cut
from ..core.rows import Failure, JobRecord, Progress
from ..ops.rows import JobRow
from . import redact
from .redact import Unreadable, without_logins
from .view import View
from .words import state_of

MESSAGE = 200
"""Characters of an error in a list."""

ACTIONS = ("retry", "run", "cancel", "discard", "restore")
"""What can be done to jobs, in the order of the buttons."""
PERMISSION = {"retry": "retry", "run": "run", "cancel": "cancel", "discard": "discard", "restore": "discard"}
"""The permission that each action needs."""
WORDS = {"retry": "Retry", "run": "Run now", "cancel": "Cancel", "discard": "Discard", "restore": "Take back"}
_FITTING = {
    "retry": ("failed", "cancelled"),
    "run": ("scheduled", "retrying"),
    "cancel": ("scheduled", "retrying", "ready", "running"),
    "discard": ("scheduled", "retrying", "ready", "succeeded", "failed", "cancelled"),
    "restore": ("discarded",),
}


def job_row(view: View, row: JobRow) -> dict[str, Any]:
    """One line of a list."""
    record = row.record
    state = state_of(record, row.discarded)
    return {
        "id": record.id,
        "task": record.task,
        "queue": record.queue,
        "state": state,
        "args": _args(view, row),
        "attempt": attempt(record),
        "max_attempts": record.max_attempts,
        "progress": percent(record.progress),
        "at": _when(record, state),
        "took_ms": duration(record),
        "error": _error(row),
        "schedule": record.schedule,
        "created_at": record.created_at,
    }


def _args(view: View, row: JobRow) -> str | None:
    if not view.may("payload"):
        return None
    try:
        return redact.brief(redact.arguments(row.args, view.task(row.record.task)))
    except Unreadable:
        # What was cut off, or is damaged, may be secret.
        return "… (open the job to see them)"


def _error(row: JobRow) -> str | None:
    if row.error is None and row.record.failure_kind is None:
        return None
    failure = read_cut(row.error, row.record.failure_kind)
    return error_line(failure)


def error_line(failure: Failure) -> str:
    """A failure on one line."""
    words = f"{failure.type}: {failure.message}" if failure.type else failure.message or failure.kind
    line = without_logins(words.split("\n", 1)[0])
    return line if len(line) <= MESSAGE else f"{line[:MESSAGE]}…"


def attempt(record: JobRecord) -> int:
    """The number of the current, next or last try, from 1."""
    return record.failures + (record.state != "failed" or not record.failures)


def duration(record: JobRecord) -> int | None:
    """How long the last try took, in ms; None while it runs, or where there was none."""
    if record.started_at is None or record.finished_at is None:
        return None
    return max(0, record.finished_at - record.started_at)


def percent(text: str | None) -> float | None:
    """Stored progress as a percentage, where its total is known."""
    progress = Progress.from_text(text)
    if progress is None or not progress.total:
        return None
    return round(max(0.0, min(100.0, 100 * progress.done / progress.total)), 1)


def _when(record: JobRecord, state: str) -> int | None:
    if record.finished_at is not None:
        return record.finished_at
    if state in ("scheduled", "retrying"):
        return record.run_at
    return record.started_at if state == "running" else record.run_at or record.created_at


def possible(view: View, state: str) -> list[str]:
    """The actions that the visitor may do to a job in this state."""
    return [action for action in ACTIONS if state in _FITTING[action] and view.may(PERMISSION[action])]
