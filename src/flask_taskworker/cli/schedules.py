"""``flask tasks schedule …``: what fires when, and stopping it from doing so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click
from flask.cli import AppGroup

from ..commands import tasks_command
from ..core.clock import from_ms, to_ms
from ..core.triggers import At, Cron, Every, describe, trigger_from_text, trigger_to_text
from ..core.words import spoken
from ..errors import NotDecodable
from ..store.sql import ScheduleRow
from .group import AS_JSON, NOTHING, TasksCommand, app_state, browser, complete_schedule, operations, tell
from .text import iso, moment, moment_in, odd_fields, table, to_json

if TYPE_CHECKING:
    from ..state import AppState

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
    """Look at schedules, run, pause and resume them."""


# -- list --------------------------------------------------------------------------------------------------------------


@schedule_command.command("list")
@AS_JSON
def list_schedules(as_json: bool) -> None:
    """List all schedules: what they mean, when they have fired last and when they fire next.

    Those that the code declares are stored when a worker first starts with it.
    """
    state = app_state()
    found = [*browser().schedules(), *_not_stored(state)]
    now = state.store.clock()
    if as_json:
        for schedule in found:
            click.echo(to_json(_fields(schedule)))
    elif found:
        headers = ("schedule", "task", "when", "meaning", "last", "next", "state")
        click.echo("\n".join(table(headers, [_cells(schedule, now) for schedule in found])))
    else:
        tell("There is no schedule. Declare one: @task_worker.task(schedule=Cron('0 3 * * *'))")


def _not_stored(state: AppState) -> Iterator[ScheduleRow]:
    """The schedules that the code declares and no worker has stored yet."""
    stored = {schedule.name for schedule in state.store.schedules()}
    now = from_ms(state.store.clock())
    for task in sorted(state.registry, key=lambda task: task.name):
        for declared in task.declared_schedules():
            if declared.name not in stored:
                following = declared.trigger.next_after(now)
                next_at = None if following is None else to_ms(following)
                text = trigger_to_text(declared.trigger)
                yield ScheduleRow(declared.name, declared.task, text, declared.args, next_at, None, 0, "")


def _cells(schedule: ScheduleRow, now: int) -> tuple[str, ...]:
    trigger = _read(schedule)
    return (
        schedule.name,
        schedule.task,
        "cannot be read by this version" if trigger is None else describe(trigger),
        _meaning(trigger) or "",
        moment_in(schedule, "last_at") or "never",
        moment_in(schedule, "next_at") or "never",
        _state(schedule, now),
    )


def _state(schedule: ScheduleRow, now: int) -> str:
    if schedule.paused:
        return "paused"
    if schedule.is_unclear:
        return "?"
    if schedule.next_at is None:
        return "ended"
    if schedule.next_at < now:
        return f"late for {spoken(now - schedule.next_at)}"
    return f"in {spoken(schedule.next_at - now)}{'' if schedule.source else ', once a worker has started'}"


def _read(schedule: ScheduleRow) -> Cron | Every | At | None:
    try:
        return trigger_from_text(schedule.trigger)
    except NotDecodable:
        # Stored by a later version of the code.
        return None


def _meaning(trigger: Cron | Every | At | None) -> str | None:
    return trigger.explain() if isinstance(trigger, Cron) else None


def _fields(schedule: ScheduleRow) -> dict[str, Any]:
    trigger = _read(schedule)
    return {
        "name": schedule.name,
        "task": schedule.task,
        "when": None if trigger is None else describe(trigger),
        "explained": _meaning(trigger),
        "last_at": iso(schedule.last_at),
        "next_at": iso(schedule.next_at),
        "paused": bool(schedule.paused),
        "source": schedule.source or None,
        **odd_fields(schedule),
    }


# -- next --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Fire:
    """One time at which a schedule fires."""

    at: datetime
    """In UTC."""
    local: datetime
    """On the schedule's own clock."""
    note: str | None
    """What the change of that clock does to it."""


@schedule_command.command("next")
@_NAME
@click.option(
    "-n", "--number", type=click.IntRange(1, _MOST), default=10, show_default=True, metavar="N", help="How many."
)
@AS_JSON
def show_next(name: str, number: int, as_json: bool) -> None:
    """Show the next times at which a schedule fires, in UTC and in its own zone.

    With a note where a clock goes forward or back.
    """
    state = app_state()
    schedule = _find(state, name)
    trigger = _read(schedule)
    if trigger is None:
        raise click.ClickException(f"The schedule {name!r} was stored by another version and cannot be read.")
    found = list(fires(trigger, _start(schedule, state), number))
    if as_json:
        for fire in found:
            click.echo(to_json({"at": fire.at, "local": fire.local, "note": fire.note}))
        return
    tell(" ".join(filter(None, (describe(trigger), _meaning(trigger)))))
    zone = _zone(trigger)
    rows = [(f"{f.at:%Y-%m-%d %H:%M:%S}", f"{f.local:%a %Y-%m-%d %H:%M:%S %Z}", f.note or "") for f in found]
    if rows:
        click.echo("\n".join(table(("UTC", str(zone), "note"), rows)))
    if schedule.paused:
        tell("It is paused, and fires at none of them until it is resumed.")
    if len(found) < number:
        tell("Then never again." if found else "It fires never again.")


