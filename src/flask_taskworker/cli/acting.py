"""``flask tasks call``: enqueue a job by hand."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import click

from ..commands import tasks_command
from ..core.rows import JobState
from ..ops.overview import Overview
from .follow import NO_WORKER
from .group import QUEUE, CreatingCommand, Moment, Period, app_state, complete_task, tell
from .text import to_json

_FOREVER = math.inf


@tasks_command.command("call", cls=CreatingCommand)
@click.argument("name", metavar="TASK", shell_complete=complete_task)
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--kwargs", "keywords", metavar="OBJECT", help="Keyword arguments as a JSON object.")
@click.option("--args", "positional", metavar="ARRAY", help="Positional arguments as a JSON array.")
@click.option("--in", "delay", type=Period(), metavar="PERIOD", help="Run it after this delay: 30s, 5m, 2h, 1d.")
@click.option("--at", "run_at", type=Moment(), metavar="MOMENT", help="Run it at this time: 2026-05-01T12:00:00Z.")
@click.option("--queue", metavar="QUEUE", type=QUEUE, help="Queue of the job, not the task's.")
@click.option("--priority", type=int, metavar="N", help="Priority of the job, not the task's; higher runs first.")
@click.option("--now", "here", is_flag=True, help="Call the function here, without a job, and print its result.")
@click.option(
    "--wait",
    type=Period(hint=" To wait without a limit put --wait last."),
    is_flag=False,
    flag_value=_FOREVER,
    metavar="[SECONDS]",
    help="Wait for the job and print its result as JSON instead of its number. Without seconds it must come last.",
)
def call(
    name: str, pairs: tuple[str, ...], keywords: str | None, positional: str | None, here: bool, **options: Any
) -> None:
    """Enqueue a job of TASK and print its number.

    Arguments are KEY=VALUE. A value is read as JSON if it is JSON, else as text: x=1, when=today, tags='["a"]'.
    """
    state = app_state()
    task = state.registry.find(name)
    args = _parsed("--args", positional, list, "an array, such as '[1, \"a\"]'")
    kwargs = _parsed("--kwargs", keywords, dict, "an object, such as '{\"x\": 1}'")
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{pair!r} is not KEY=VALUE. Positional arguments go into --args '[…]'.")
        if key in kwargs:
            raise click.UsageError(f"The argument {key!r} is given twice.")
        kwargs[key] = _value(value)
    if here:
        if any(value is not None for value in options.values()):
            raise click.UsageError("--now creates no job. Leave out --in, --at, --queue, --priority and --wait.")
        # Checks the arguments as enqueueing would.
        task._encode(tuple(args), kwargs)
        result = task.function(*args, **kwargs)
        click.echo(to_json(asyncio.run(result) if task.kind == "async" else result))
        return
    wait = options.pop("wait")
    if options["delay"] is not None and options["run_at"] is not None:
        raise click.UsageError("Give either --in or --at, not both.")
    job = task.using(**options).enqueue(*args, **kwargs)
    if wait is None:
        click.echo(job.id)
        return
    due = "" if job.state is JobState.READY or job.run_at is None else f", which is due at {job.run_at:%H:%M:%S} UTC"
    tell(f"Waiting for job {job.id}{due}. Ctrl+C leaves it to the workers.")
    if not Overview.take(state.store).claiming:
        tell(NO_WORKER)
    click.echo(to_json(job.result(None if wait == _FOREVER else wait)))


def _parsed(option: str, text: str | None, wanted: type, example: str) -> Any:
    if text is None:
        return wanted()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{option} is not JSON: {error}. Give {example}.") from None
    if not isinstance(value, wanted):
        raise click.UsageError(f"{option} is {text!r:.80}. Give {example}.")
    return value


def _value(text: str) -> Any:
    def refuse(word: str) -> Any:
        """Python's reader takes NaN and Infinity for numbers; JSON has no such words."""
        raise ValueError(word)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text
