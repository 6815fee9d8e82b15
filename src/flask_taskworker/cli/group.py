"""What all commands share: the group, exit codes, environment variables, completion, and types of values."""

from __future__ import annotations

import os
import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import click
from click.shell_completion import CompletionItem
from flask import Flask, current_app
from flask.cli import AppGroup, ScriptInfo

from ..clock import MAX_PERIOD
from ..errors import (
    ArgumentsError,
    ConfigError,
    DeclarationError,
    JobNotFound,
    NotEncodable,
    SchemaError,
    TaskNotFound,
    TaskWorkerError,
)
from .text import safe, shortened

if TYPE_CHECKING:
    from ..extension import AppState
    from ..tasks import Task

ENVIRONMENT = "TASKER_CLI_"
"""How the environment variables of options begin; the command and the option follow."""

FAILED, USAGE, NOTHING, UNHEALTHY, SCHEMA = 1, 2, 3, 4, 5

_EXIT_CODES: tuple[tuple[type[TaskWorkerError], int], ...] = (
    (SchemaError, SCHEMA),
    (JobNotFound, NOTHING),
    (TaskNotFound, NOTHING),
    (ArgumentsError, USAGE),
    (NotEncodable, USAGE),
    (DeclarationError, USAGE),
    (ConfigError, USAGE),
)
_LONGEST_ERROR = 1000
_PERIOD = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class TasksCommand(click.Command):
    """A command whose options can all be set in the environment and whose errors are one line each."""

    below = ""
    """The words between ``tasks`` and the command's own."""

    def __init__(self, name: str | None, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        for option in self.params:
            if isinstance(option, click.Option):
                word = next(word for word in option.opts if word.startswith("--"))
                option.envvar = f"{ENVIRONMENT}{self.below}{name}_{word[2:].replace('-', '_')}".upper()
                option.show_envvar = True

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. NO_COLOR (no-color.org) wins over a terminal."""
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        _accept_all_characters()
        try:
            return super().invoke(ctx)
        except TaskWorkerError as error:
            tell(shortened(f"Error: {error}", _LONGEST_ERROR))
            ctx.exit(next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), FAILED))


def _accept_all_characters() -> None:
    """A task's name that the terminal's encoding lacks must not end the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


_ORDER = ("run", "status", "list", "call", "job", "retry", "cancel", "db")


class TasksGroup(AppGroup):
    """The commands in the order in which they are wanted."""

    command_class = TasksCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return sorted(self.commands, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


tasks_command = TasksGroup(
    "tasks",
    help="Run and look after background tasks.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 nothing matched, 4 unhealthy, 5 the database's schema does not "
    "fit. Data goes to stdout, everything else to stderr.",
)


def app_state() -> AppState:
    """What the current app has of its TaskWorker."""
    return cast("AppState", current_app.extensions["taskworker"])


def tell(message: str) -> None:
    """Say something to the person at the terminal."""
    click.echo(safe(message), err=True)


# -- completion --------------------------------------------------------------------------------------------------------


def complete_task(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of tasks, for the shell."""
    return _matching({task.name for task in _tasks(ctx)}, incomplete)


def complete_queue(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The queues that tasks and the configuration name, for the shell."""
    return _matching(known_queues(_state_of(ctx)), incomplete)


def known_queues(state: AppState) -> set[str]:
    """The queues that tasks and the configuration name. Jobs may go to others, with ``using(queue=…)``."""
    return {task.options.queue for task in state.task_worker.registry} | set(state.config.queues or ())


def _matching(names: set[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def _tasks(ctx: click.Context) -> list[Task[..., Any, Any]]:
    return list(_state_of(ctx).task_worker.registry)


def _state_of(ctx: click.Context) -> AppState:
    info = ctx.find_object(ScriptInfo)
    app: Flask = info.load_app() if info else current_app
    return cast("AppState", app.extensions["taskworker"])


# -- values ------------------------------------------------------------------------------------------------------------


class Period(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
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


class Moment(click.ParamType):  # type: ignore[type-arg]
    """A moment in ISO 8601 with its offset from UTC."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a moment. Give one such as 2026-05-01T12:00:00Z.", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no offset from UTC. Add one, such as {moment.isoformat()}Z.", param, ctx)
        return moment
