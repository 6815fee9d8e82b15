"""The commands that change jobs and queues: retry, cancel, discard, restore, pause, resume and purge."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import click

from ..commands import tasks_command
from ..core.clock import to_ms
from ..core.filters import JobFilter
from ..core.words import stamp
from ..errors import ArgumentsError, DeclarationError, JobFinished, JobNotFound, NotAccepted, StepError
from ..ops.operations import FITTING, is_possible
from ..ops.views import job_view
from .group import (
    FAILED,
    NOTHING,
    QUEUE,
    YES,
    Moment,
    Period,
    app_state,
    browser,
    complete_filter,
    complete_job_in,
    confirm,
    known_queues,
    operations,
    tell,
)
from .text import moment, plural

_REFUSALS = {
    "retry": "only failed and cancelled jobs can be retried",
    "cancel": "it has already finished",
    "discard": "a job that runs or is discarded already cannot be discarded",
    "restore": "it was not discarded",
    "run": "only a job that is scheduled, for later or for its next try, can be run now",
}


def _on_jobs(act: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The arguments that say on which jobs to act."""
    parameters = [
        click.argument(
            "job_ids",
            metavar="[ID]...",
            type=int,
            nargs=-1,
            shell_complete=complete_job_in(*FITTING[act], discarded=act == "restore"),
        ),
        click.option(
            "--filter",
            "text",
            metavar="FILTER",
            shell_complete=complete_filter,
            help="All jobs that match, in the language of flask tasks jobs.",
        ),
        click.option("--dry-run", is_flag=True, help="Print the numbers of the jobs and change nothing."),
        YES,
    ]
    if act in ("retry", "discard"):
        parameters.insert(
            2, click.option("--group", metavar="ID", help="All jobs of a group from flask tasks failures.")
        )

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for parameter in reversed(parameters):
            command = parameter(command)
        return command

    return add


@tasks_command.command("retry")
@_on_jobs("retry")
@click.option("--following", is_flag=True, help="With ID: also the jobs that were cancelled because of it.")
@click.option("--fresh", is_flag=True, help="With ID: forget its steps, so that it begins from its beginning.")
def retry(**chosen: Any) -> None:
    """Retry failed or cancelled jobs, with a new count of tries.

    Prints the numbers of the retried jobs; with --filter and --group how many there were.
    """
    _act("retry", **chosen)


@tasks_command.command("cancel")
@_on_jobs("cancel")
def cancel(**chosen: Any) -> None:
    """Cancel waiting jobs and ask running ones to stop.

    Prints the numbers of these jobs; with --filter how many there were.
    """
    _act("cancel", **chosen)


@tasks_command.command("discard")
@_on_jobs("discard")
def discard(**chosen: Any) -> None:
    """Discard jobs: hide finished ones, cancel waiting ones. Undo with restore.

    You can restore them until they are pruned. Prints the numbers of the discarded jobs; with --filter and --group how
    many there were.
    """
    _act("discard", **chosen)


@tasks_command.command("restore")
@_on_jobs("restore")
def restore(**chosen: Any) -> None:
    """Restore discarded jobs: those that waited wait again.

    Prints the numbers of the restored jobs; with --filter how many there were.
    """
    _act("restore", **chosen)


@tasks_command.command("run-now")
@_on_jobs("run")
def run_now(**chosen: Any) -> None:
    """Have scheduled jobs run now: those that are delayed, and those that wait for their next try.

    Prints the numbers of these jobs; with --filter how many there were.
    """
    _act("run", **chosen)


