"""``flask tasks call``: a job by hand."""

from __future__ import annotations

import asyncio
import json
import math
from datetime import datetime
from typing import Any, NoReturn

import click

from ..commands import tasks_command
from ..core.jobs import Job
from ..core.rows import JobState
from ..core.tasks import Task
from ..ops.overview import Overview
from ..state import AppState
from .follow import NO_WORKER
from .group import CreatingCommand, Moment, Period, app_state, complete_queue, complete_task, tell
from .text import to_json

_FOREVER = math.inf


@tasks_command.command("call", cls=CreatingCommand)
@click.argument("name", metavar="TASK", shell_complete=complete_task)
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--json", "keywords", metavar="OBJECT", help="Keyword arguments as a JSON object.")
@click.option("--args", "positional", metavar="ARRAY", help="Positional arguments as a JSON array.")
@click.option("--in", "delay", type=Period(), metavar="PERIOD", help="Run it that much later: 30s, 5m, 2h, 1d.")
@click.option("--at", "run_at", type=Moment(), metavar="MOMENT", help="Run it then: 2026-05-01T12:00:00Z.")
@click.option("--queue", metavar="QUEUE", shell_complete=complete_queue, help="The job's queue, not the task's.")
@click.option("--priority", type=int, metavar="N", help="The job's priority, not the task's; higher goes first.")
@click.option("--now", "here", is_flag=True, help="Call the function here, without a job, and print its result.")
@click.option(
    "--wait",
    type=Period(hint=" To wait without a limit put --wait last."),
    is_flag=False,
    flag_value=_FOREVER,
    metavar="[SECONDS]",
    help="Wait for the job's end and print its result as JSON, not its number. Without seconds it must come last.",
)
def call(name: str, pairs: tuple[str, ...], keywords: str | None, positional: str | None, **options: Any) -> None:
    """Enqueue a job of TASK and print its number.

    Arguments are KEY=VALUE; a value is read as JSON if it is JSON, else as text: x=1, when=today, tags='["a"]'.
    """
    state = app_state()
    task = state.registry.find(name)
    args, kwargs = _arguments(pairs, keywords, positional)
    if options.pop("here"):
        if any(value is not None for value in options.values()):
            _refuse("--now makes no job. Leave out --in, --at, --queue, --priority and --wait.")
        click.echo(to_json(_call_here(task, args, kwargs)))
        return
    wait = options.pop("wait")
    if options["delay"] is not None and options["run_at"] is not None:
        _refuse("Give either --in or --at, not both.")
    job = task.using(**options).enqueue(*args, **kwargs)
    if wait is None:
        click.echo(job.id)
    else:
        _tell_waiting(state, job, options["run_at"])
        click.echo(to_json(job.result(None if wait == _FOREVER else wait)))


def _refuse(message: str) -> NoReturn:
    raise click.UsageError(message)


# -- arguments ---------------------------------------------------------------------------------------------------------


def _arguments(
    pairs: tuple[str, ...], keywords: str | None, positional: str | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = _parsed("--args", positional, list, "an array, such as '[1, \"a\"]'") if positional is not None else []
    kwargs = _parsed("--json", keywords, dict, "an object, such as '{\"x\": 1}'") if keywords is not None else {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            _refuse(f"{pair!r} is not KEY=VALUE. Positional arguments go into --args '[…]'.")
        if key in kwargs:
            _refuse(f"The argument {key!r} is given twice.")
        kwargs[key] = _value(value)
    return tuple(args), kwargs


def _parsed(option: str, text: str, wanted: type, example: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(f"{option} is not JSON: {error}. Give {example}.")
    if not isinstance(value, wanted):
        _refuse(f"{option} is {text!r:.80}. Give {example}.")
    return value


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _no_constant(word: str) -> Any:
    """Python's reader takes NaN and Infinity for numbers, but JSON has no such words."""
    raise ValueError(word)


# -- call --------------------------------------------------------------------------------------------------------------


def _call_here(task: Task[..., Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Checks the arguments as enqueueing would.
    task.encode(args, kwargs)
    value = task.function(*args, **kwargs)
    return asyncio.run(value) if task.kind == "async" else value


def _tell_waiting(state: AppState, job: Job[Any], run_at: datetime | None) -> None:
    due = "" if job.state is JobState.READY or job.run_at is None else f", which is due at {job.run_at:%H:%M:%S} UTC"
    tell(f"Waiting for job {job.id}{due}. Ctrl+C leaves it to the workers.")
    if not Overview.take(state.store).claiming:
        tell(NO_WORKER)
