"""The commands that steer: ``retry``, ``cancel``, ``discard``, ``restore``, ``pause``, ``resume`` and ``purge``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import click

from ..commands import tasks_command
from ..core.clock import from_ms
from ..core.filters import JobFilter
from ..core.tasks import MAX_NAME
from ..errors import JobNotFound, NotAccepted
from ..ops.operations import Operations, names_of
from .group import (
    FAILED,
    NOTHING,
    Period,
    app_state,
    browser,
    complete_filter,
    complete_job_in,
    complete_queue,
    confirm,
    known_queues,
    operations,
    tell,
)
from .text import plural

_IN_STATES = {
    "retry": ("failed", "cancelled"),
    "cancel": ("scheduled", "ready", "running"),
    "discard": ("scheduled", "ready", "succeeded", "failed", "cancelled"),
    "restore": ("scheduled", "ready", "succeeded", "failed", "cancelled"),
}
"""The states of jobs with which each act is possible."""

_REFUSALS = {
    "retry": "only failed and cancelled jobs can be tried again",
    "cancel": "it has finished already",
    "discard": "a running job cannot be put away, nor one that is put away",
    "restore": "it was not put away",
}


def _on_jobs(act: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The arguments that say on which jobs to act."""
    parameters = [
        click.argument(
            "job_ids",
            metavar="[ID]...",
            type=int,
            nargs=-1,
            shell_complete=complete_job_in(*_IN_STATES[act], hidden=act == "restore"),
        ),
        click.option(
            "--filter",
            "text",
            metavar="FILTER",
            shell_complete=complete_filter,
            help="All jobs that fit, in the language of flask tasks jobs.",
        ),
        click.option("--dry-run", is_flag=True, help="Print the numbers of the jobs, and leave them as they are."),
        click.option("--yes", is_flag=True, help="Do not ask."),
    ]
    if act in ("retry", "discard"):
        parameters.insert(2, click.option("--group", metavar="ID", help="All jobs of a group of flask tasks failures."))

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for parameter in reversed(parameters):
            command = parameter(command)
        return command

    return add


@tasks_command.command("retry")
@_on_jobs("retry")
def retry(**chosen: Any) -> None:
    """Put failed or cancelled jobs back into their queues.

    Their tries are counted anew. Prints the numbers of the jobs with which it was possible; with --filter and --group
    how many they are.
    """
    _act("retry", **chosen)


@tasks_command.command("cancel")
@_on_jobs("cancel")
def cancel(**chosen: Any) -> None:
    """Cancel waiting jobs, and ask running ones to stop.

    Prints the numbers of the jobs with which it was possible; with --filter how many they are.
    """
    _act("cancel", **chosen)


@tasks_command.command("discard")
@_on_jobs("discard")
def discard(**chosen: Any) -> None:
    """Put finished or waiting jobs away: they are shown no more, and those that waited do not run.

    They can be restored until they are pruned. Prints the numbers of the jobs with which it was possible; with
    --filter and --group how many they are.
    """
    _act("discard", **chosen)


@tasks_command.command("restore")
@_on_jobs("restore")
def restore(**chosen: Any) -> None:
    """Take discarded jobs back: those that waited wait again.

    Prints the numbers of the jobs with which it was possible; with --filter how many they are.
    """
    _act("restore", **chosen)


def _act(
    act: str, job_ids: tuple[int, ...], text: str | None, dry_run: bool, yes: bool, group: str | None = None
) -> None:
    if sum((bool(job_ids), text is not None, group is not None)) != 1:
        groups = ", or --group" if act in ("retry", "discard") else ""
        raise click.UsageError(f"Say which jobs: give their numbers, or --filter{groups}, and only one of these.")
    if job_ids:
        _on_each(act, tuple(dict.fromkeys(job_ids)), dry_run=dry_run)
    else:
        chosen = JobFilter(group=group) if text is None else _parsed(text)
        _on_all(act, _possible(act, chosen), dry_run=dry_run, yes=yes)


# -- by number ---------------------------------------------------------------------------------------------------------


def _on_each(act: str, job_ids: tuple[int, ...], *, dry_run: bool) -> None:
    """Do it to each job. Ends with 3 if that was possible with none of them, with 1 if only with some."""
    look = _look if dry_run else _do
    done = sum(look(act, job_id) for job_id in job_ids)
    if done < len(job_ids):
        sys.exit(FAILED if done else NOTHING)


def _do(act: str, job_id: int) -> bool:
    try:
        done = operations().act(act, job_id)
        found = browser().job(job_id)
    except (JobNotFound, NotAccepted) as error:
        tell(str(error))
        return False
    if not done:
        tell(f"Job {job_id} is {found.record.state}: {_REFUSALS[act]}.")
        return False
    click.echo(job_id)
    asked = found.record.state == "running" and act == "cancel"
    put_away = ", put away" if found.hidden else ""
    tell(f"Job {job_id} is {'asked to stop' if asked else found.record.state}{put_away}.")
    return True


