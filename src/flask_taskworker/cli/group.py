"""What all commands share: exit codes, environment variables, completion, and types of values."""

from __future__ import annotations

import getpass
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import suppress
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import click
from click.shell_completion import CompletionItem
from flask import Flask, current_app
from flask.cli import ScriptInfo, with_appcontext

from ..commands import tasks_command
from ..core.clock import MAX_PERIOD
from ..core.filters import STATES, JobFilter
from ..core.tasks import check_name
from ..errors import (
    ArgumentsError,
    ConfigError,
    DeclarationError,
    JobNotFound,
    NotEncodable,
    SchemaError,
    StoreError,
    TaskNotFound,
    TaskWorkerError,
)
from ..ops.browse import Browser
from ..ops.operations import Operations
from ..ops.views import as_json
from ..state import AppState
from ..store.sql import Store
from ..store.sqlite.guard import refuse_open_to_all
from .text import safe, shortened, table, to_json

V = TypeVar("V")

ENVIRONMENT = "TASKER_CLI_"
"""How the environment variables of options begin; the command and the option follow."""

FAILED, USAGE, NOTHING, UNHEALTHY, SCHEMA, INCOMPLETE = 1, 2, 3, 4, 5, 6

_EXIT_CODES: tuple[tuple[type[TaskWorkerError], int], ...] = (
    (SchemaError, SCHEMA),
    (JobNotFound, NOTHING),
    (TaskNotFound, NOTHING),
    (ArgumentsError, USAGE),
    (NotEncodable, USAGE),
    (DeclarationError, USAGE),
    (ConfigError, USAGE),
)
CREATE = "flask tasks db init"
_LONGEST_ERROR = 1000
_COMPLETED = 50
_FILTER_KEYS = (
    *("schedule", "worker", "group", "lane", "unique", "uid", "id", "parent"),
    *("attempts", "after", "before", "discarded"),
)
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class TasksCommand(click.Command):
    """A command whose options can all be set in the environment and whose errors are one line each."""

    below = ""
    """What stands before the command's own name in those variables."""
    needs_tables = True
    """Whether the command fails where the database, or its tables, do not exist; it never creates them."""

    def __init__(self, name: str | None, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        for option in self.params:
            if isinstance(option, click.Option):
                word = next(word for word in option.opts if word.startswith("--"))
                option.envvar = f"{ENVIRONMENT}{self.below}{name}_{word[2:]}".replace("-", "_").upper()
                option.show_envvar = True

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. NO_COLOR (no-color.org) wins over a terminal."""
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        for stream in (sys.stdout, sys.stderr):
            # A task's name that the terminal's encoding lacks must not end the command.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            if self.needs_tables:
                with_appcontext(lambda: require_tables(require_worker()))()
            return super().invoke(ctx)
        except TaskWorkerError as error:
            tell(shortened(f"Error: {error}", _LONGEST_ERROR))
            ctx.exit(next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), FAILED))


class CreatingCommand(TasksCommand):
    """A command that creates the tables it needs, or needs none."""

    needs_tables = False


class MailCommand(TasksCommand):
    """One of ``flask mail``."""

    below = "mail_"


tasks_command.command_class = TasksCommand


AS_JSON = click.option("--json", "in_json", is_flag=True, help="Print one JSON object per line.")
LIMIT = click.option(
    "-n",
    "--limit",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    metavar="N",
    help="Maximum number of rows.",
)
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")


def print_list(
    views: Sequence[V],
    headers: Sequence[str],
    cells: Callable[[V], Sequence[str]],
    *,
    in_json: bool,
    right: Set[str] = frozenset(),
) -> None:
    """One JSON object a line, or a table; where there is nothing, nothing."""
    if in_json:
        for view in views:
            click.echo(to_json(as_json(view)))
    elif views:
        click.echo("\n".join(table(headers, [cells(view) for view in views], right=right)))


def app_state() -> AppState:
    """What the current app has of its TaskWorker. Raises StoreError where every user may write to the
    database."""
    state = require_worker()
    path = Path(state.config.database_uri.database or "")
    if state.config.driver == "sqlite" and path.is_file():
        refuse_open_to_all(path, path.stat().st_mode)
    return state


def require_worker() -> AppState:
    """As :func:`app_state`, whatever the database is like."""
    if "taskworker" not in current_app.extensions:
        raise click.ClickException("This app has no TaskWorker. Create one: task_worker = BackgroundTaskWorker(app)")
    return cast("AppState", current_app.extensions["taskworker"])


def require_tables(state: AppState) -> None:
    """Raise StoreError where the tables do not exist: the address may be mistyped, so looking must not create them."""
    if state.store.driver.schema_version() is None:
        where = state.config.database_uri.render_as_string(hide_password=True)
        raise StoreError(f"No tables found in {where}. Check TASKER_DATABASE_URI, or create them: {CREATE}")


def browser() -> Browser:
    """The current app's rows, for reading."""
    return Browser(app_state().store)


def operations() -> Operations:
    """What can be done to the current app's rows, in the name of the user who runs the command."""
    state = app_state()
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no name for this number, as in many containers
        user = f"user {os.getuid()}"
    return Operations(app, state.client, state.registry, who=f"{user} (flask tasks)")


def confirm(question: str, *, yes: bool) -> None:
    """Ask at a terminal, and end the command with 1 after a no. Elsewhere *yes* is needed: raises UsageError."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"{safe(question)} Cannot prompt (no terminal). Pass --yes to confirm.")
    if not click.confirm(safe(question), err=True):
        tell("Nothing was changed.")
        sys.exit(FAILED)


def tell(message: str) -> None:
    """Say something to the person at the terminal."""
    click.echo(safe(message), err=True)


# -- completion --------------------------------------------------------------------------------------------------------


Completion: TypeAlias = Callable[..., list[CompletionItem]]
"""What a parameter completes with, as click asks for it."""

if TYPE_CHECKING:
    ParamType: TypeAlias = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic only since click 8.4


def completing(names: Callable[[AppState, str], Collection[str]]) -> Completion:
    """What completes with these names; a mapping has notes beside them, in its own order.

    A database that cannot be read completes nothing: the command itself will say why.
    """

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        info = ctx.find_object(ScriptInfo)
        app: Flask = info.load_app() if info else current_app
        found: Collection[str] = ()
        with suppress(TaskWorkerError):
            found = names(app.extensions["taskworker"], incomplete)
        notes = found if isinstance(found, Mapping) else dict.fromkeys(sorted(set(found)))
        return [CompletionItem(name, help=note) for name, note in notes.items() if name.startswith(incomplete)]

    return complete


def known_queues(state: AppState) -> set[str]:
    """The queues that tasks and the configuration name. Jobs may go to others, with ``using(queue=…)``."""
    return {task.options.queue for task in state.registry} | set(state.config.queues or ())


def _filter_words(state: AppState, incomplete: str) -> list[str]:
    before = incomplete.removesuffix(incomplete.rpartition(" ")[2])
    words = [f"state:{name}" for name in STATES] + [f"{key}:" for key in _FILTER_KEYS]
    words += [f"task:{task.name}" for task in state.registry] + [f"queue:{name}" for name in known_queues(state)]
    return [before + word for word in words]


def _tables_of(state: AppState) -> Store:
    require_tables(state)
    return state.store


complete_task: Completion = completing(lambda state, _: [task.name for task in state.registry])
complete_queue: Completion = completing(lambda state, _: known_queues(state))
complete_filter: Completion = completing(_filter_words)
complete_schedule: Completion = completing(
    lambda state, _: [schedule.name for schedule in _tables_of(state).schedules()]
)
complete_mail: Completion = completing(
    lambda state, _: [row.id for row in Browser(_tables_of(state)).mails(limit=_COMPLETED).rows]
)


def complete_job_in(*states: str, discarded: bool = False) -> Completion:
    """Completes with the numbers of the newest jobs in these states, and their tasks and states."""
    chosen = JobFilter(states=states, discarded=discarded)

    def newest(state: AppState, _: str) -> dict[str, str]:
        found = [row.record for row in Browser(_tables_of(state)).jobs(chosen, limit=_COMPLETED).rows]
        return {str(job.id): f"{safe(job.task)} {job.state}" for job in found}

    return completing(newest)


complete_job: Completion = complete_job_in()


# -- values ------------------------------------------------------------------------------------------------------------


class QueueName(ParamType):
    """The name of a queue."""

    name = "queue"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it."""
        try:
            check_name("queue", value)
        except DeclarationError as error:
            self.fail(str(error), param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Those that are known."""
        return complete_queue(ctx, param, incomplete)


QUEUE = QueueName()


class Period(ParamType):
    """A period: seconds, or a number with s, m, h, d or w. The value is in seconds."""

    name = "seconds"

    def __init__(self, *, least: float = 0.0, hint: str = "") -> None:
        self._least = least
        self._hint = hint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        if isinstance(value, int | float):
            return float(value)
        found = _PERIOD.fullmatch(value.strip())
        if found is None:
            example = "Give seconds, or for example 30s, 5m, 2h or 1d."
            self.fail(f"{value!r} is not a period. {example}{self._hint}", param, ctx)
        seconds = float(found[1]) * _SECONDS[found[2]]
        if not self._least <= seconds <= MAX_PERIOD.total_seconds():
            self.fail(f"{value!r} is out of range. Give {self._least:g} s to {MAX_PERIOD.days} days.", param, ctx)
        return seconds


_TIME_OF_DAY = re.compile(r"\d\d:\d\d(:\d\d)?")


class Moment(ParamType):
    """A moment in ISO 8601 with its offset from UTC, or the next time of day on the clock of this machine."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it."""
        if isinstance(value, datetime):
            return value
        try:
            if _TIME_OF_DAY.fullmatch(value):
                now = datetime.now()  # noqa: DTZ005 - the clock on the wall
                next_one = datetime.combine(now, time.fromisoformat(value))
                return (next_one if next_one > now else next_one + timedelta(days=1)).astimezone()
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a moment. Give one such as 2026-05-01T12:00:00Z or 18:00.", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no offset from UTC. Add one, such as {moment.isoformat()}Z.", param, ctx)
        return moment
