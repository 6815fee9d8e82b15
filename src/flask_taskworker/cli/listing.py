"""``flask tasks jobs`` and ``flask tasks failures``: lists of jobs."""

from __future__ import annotations

import sys
import time

import click

from ..commands import tasks_command
from ..core.filters import JobFilter
from ..core.words import counted, spoken
from ..ops.browse import GROUPED
from ..ops.operations import names_of
from ..ops.rows import JobPage, JobRow
from ..ops.views import ErrorView, FailureView, JobView, as_json, failure_view, job_view
from ..state import AppState
from .group import AS_JSON, INCOMPLETE, LIMIT, NOTHING, Period, app_state, browser, complete_filter, tell
from .text import table, to_json

_LONGEST_ERROR = 60
_LONGEST_PLACE = 40
_PATIENCE = 2.0
"""Seconds to search for the first job that fits."""


# -- jobs --------------------------------------------------------------------------------------------------------------


@tasks_command.command("jobs")
@click.argument("words", metavar="[FILTER]...", nargs=-1, shell_complete=complete_filter)
@LIMIT
@click.option("--before", type=click.IntRange(1), metavar="ID", help="Only older ones than this job: the next page.")
@AS_JSON
def list_jobs(words: tuple[str, ...], limit: int, before: int | None, in_json: bool) -> None:
    """List jobs, the newest first.

    FILTER says which, for example: state:failed task:'mail.*' queue:web args.user_id:42 after:-1h. Also attempts:3,
    schedule:NAME, worker:ID, group:ID, parent:ID, unique:KEY, uid:UID and hidden:yes. Exits with 3 if no job fits it,
    with 6 if the search stopped before it had seen all jobs: go on with --before.
    """
    state = app_state()
    chosen = JobFilter.parse(" ".join(words), state.store.clock())
    page = _first_page(state, chosen, limit, before)
    if in_json:
        for row in page.rows:
            click.echo(to_json(as_json(job_view(row))))
    elif page.rows:
        click.echo("\n".join(_job_table(page.rows, state.store.clock())))
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


def _job_table(rows: list[JobRow], now: int) -> list[str]:
    headers = ("job", "task", "state", "queue", "try", "age", "took", "error")
    return table(headers, [_cells(job_view(row), now) for row in rows], right={"job", "try", "age", "took"})


def _cells(job: JobView, now: int) -> tuple[str, ...]:
    return (
        str(job.id),
        job.task,
        _state_words(job, now),
        job.queue,
        f"{job.attempt}/{job.max_attempts}",
        spoken(now - job.created_at),
        "" if job.took_ms is None else spoken(job.took_ms),
        _error_words(job.error),
    )


def _state_words(job: JobView, now: int) -> str:
    if job.state in ("scheduled", "retrying"):
        return f"{job.state} in {spoken(job.run_at - now)}" if job.run_at > now else f"{job.state}, due"
    return job.word if job.percent is None or job.state != "running" else f"running {job.percent:.0f} %"


def _error_words(error: ErrorView | None) -> str:
    text = error.text if error else ""
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}…"


# -- failures ----------------------------------------------------------------------------------------------------------


@tasks_command.command("failures")
@click.option(
    "--since", type=Period(), default="24h", show_default=True, metavar="PERIOD", help="Those of so long: 1h, 7d."
)
@AS_JSON
def failures(since: float, in_json: bool) -> None:
    """List failed jobs by their cause, the latest first.

    Jobs have one cause if their task, their exception, its message without numbers and names, and the place where it
    was raised are the same. Put a whole group back with: flask tasks retry --group ID
    """
    state = app_state()
    now = state.store.clock()
    groups = [failure_view(group) for group in browser().failures(now - round(since * 1000))]
    if in_json:
        for group in groups:
            click.echo(to_json(as_json(group)))
    elif groups:
        click.echo("\n".join(_group_table(groups, now)))
    else:
        tell(f"No job failed in the last {spoken(round(since * 1000))}.")
    if sum(group.count for group in groups) >= GROUPED:
        tell(f"These are the newest {counted(GROUPED)} failed jobs.")


def _group_table(groups: list[FailureView], now: int) -> list[str]:
    headers = ("group", "jobs", "last", "first", "task", "error", "place", "newest")
    rows = [
        (
            group.group,
            counted(group.count),
            f"{spoken(now - group.last_at)} ago",
            f"{spoken(now - group.first_at)} ago",
            group.task,
            _error_words(group.error),
            _ending(group.place or "", _LONGEST_PLACE),
            str(group.newest),
        )
        for group in groups
    ]
    return table(headers, rows, right={"jobs", "last", "first", "newest"})


def _ending(text: str, most: int) -> str:
    """Of a path the end says more than the beginning."""
    return text if len(text) <= most else f"…{text[-most:]}"
