"""``flask tasks schedule …``: list, run, pause and resume schedules."""

from __future__ import annotations

import sys

import click
from flask.cli import AppGroup

from ..commands import tasks_command
from ..core.clock import from_ms
from ..core.triggers import upcoming
from ..core.words import spoken
from ..ops.controls import schedule_rows
from ..ops.status import LAST_RUNS
from ..ops.views import ScheduleView, schedule_view, trigger_of
from ..state import AppState
from ..store.sql import ScheduleRow
from .group import AS_JSON, NOTHING, TasksCommand, app_state, browser, complete_schedule, operations, print_list, tell
from .text import moment, table, to_json

_MOST = 10_000


class _ScheduleCommand(TasksCommand):
    below = "schedule_"


class _ScheduleGroup(AppGroup):
    command_class = _ScheduleCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order in which they were declared."""
        return list(self.commands)


_NAME = click.argument("name", shell_complete=complete_schedule)


@tasks_command.group("schedule", cls=_ScheduleGroup)
def schedule_command() -> None:
    """List, run, pause, resume, skip and remove schedules."""


# -- list --------------------------------------------------------------------------------------------------------------


@schedule_command.command("list")
@AS_JSON
def list_schedules(in_json: bool) -> None:
    """List schedules, with what they mean, when they last fired and when they fire next.

    Schedules declared in code are stored when a worker first starts with it.
    """
    state = app_state()
    now, schedules = state.store.clock(), schedule_rows(state)
    runs = browser().schedule_runs([schedule.name for schedule in schedules], LAST_RUNS)
    found = [schedule_view(schedule, now, runs.get(schedule.name, ())) for schedule in schedules]
    headers = ("schedule", "task", "when", "meaning", "last", "next", "state")
    print_list(found, headers, lambda schedule: _cells(schedule, now), in_json=in_json)
    if not found and not in_json:
        tell("No schedules yet. Declare one: @task_worker.task(schedule=Cron('0 3 * * *'))")


def _cells(schedule: ScheduleView, now: int) -> tuple[str, ...]:
    return (
        schedule.name,
        schedule.task,
        schedule.when,
        schedule.explained or "",
        moment(schedule.last_at) or "never",
        next_words(schedule, now),
        schedule.state,
    )


def next_words(schedule: ScheduleView, now: int) -> str:
    """When it fires next: "in 3 h", "late by 5 min", "never again"."""
    if schedule.late_ms:
        return f"late by {spoken(schedule.late_ms)}"
    if schedule.paused or schedule.next_at is None:
        return "paused" if schedule.paused else "never again"
    return next_in(schedule, now) + ("" if schedule.is_stored else ", once a worker has started")


def next_in(schedule: ScheduleView, now: int) -> str:
    """How far off its next time is: "in 3 h"."""
    return f"in {spoken((schedule.next_at or now) - now)}"


# -- next --------------------------------------------------------------------------------------------------------------


@schedule_command.command("next")
@_NAME
@click.option(
    "-n", "--limit", type=click.IntRange(1, _MOST), default=10, show_default=True, metavar="N", help="How many times."
)
@AS_JSON
def show_next(name: str, limit: int, in_json: bool) -> None:
    """Show the next times at which a schedule fires, in UTC and in its own zone.

    With a note where the clock changes.
    """
    state = app_state()
    schedule = _find(state, name)
    trigger = trigger_of(schedule)
    if trigger is None:
        raise click.ClickException(f"The schedule {name!r} was stored by another version and cannot be read.")
    now = state.store.clock()
    # What was skipped is not shown.
    after = now if schedule.next_at is None else max(now, schedule.next_at - 1)
    found = upcoming(trigger, from_ms(after), limit)
    if in_json:
        for fire in found:
            click.echo(to_json({"at": fire.at, "local": fire.local, "notes": fire.notes}))
        return
    view = schedule_view(schedule, now)
    tell(" ".join(filter(None, (view.when, view.explained))))
    rows = [(f"{f.at:%Y-%m-%d %H:%M:%S}", f"{f.local:%a %Y-%m-%d %H:%M:%S %Z}", " ".join(f.notes)) for f in found]
    if rows:
        click.echo("\n".join(table(("UTC", view.zone, "note"), rows)))
    if view.paused:
        tell("It is paused: it fires at none of them until you resume it.")
    if len(found) < limit:
        tell("Then never again." if found else "It never fires again.")


def _find(state: AppState, name: str) -> ScheduleRow:
    for schedule in schedule_rows(state):
        if schedule.name == name:
            return schedule
    tell(f"No schedule is named {name!r}. List them: flask tasks schedule list")
    sys.exit(NOTHING)


# -- acts --------------------------------------------------------------------------------------------------------------


@schedule_command.command("run")
@_NAME
def run_schedule(name: str) -> None:
    """Enqueue the job of a schedule now, in addition to its times, and print its number."""
    _require_stored(name)
    job = operations().run_schedule(name)
    click.echo(job.id)
    tell(f"Job {job.id} of {job.task} is {job.state}.")


@schedule_command.command("pause")
@_NAME
def pause_schedule(name: str) -> None:
    """Pause a schedule: it does not fire until you resume it. Exits with 3 if it was paused."""
    _require_stored(name)
    if not operations().pause_schedule(name):
        tell(f"The schedule {name!r} is paused already.")
        sys.exit(NOTHING)
    tell(f"The schedule {name!r} is paused.")


@schedule_command.command("resume")
@_NAME
def resume_schedule(name: str) -> None:
    """Resume a paused schedule from its next time on. Exits with 3 if it was not paused.

    Times that passed meanwhile are not made up for.
    """
    _require_stored(name)
    if not operations().resume_schedule(name):
        tell(f"The schedule {name!r} is not paused.")
        sys.exit(NOTHING)
    _tell_next(name)


@schedule_command.command("skip")
@_NAME
def skip_schedule(name: str) -> None:
    """Skip the next time at which a schedule fires."""
    if _require_stored(name).next_at is None:
        tell(f"The schedule {name!r} never fires again.")
        sys.exit(NOTHING)
    operations().skip_next(name)
    _tell_next(name)


@schedule_command.command("remove")
@_NAME
def remove_schedule(name: str) -> None:
    """Remove a schedule that was made at run time. One that the code declares ends when it is removed there."""
    _require_stored(name)
    operations().remove_schedule(name)
    tell(f"The schedule {name!r} is removed. Its jobs stay.")


def _require_stored(name: str) -> ScheduleRow:
    state = app_state()
    schedule = _find(state, name)
    if not schedule.source:
        tell(f"The schedule {name!r} is declared, and stored when a worker first starts: flask tasks run")
        sys.exit(NOTHING)
    return schedule


def _tell_next(name: str) -> None:
    next_at = _find(app_state(), name).next_at
    tell(f"The schedule {name!r} {f'fires next at {moment(next_at)}' if next_at else 'never fires again'}.")
