"""``flask tasks jobs`` and ``flask tasks failures``: lists of jobs."""

from __future__ import annotations

import sys
import time

import click

from ..commands import tasks_command
from ..core.filters import JobFilter
from ..core.words import counted, spoken
from ..ops.browse import GROUPED
from ..ops.views import ErrorView, FailureView, JobView, job_view
from .group import AS_JSON, INCOMPLETE, LIMIT, NOTHING, Period, app_state, browser, complete_filter, print_list, tell

_LONGEST_ERROR = 60
_LONGEST_PLACE = 40
_PATIENCE = 2.0
"""Seconds to search for the first job that fits."""


# -- jobs --------------------------------------------------------------------------------------------------------------


@tasks_command.command("jobs")
@click.argument("words", metavar="[FILTER]...", nargs=-1, shell_complete=complete_filter)
@LIMIT
@click.option("--before", type=click.IntRange(1), metavar="ID", help="Only jobs older than this one: the next page.")
@AS_JSON
def list_jobs(words: tuple[str, ...], limit: int, before: int | None, in_json: bool) -> None:
    """List jobs, newest first.

    FILTER selects them, for example: state:failed task:'mail.*' queue:web args.user_id:42 after:-1h. Also attempts:3,
    schedule:NAME, worker:ID, lane:shop:7, group:ID, parent:ID, unique:KEY, uid:UID and discarded:yes. Exits with 3 if
    no job matches, with 6 if the search stopped before it had seen all jobs: continue with --before.
    """
    state = app_state()
    chosen = JobFilter.parse(" ".join(words), state.store.clock())
    deadline = time.monotonic() + _PATIENCE
    page = browser().jobs(chosen, limit=limit, before=before, names=state.registry.parameters_of)
    # Each page looks at a bounded number of rows; the first that has something is wanted.
    while not page.rows and page.older is not None and time.monotonic() < deadline:
        page = browser().jobs(chosen, limit=limit, before=page.older, names=state.registry.parameters_of)
    jobs = [job_view(row) for row in page.rows]
    headers, now = ("job", "task", "state", "queue", "try", "age", "took", "error"), state.store.clock()
    right = {"job", "try", "age", "took"}
    print_list(jobs, headers, lambda job: _cells(job, now), in_json=in_json, right=right)
    if page.older is not None:
        tell(f"{f'Searched down to job {page.older}. ' if page.searched_out else ''}Older jobs: --before {page.older}")
    elif not jobs:
        tell("No job matches the filter." if chosen else "No jobs yet. Enqueue one: flask tasks call NAME")
    if not jobs and chosen:
        sys.exit(NOTHING if page.older is None else INCOMPLETE)


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
    "--since", type=Period(), default="24h", show_default=True, metavar="PERIOD", help="How far back to look: 1h, 7d."
)
@AS_JSON
def failures(since: float, in_json: bool) -> None:
    """List failed jobs by cause, latest first.

    Jobs have the same cause if they have the same task, exception, message (numbers and names aside) and place where it
    was raised. Retry a whole group with: flask tasks retry --group ID
    """
    state = app_state()
    now = state.store.clock()
    groups = [group for group, _ in browser().failures(now - round(since * 1000))]
    headers = ("group", "jobs", "last", "first", "task", "error", "place", "newest")
    right = {"jobs", "last", "first", "newest"}
    print_list(groups, headers, lambda group: _group_cells(group, now), in_json=in_json, right=right)
    if not groups and not in_json:
        tell(f"No job failed in the last {spoken(round(since * 1000))}.")
    if sum(group.count for group in groups) >= GROUPED:
        tell(f"Only the newest {counted(GROUPED)} failed jobs were grouped.")


def _group_cells(group: FailureView, now: int) -> tuple[str, ...]:
    place = group.place or ""
    return (
        group.group,
        counted(group.count),
        f"{spoken(now - group.last_at)} ago",
        f"{spoken(now - group.first_at)} ago",
        group.task,
        _error_words(group.error),
        # Of a path the end says more than the beginning.
        place if len(place) <= _LONGEST_PLACE else f"…{place[-_LONGEST_PLACE:]}",
        str(group.newest),
    )