def _act(
    act: str,
    job_ids: tuple[int, ...],
    text: str | None,
    dry_run: bool,
    yes: bool,
    group: str | None = None,
    following: bool = False,
    fresh: bool = False,
) -> None:
    if sum((bool(job_ids), text is not None, group is not None)) != 1:
        groups = ", or --group" if act in ("retry", "discard") else ""
        raise click.UsageError(f"Say which jobs: give their numbers, or --filter{groups}, and only one of these.")
    options = {name: True for name, given in (("following", following), ("fresh", fresh)) if given}
    if options and not job_ids:
        raise click.UsageError(f"--{next(iter(options))} is for jobs by number.")
    if job_ids:
        each = dict.fromkeys(job_ids)
        done = sum(_look(act, job_id) if dry_run else _do(act, job_id, options) for job_id in each)
        if done < len(each):
            sys.exit(FAILED if done else NOTHING)
        return
    chosen = JobFilter(group=group) if text is None else JobFilter.parse(text, app_state().store.clock())
    if not chosen:
        raise click.UsageError("The filter is empty. If you mean every job, say so: --filter 'task:*'")
    _act_on_all(act, possible(act, chosen), dry_run=dry_run, yes=yes)


@tasks_command.command("tell")
@click.argument("job_id", metavar="ID", type=int, shell_complete=complete_job_in("scheduled", "running"))
@click.argument("name")
@click.argument("value", metavar="[JSON]", default="null")
def tell_job(job_id: int, name: str, value: str) -> None:
    """Tell a job that waits for a notice, or will.

    NAME is what the job waits for, JSON the value that it gets: null without one. Exits with 3 if the job has ended.
    """
    try:
        told = json.loads(value)
    except ValueError as error:
        raise click.UsageError(f"{value!r} is not JSON: {error}. Text needs quotes: '\"yes\"'") from None
    try:
        operations().tell(job_id, name, told)
    except (JobNotFound, JobFinished) as error:
        tell(str(error))
        sys.exit(NOTHING)
    except StepError as error:
        raise click.UsageError(str(error)) from None
    tell(f"Job {job_id} has the notice {name!r}.")


@tasks_command.command("change")
@click.argument("job_id", metavar="ID", type=int, shell_complete=complete_job_in("scheduled", "held", "ready"))
@click.option(
    "--at", "run_at", type=Moment(), metavar="MOMENT", help="Run it at this time: 18:00, 2026-05-01T12:00:00Z."
)
@click.option("--queue", metavar="QUEUE", type=QUEUE, help="Put it into this queue.")
@click.option("--priority", type=int, metavar="N", help="Give it this priority; higher runs first.")
def change(job_id: int, **changes: Any) -> None:
    """Change a job that no worker has taken yet.

    Exits with 3 if one has. Its arguments are changed in Python: task_worker.get_job(ID).change(args=…).
    """
    if all(value is None for value in changes.values()):
        raise click.UsageError("Give what is to be changed: --at, --queue or --priority.")
    try:
        done = operations().change(job_id, **changes)
    except JobNotFound as error:
        tell(str(error))
        sys.exit(NOTHING)
    except (ArgumentsError, DeclarationError) as error:
        raise click.UsageError(str(error)) from None
    tell(f"Job {job_id} is {'changed' if done else 'not changed: a worker has taken it, or it has ended'}.")
    if not done:
        sys.exit(NOTHING)


# -- by number ---------------------------------------------------------------------------------------------------------


def _do(act: str, job_id: int, options: Mapping[str, bool]) -> bool:
    try:
        done = operations().act(act, job_id, **options)
        found = browser().job(job_id)
    except (JobNotFound, NotAccepted) as error:
        tell(str(error))
        return False
    if not done:
        tell(f"Job {job_id} is {found.record.state}: {_REFUSALS[act]}.")
        return False
    click.echo(job_id)
    asked = found.record.state == "running" and act == "cancel"
    discarded = ", discarded" if found.discarded else ""
    tell(f"Job {job_id} is {'asked to stop' if asked else found.record.state}{discarded}.")
    return True


def _look(act: str, job_id: int) -> bool:
    try:
        found = browser().job(job_id)
    except JobNotFound as error:
        tell(str(error))
        return False
    if not is_possible(act, job_view(found)):
        tell(f"Job {job_id} is {found.record.state}: {_REFUSALS[act]}.")
        return False
    click.echo(job_id)
    return True


# -- by filter ---------------------------------------------------------------------------------------------------------


