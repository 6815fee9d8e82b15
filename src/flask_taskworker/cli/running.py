"""``flask tasks run``: a worker in this process."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from flask import Flask, current_app

from ..liveness import resident_mb
from ..worker import Limits
from .group import FAILED, Period, app_state, complete_queue, known_queues, tasks_command, tell
from .log_output import set_up_log
from .supervisor import available_cpus, hold_lifeline, supervise
from .text import pairs, plural, safe

if TYPE_CHECKING:
    from ..extension import AppState

log = logging.getLogger(__name__)

NO_TASKS = (
    "No task is registered with this app. Declare one with @task_worker.task, and see that its module is imported."
)
_COUNT = click.IntRange(min=1)


class Workers(click.ParamType):  # type: ignore[type-arg]
    """A number of processes, or "auto"."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if value == "auto":
            return available_cpus()
        return int(_COUNT.convert(value, param, ctx))


@tasks_command.command("run")
@click.argument("queues", nargs=-1, metavar="[QUEUE]...", shell_complete=complete_queue)
@click.option(
    "-w", "--workers", type=Workers(), default="1", metavar="N|auto", help="Processes; auto: one for each processor."
)
@click.option("-c", "--concurrency", type=_COUNT, metavar="N", help="Async jobs at once (TASKER_CONCURRENCY).")
@click.option("--threads", type=_COUNT, metavar="N", help="Sync jobs at once (TASKER_THREADS).")
@click.option("--drain", "--burst", is_flag=True, help="End when no job is ready; jobs that are due later stay.")
@click.option("--max-jobs", type=_COUNT, metavar="N", help="End after so many jobs.")
@click.option("--max-idle", type=Period(), metavar="SECONDS", help="End after so long without a job.")
@click.option(
    "--max-memory",
    type=click.FloatRange(min=1),
    metavar="MB",
    help="End once the process holds more memory, but not before its first job. Linux only.",
)
@click.option(
    "--grace",
    type=Period(),
    metavar="SECONDS",
    help="How long running jobs have to end before they go back to their queues (TASKER_SHUTDOWN_TIMEOUT).",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="How to write the log. Defaults to text, or to what the application has set up.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every job.")
@click.option("-q", "--quiet", is_flag=True, help="Log only warnings and errors.")
@click.option("--check", is_flag=True, help="Open the database, say what would run, and exit.")
def run(queues: tuple[str, ...], **options: Any) -> None:
    """Run a worker in this process until SIGTERM or SIGINT; or several, each in a process of its own.

    Works on the queues given, in that order; without any on those of TASKER_QUEUES, else on all. The first signal ends
    it when the running jobs have ended, or after the grace; a second one ends it at once. Jobs that have not ended then
    go back to their queues.
    """
    state, limits = app_state(), _limits(options)
    settings, workers = _settings(queues, options), options["workers"]
    if options["check"]:
        _check(state, settings, limits, workers)
        return
    is_child = hold_lifeline()
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    form = options["log_format"]
    set_up_log(app, form=form, verbose=options["verbose"], quiet=options["quiet"], with_process=workers > 1)
    if is_child:
        state.task_worker.run(limits=limits, **settings)
        return
    if not len(state.task_worker.registry):
        log.warning(NO_TASKS)
    plan = _plan(state, settings, limits, workers)
    log.info("%s", "; ".join(f"{name}: {value}" for name, value in plan if value))
    if workers == 1:
        state.task_worker.run(limits=limits, **settings)
    else:
        _supervise(state, limits, workers)


def _supervise(state: AppState, limits: Limits, workers: int) -> None:
    # What is wrong with the database or the platform is said here, once.
    state.store.driver.check_platform()
    state.store.driver.prepare()
    state.client.close()
    sys.exit(supervise(workers, ends=limits.drain or limits.max_idle is not None))


def _limits(options: dict[str, Any]) -> Limits:
    if options["max_memory"] is not None and resident_mb() is None:
        raise click.UsageError("--max-memory works on Linux only: this system does not tell how much memory is held.")
    return Limits(
        drain=options["drain"],
        max_jobs=options["max_jobs"],
        max_idle=options["max_idle"],
        max_memory_mb=options["max_memory"],
    )


def _settings(queues: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """What overrides the configuration, by the names of its fields."""
    if not all(queues):
        raise click.UsageError("A queue's name cannot be empty.")
    given = {
        "queues": tuple(dict.fromkeys(queues)) or None,
        "concurrency": options["concurrency"],
        "threads": options["threads"],
        "shutdown_timeout": options["grace"],
    }
    return {name: value for name, value in given.items() if value is not None}


def _check(state: AppState, settings: dict[str, Any], limits: Limits, workers: int) -> None:
    state.store.driver.prepare()
    registry = state.task_worker.registry
    plan = _plan(state, settings, limits, workers)
    plan.append(("tasks", ", ".join(sorted(task.name for task in registry)) or None))
    for line in pairs([(name, value and safe(value)) for name, value in plan]):
        click.echo(line)
    for name in settings.get("queues", ()):
        if name not in known_queues(state):
            tell(f"Note: no task names the queue {name!r}; only jobs with using(queue={name!r}) go there.")
    if not len(registry):
        tell(NO_TASKS)
        sys.exit(FAILED)


def _plan(state: AppState, settings: dict[str, Any], limits: Limits, workers: int) -> list[tuple[str, str | None]]:
    config = replace(state.config, **settings)
    schedules = sum(len(task.options.schedules) for task in state.task_worker.registry)
    return [
        ("app", state.import_name),
        ("database", config.database_uri.render_as_string(hide_password=True)),
        ("processes", str(workers) if workers > 1 else None),
        ("queues", ", ".join(config.queues or ("all",))),
        ("at once", f"{plural(config.concurrency, 'async job')}, {plural(config.threads, 'sync job')}"),
        ("grace", f"{config.shutdown_timeout:g} s"),
        ("ends", _ends(limits)),
        ("registered", f"{plural(len(state.task_worker.registry), 'task')}, {plural(schedules, 'schedule')}"),
    ]


def _ends(limits: Limits) -> str | None:
    reasons = [
        limits.drain and "when no job is ready",
        limits.max_jobs and f"after {plural(limits.max_jobs, 'job')}",
        limits.max_idle is not None and f"after {limits.max_idle:g} s without a job",
        limits.max_memory_mb and f"above {limits.max_memory_mb:g} MB of memory",
    ]
    return " or ".join(reason for reason in reasons if reason) or None