def _look(act: str, job_id: int) -> bool:
    try:
        found = browser().job(job_id)
    except JobNotFound as error:
        tell(str(error))
        return False
    if found.record.state not in _IN_STATES[act] or bool(found.hidden) != (act == "restore"):
        tell(f"Job {job_id} is {found.record.state}: {_REFUSALS[act]}.")
        return False
    click.echo(job_id)
    return True


# -- by filter ---------------------------------------------------------------------------------------------------------


def _parsed(text: str) -> JobFilter:
    chosen = JobFilter.parse(text, app_state().store.clock())
    if not chosen:
        raise click.UsageError("The filter is empty. If you mean every job, say so: --filter 'task:*'")
    return chosen


def _possible(act: str, chosen: JobFilter) -> JobFilter | None:
    """The jobs among the *chosen* with which the act is possible; None where there can be none."""
    chosen = replace(chosen, hidden=act == "restore")
    if not chosen.states:
        return replace(chosen, states=_IN_STATES[act])
    # "retrying" is some of "scheduled".
    states = tuple(s for s in chosen.states if ("scheduled" if s == "retrying" else s) in _IN_STATES[act])
    return replace(chosen, states=states) if states else None


def _on_all(act: str, chosen: JobFilter | None, *, dry_run: bool, yes: bool) -> None:
    names = names_of(app_state().registry)
    before = browser().end()
    number = 0 if chosen is None else browser().count_all(chosen, before=before, names=names)
    if chosen is None or not number:
        tell(f"No job fits with which that is possible: {' or '.join(_IN_STATES[act])}.")
        sys.exit(NOTHING)
    if dry_run:
        total = _print_numbers(browser().ids(chosen, before=before, names=names))
        tell(f"{act.capitalize()} would take {plural(total, 'job')}. Nothing was done.")
        return
    confirm(f"{act.capitalize()} {plural(number, 'job')}?", yes=yes)
    # No job that came after the question is touched.
    done = operations().act_on_all(act, chosen, before=before, names=names)
    total = sum(with_progress(done, number, f"{act} "))
    click.echo(total)
    if not total:
        sys.exit(NOTHING)


def _print_numbers(batches: Iterable[list[int]]) -> int:
    total = 0
    for ids in batches:
        click.echo("\n".join(map(str, ids)))
        total += len(ids)
    return total


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
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True, shell_complete=complete_queue)
def pause(queues: tuple[str, ...]) -> None:
    """Have no worker take jobs from these queues until they are resumed.

    Running jobs go on, and jobs can be enqueued all the time.
    """
    _check_names(queues)
    for name in queues:
        if name not in known_queues(app_state()):
            tell(f"Note: no task names the queue {name!r}.")
        operations().pause_queue(name)
        tell(f"Queue {name!r} is paused.")


@tasks_command.command("resume")
@click.argument("queues", metavar="QUEUE...", nargs=-1, required=True, shell_complete=complete_queue)
def resume(queues: tuple[str, ...]) -> None:
    """Have workers take jobs from paused queues again.

    Exits with 3 if none of them was paused, with 1 if only some were.
    """
    _check_names(queues)
    done = sum(_resume(operations(), name) for name in dict.fromkeys(queues))
    if done < len(set(queues)):
        sys.exit(FAILED if done else NOTHING)


def _resume(steer: Operations, name: str) -> bool:
    resumed = steer.resume_queue(name)
    tell(f"Queue {name!r} is {'resumed' if resumed else 'not paused'}.")
    return resumed


def _check_names(queues: Iterable[str]) -> None:
    for name in queues:
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise click.UsageError(f"{name!r:.300} is no queue: a name has 1 to {MAX_NAME} printable characters.")


# -- purge -------------------------------------------------------------------------------------------------------------


@tasks_command.command("purge")
@click.option(
    "--done-before",
    "age",
    type=Period(),
    required=True,
    metavar="PERIOD",
    help="Those that ended longer ago than this: 12h, 7d.",
)
@click.option("--dry-run", is_flag=True, help="Print how many there are, and leave them as they are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(age: float, dry_run: bool, yes: bool) -> None:
    """Delete finished jobs for good, and print how many they were.

    Workers do so by themselves when the time in TASKER_KEEP_SUCCEEDED and TASKER_KEEP_FAILED is over. It goes in small
    batches, so that workers get at the database between them; stopped halfway, it can be started again.
    """
    before = app_state().store.clock() - round(age * 1000)
    total = sum(operations().purgeable(before))
    if not total:
        tell("No job ended before that.")
        sys.exit(NOTHING)
    if dry_run:
        tell("Nothing was done.")
    else:
        moment = f"{from_ms(before):%Y-%m-%d %H:%M:%S} UTC"
        confirm(f"Delete {plural(total, 'job')} that ended before {moment}?", yes=yes)
        total = sum(with_progress(operations().purge(before), total, "purge "))
    click.echo(total)