def possible(act: str, chosen: JobFilter) -> JobFilter | None:
    """The jobs among the *chosen* with which the act is possible; None where there can be none."""
    chosen = replace(chosen, discarded=act == "restore")
    if not chosen.states:
        return replace(chosen, states=FITTING[act])
    # "retrying" and "waiting" are some of "scheduled".
    states = tuple(s for s in chosen.states if ("scheduled" if s in ("retrying", "waiting") else s) in FITTING[act])
    return replace(chosen, states=states) if states else None


def _act_on_all(act: str, chosen: JobFilter | None, *, dry_run: bool, yes: bool) -> None:
    names = app_state().registry.parameters_of
    before = browser().end()
    number = 0 if chosen is None else browser().count_all(chosen, before=before, names=names)
    if chosen is None or not number:
        tell(f"No job matches in a state that allows this: {' or '.join(FITTING[act])}.")
        sys.exit(NOTHING)
    if dry_run:
        for ids in browser().ids(chosen, before=before, names=names):
            click.echo("\n".join(map(str, ids)))
        tell(f"{act.capitalize()} would change {plural(number, 'job')}. Nothing was changed.")
        return
    confirm(f"{act.capitalize()} {plural(number, 'job')}?", yes=yes)
    # No job that came after the question is touched.
    done = operations().act_on_all(act, chosen, before=before, names=names)
    total = sum(with_progress(done, number, f"{act} "))
    click.echo(total)
    if not total:
        sys.exit(NOTHING)


def with_progress(batches: Iterable[int], number: int, label: str) -> Iterator[int]:
    """Pass on *batches*, the sizes of what is done, and show on a terminal how far of *number* that is."""
    if not sys.stderr.isatty():
        yield from batches
        return
    with click.progressbar(length=max(1, number), label=label, file=sys.stderr) as bar:
        for size in batches:
            bar.update(size)
            yield size


# -- queues ------------------------------------------------------------------------------------------------------------


@tasks_command.command("pause")
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True, type=QUEUE)
@click.option("--until", type=Moment(), metavar="MOMENT", help="Resume them then: 18:00, 2026-05-01T12:00:00Z.")
def pause(queues: tuple[str, ...], until: datetime | None) -> None:
    """Pause queues. Running jobs finish; no new jobs start.

    Jobs can still be enqueued.
    """
    for name in queues:
        if name not in known_queues(app_state()):
            tell(f"Note: no task uses the queue {name!r}.")
        operations().pause_queue(name, until)
        tell(f"Queue {name!r} is paused{'' if until is None else f' until {moment(to_ms(until))}'}.")


@tasks_command.command("resume")
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True, type=QUEUE)
def resume(queues: tuple[str, ...]) -> None:
    """Resume paused queues.

    Exits with 3 if none of them was paused, with 1 if only some were.
    """
    done = 0
    for name in dict.fromkeys(queues):
        resumed = operations().resume_queue(name)
        done += resumed
        tell(f"Queue {name!r} is {'resumed' if resumed else 'not paused'}.")
    if done < len(set(queues)):
        sys.exit(FAILED if done else NOTHING)


# -- purge -------------------------------------------------------------------------------------------------------------


@tasks_command.command("purge")
@click.option(
    "--done-before",
    "age",
    type=Period(),
    required=True,
    metavar="PERIOD",
    help="Jobs that ended longer ago than this: 12h, 7d.",
)
@click.option("--dry-run", is_flag=True, help="Print how many there are and change nothing.")
@YES
def purge(age: float, dry_run: bool, yes: bool) -> None:
    """Delete finished jobs for good and print how many there were.

    Workers do this by themselves after TASKER_KEEP_SUCCEEDED and TASKER_KEEP_FAILED. It works in small batches, so that
    workers can use the database between them; you can stop it and start it again.
    """
    before = app_state().store.clock() - round(age * 1000)
    total = sum(operations().purgeable(before))
    if not total:
        tell("No job ended before that.")
        sys.exit(NOTHING)
    if dry_run:
        tell("Nothing was changed.")
    else:
        confirm(f"Delete {plural(total, 'job')} that ended before {stamp(before)}?", yes=yes)
        total = sum(with_progress(operations().purge(before), total, "purge "))
    click.echo(total)
