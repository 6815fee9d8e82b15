"""``flask tasks jobs`` and ``flask tasks failures``: lists of jobs."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ..commands import tasks_command
from ..core.failures import read_cut
from ..core.filters import JobFilter
from ..core.rows import JobRecord, Progress
from ..core.words import counted, spoken
from ..ops.browse import GROUPED
from ..ops.operations import names_of
from ..ops.rows import FailureGroup, JobPage, JobRow
from .group import AS_JSON, INCOMPLETE, LIMIT, NOTHING, Period, app_state, browser, complete_filter, tell
from .text import iso, table, to_json

if TYPE_CHECKING:
    from ..state import AppState

_LONGEST_ERROR = 60
_LONGEST_PLACE = 40
_PATIENCE = 2.0
"""Seconds to search for the first job that fits."""
_TIMES = ("run_at", "fire_at", "created_at", "started_at", "finished_at", "expires_at")


# -- jobs --------------------------------------------------------------------------------------------------------------


@tasks_command.command("jobs")
@click.argument("words", metavar="[FILTER]...", nargs=-1, shell_complete=complete_filter)
@LIMIT
@click.option("--before", type=click.IntRange(1), metavar="ID", help="Only older ones than this job: the next page.")
@AS_JSON
def list_jobs(words: tuple[str, ...], limit: int, before: int | None, as_json: bool) -> None:
    """List jobs, the newest first.

    FILTER says which, for example: state:failed task:'mail.*' queue:web args.user_id:42 after:-1h. Also attempts:3,
    schedule:NAME, worker:ID, group:ID, parent:ID, unique:KEY, uid:UID and hidden:yes. Exits with 3 if no job fits it,
    with 6 if the search stopped before it had seen all jobs: go on with --before.
    """
    state = app_state()
    chosen = JobFilter.parse(" ".join(words), state.store.clock())
    page = _first_page(state, chosen, limit, before)
    if as_json:
        for row in page.rows:
            click.echo(job_json(row))
    elif page.rows:
        click.echo("\n".join(_job_table(state, page.rows)))
    _tell_rest(page, chosen)
    if not page.rows and chosen:
        sys.exit(NOTHING if page.older is None else INCOMPLETE)


def _first_page(state: AppState, chosen: JobFilter, limit: int, before: int | None) -> JobPage:
    """The first page that has something, if it is found soon: each looks at a bounded number of rows."""
    names = names_of(state.registry)
    deadline = time.monotonic() + _PATIENCE
    page = browser().jobs(chosen, limit=limit, before=before, names=names)
    while not page.rows and page.older is not None and time.monotonic() < deadline:
        page = browser().jobs(chosen, limit=limit, before=page.older, names=names)
    return page


def _tell_rest(page: JobPage, chosen: JobFilter) -> None:
    if page.older is not None:
        stopped = f"Searched down to job {page.older}. " if page.searched_out else ""
        tell(f"{stopped}Older jobs: --before {page.older}")
    elif not page.rows:
        tell("No job fits the filter." if chosen else "There is no job yet. Enqueue one: flask tasks call NAME")


def _job_table(state: AppState, rows: list[JobRow]) -> list[str]:
    now = state.store.clock()
    headers = ("job", "task", "state", "queue", "tries", "age", "took", "error")
    return table(headers, [_cells(row, now) for row in rows], right={"job", "tries", "age", "took"})


def _cells(row: JobRow, now: int) -> tuple[str, ...]:
    job = row.record
    took = job.finished_at - job.started_at if job.finished_at and job.started_at else None
    return (
        str(job.id),
        job.task,
        _state_words(job, now),
        job.queue,
        f"{job.failures}/{job.max_attempts}",
        spoken(now - job.created_at),
        "" if took is None else spoken(took),
        error_words(row),
    )


def _state_words(job: JobRecord, now: int) -> str:
    if job.state == "scheduled":
        word = "retrying" if job.failures else "scheduled"
        return f"{word} in {spoken(job.run_at - now)}" if job.run_at > now else f"{word}, due"
    if job.state == "running" and (progress := Progress.from_text(job.progress)) and progress.total:
        return f"running {100 * progress.done / progress.total:.0f} %"
    return job.state


def error_words(row: JobRow) -> str:
    """The error of a job, or the reason of its end, short enough for a table."""
    if row.error is None and row.record.failure_kind is None:
        return ""
    failure = read_cut(row.error, row.record.failure_kind)
    words = f"{failure.type}: {failure.message}" if failure.type else failure.message or failure.kind
    return words if len(words) <= _LONGEST_ERROR else f"{words[:_LONGEST_ERROR]}…"


def job_json(row: JobRow) -> str:
    """A job of a list as a line of JSON."""
    return to_json(job_fields(row.record) | {"hidden": bool(row.hidden), "failure_group": row.failure_group})


def job_fields(record: JobRecord) -> dict[str, Any]:
    """What the store knows of a job, with its moments in ISO 8601."""
    fields = record._asdict()
    fields |= {name: iso(fields[name]) for name in _TIMES}
    return fields | {
        "cancel_requested": bool(record.cancel_requested),
        "at_most_once": bool(record.at_most_once),
        "progress": Progress.from_text(record.progress),
    }


# -- failures ----------------------------------------------------------------------------------------------------------


@tasks_command.command("failures")
@click.option(
    "--since", type=Period(), default="24h", show_default=True, metavar="PERIOD", help="Those of so long: 1h, 7d."
)
@AS_JSON
def failures(since: float, as_json: bool) -> None:
    """List failed jobs by their cause, the latest first.

    Jobs have one cause if their task, their exception, its message without numbers and names, and the place where it
    was raised are the same. Put a whole group back with: flask tasks retry --group ID
    """
    state = app_state()
    now = state.store.clock()
    groups = browser().failures(now - round(since * 1000))
    if as_json:
        for group in groups:
            click.echo(_group_json(group))
    elif groups:
        click.echo("\n".join(_group_table(groups, now)))
    else:
        tell(f"No job failed in the last {spoken(round(since * 1000))}.")
    if sum(group.count for group in groups) >= GROUPED:
        tell(f"These are the newest {counted(GROUPED)} failed jobs.")


def _group_table(groups: list[FailureGroup], now: int) -> list[str]:
    headers = ("group", "jobs", "last", "first", "task", "error", "place", "newest")
    rows = [
        (
            group.group,
            counted(group.count),
            f"{spoken(now - group.last_at)} ago",
            f"{spoken(now - group.first_at)} ago",
            group.newest.record.task,
            error_words(group.newest),
            _ending(group.place or "", _LONGEST_PLACE),
            str(group.newest.record.id),
        )
        for group in groups
    ]
    return table(headers, rows, right={"jobs", "last", "first", "newest"})


def _ending(text: str, most: int) -> str:
    """Of a path the end says more than the beginning."""
    return text if len(text) <= most else f"…{text[-most:]}"


def _group_json(group: FailureGroup) -> str:
    failure = read_cut(group.newest.error, group.newest.record.failure_kind)
    return to_json(
        {
            "group": group.group,
            "jobs": group.count,
            "task": group.newest.record.task,
            "error": {"kind": failure.kind, "type": failure.type, "message": failure.message},
            "place": group.place,
            "first_at": iso(group.first_at),
            "last_at": iso(group.last_at),
            "newest": group.newest.record.id,
        }
    )