def _start(schedule: ScheduleRow, state: AppState) -> datetime:
    """The moment after which to look: what was skipped is not shown."""
    now = state.store.clock()
    return from_ms(now if schedule.next_at is None else max(now, schedule.next_at - 1))


def _find(state: AppState, name: str) -> ScheduleRow:
    for schedule in (*state.store.schedules(), *_not_stored(state)):
        if schedule.name == name:
            return schedule
    tell(f"There is no schedule {name!r}. These are: flask tasks schedule list")
    sys.exit(NOTHING)


def _zone(trigger: Cron | Every | At) -> ZoneInfo:
    return ZoneInfo(trigger.timezone if isinstance(trigger, Cron) else "UTC")


def fires(trigger: Cron | Every | At, after: datetime, number: int) -> Iterator[Fire]:
    """The next *number* times after *after*, with what the change of clocks does to them."""
    zone = _zone(trigger)
    before = after.astimezone(zone)
    for _ in range(number):
        following = trigger.next_after(after)
        if following is None:
            return
        local = following.astimezone(zone)
        yield Fire(at=following.astimezone(UTC), local=local, note=_note(trigger, before, local))
        after, before = following, local


def _note(trigger: Cron | Every | At, before: datetime, local: datetime) -> str | None:
    """What is to be known about a time on the wall clock."""
    notes = []
    change = _offset(local) - _offset(before)
    if change:
        notes.append(f"the clock has gone {'forward' if change > timedelta(0) else 'back'} {_minutes(abs(change))}")
    if isinstance(trigger, Cron) and not _is_on(trigger, local):
        notes.append("its own time does not exist on that day")
    if _offset(local.replace(fold=0)) != _offset(local.replace(fold=1)) and _exists(local):
        notes.append(f"the {'second' if local.fold else 'first'} of two such times")
    return ", ".join(notes) or None


def _offset(moment: datetime) -> timedelta:
    return moment.utcoffset() or timedelta(0)


def _minutes(change: timedelta) -> str:
    return spoken(round(change.total_seconds() * 1000))


def _exists(local: datetime) -> bool:
    return local.astimezone(UTC).astimezone(local.tzinfo).replace(tzinfo=None) == local.replace(tzinfo=None)


def _is_on(trigger: Cron, local: datetime) -> bool:
    """Whether the expression has that time on the wall clock; spring moves those that it leaves out."""
    wall = local.replace(tzinfo=UTC)
    return Cron(trigger.expression).next_after(wall - timedelta(seconds=1)) == wall


# -- acts --------------------------------------------------------------------------------------------------------------


@schedule_command.command("run")
@_NAME
def run_schedule(name: str) -> None:
    """Enqueue the job of a schedule now, besides its times, and print its number."""
    _require_stored(name)
    job = operations().run_schedule(name)
    click.echo(job.id)
    tell(f"Job {job.id} of {job.task} is {job.state}.")


@schedule_command.command("pause")
@_NAME
def pause_schedule(name: str) -> None:
    """Have a schedule fire no more until it is resumed. Exits with 3 if it was paused."""
    _require_stored(name)
    if not operations().pause_schedule(name):
        tell(f"The schedule {name!r} is paused already.")
        sys.exit(NOTHING)
    tell(f"The schedule {name!r} is paused.")


@schedule_command.command("resume")
@_NAME
def resume_schedule(name: str) -> None:
    """Have a paused schedule fire again, from its next time on. Exits with 3 if it was not paused.

    What it would have fired meanwhile is not made up for.
    """
    _require_stored(name)
    if not operations().resume_schedule(name):
        tell(f"The schedule {name!r} is not paused.")
        sys.exit(NOTHING)
    _tell_next(name)


@schedule_command.command("skip")
@_NAME
def skip_schedule(name: str) -> None:
    """Leave out the next time at which a schedule fires."""
    if _require_stored(name).next_at is None:
        tell(f"The schedule {name!r} fires never again.")
        sys.exit(NOTHING)
    operations().skip_next(name)
    _tell_next(name)


def _require_stored(name: str) -> ScheduleRow:
    state = app_state()
    schedule = _find(state, name)
    if not schedule.source:
        tell(f"The schedule {name!r} is declared, and stored when a worker first starts: flask tasks run")
        sys.exit(NOTHING)
    return schedule


def _tell_next(name: str) -> None:
    next_at = _find(app_state(), name).next_at
    tell(f"The schedule {name!r} fires next {f'at {moment(next_at)}' if next_at else 'never again'}.")
