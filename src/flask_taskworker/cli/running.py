"""``flask tasks run``: a worker in this process."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click
from flask import Flask, current_app

from ..commands import tasks_command
from ..core.loggers import Logger, get_logger
from ..core.tasks import MAX_NAME
from ..state import AppState
from ..worker.bounds import Bounds, WorkerRole, resident_mb
from ..worker.probes import Health, Probes, WorkersHealth
from .group import FAILED, QUEUE, CreatingCommand, ParamType, Period, app_state, known_queues, tell
from .log_output import set_up_log
from .reloader import reload
from .stacks import print_on_signal
from .supervisor import HEALTH, NUMBER, Supervisor, available_cpus, hold_lifeline, own_command
from .text import pairs, plural

log: Logger = get_logger("worker")

NO_TASKS = (
    "No task is registered with this app. Declare one with @task_worker.task, and make sure its module is imported."
)
_COUNT = click.IntRange(min=1)


class Workers(ParamType):
    """A number of processes, or "auto"."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if value == "auto":
            return available_cpus()
        return int(_COUNT.convert(value, param, ctx))


class Address(ParamType):
    """A port, or HOST:PORT. The value is a pair."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Read it."""
        if isinstance(value, tuple):
            return value
        host, _, port = value.rpartition(":")
        if not port.isascii() or not port.isdecimal() or int(port) > 65_535:
            self.fail(f"{value!r} is neither a port nor HOST:PORT, such as 8080 or 127.0.0.1:8080.", param, ctx)
        return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)


@tasks_command.command("run", cls=CreatingCommand)
@click.argument("queues", nargs=-1, metavar="[QUEUE]...", type=QUEUE)
@click.option("-x", "--exclude", multiple=True, type=QUEUE, metavar="QUEUE", help="Queue to ignore (repeatable).")
@click.option(
    "-w",
    "--workers",
    type=Workers(),
    default="1",
    metavar="N|auto",
    help="Number of processes; auto: one per processor.",
)
@click.option("-c", "--concurrency", type=_COUNT, metavar="N", help="Async jobs at once (TASKER_CONCURRENCY).")
@click.option("--threads", type=_COUNT, metavar="N", help="Sync jobs at once (TASKER_THREADS).")
@click.option("--drain", "--burst", is_flag=True, help="Exit when no job is ready; jobs that are due later stay.")
@click.option("--max-jobs", type=_COUNT, metavar="N", help="Exit after this many jobs.")
@click.option("--max-idle", type=Period(), metavar="SECONDS", help="Exit after this time without a job.")
@click.option(
    "--max-memory",
    type=click.FloatRange(min=1),
    metavar="MB",
    help="Exit once the process uses more memory, but not before its first job. Linux only.",
)
@click.option(
    "--grace",
    type=Period(),
    metavar="SECONDS",
    help="Time for running jobs to finish before they go back to their queues (TASKER_SHUTDOWN_TIMEOUT).",
)
@click.option("--no-scheduler", is_flag=True, help="Run jobs only: neither fire nor store schedules.")
@click.option(
    "--name",
    "template",
    metavar="TEMPLATE",
    help="Display name of this worker; {host}, {pid} and {number} (of --workers) are filled in.",
)
@click.option(
    "--reload",
    "reloads",
    is_flag=True,
    help="For development: restart when a Python file changes. Needs the extra reload.",
)
@click.option(
    "--health-port",
    "address",
    type=Address(),
    metavar="[HOST:]PORT",
    help="Serve /livez and /readyz at this address; without HOST on all interfaces.",
)
@click.option(
    "--health-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Write the worker's health to this file every second, for a probe that reads it.",
)
@click.option(
    "--metrics-port",
    type=Address(),
    metavar="[HOST:]PORT",
    help="Serve Prometheus metrics at this address; without HOST on all interfaces. Needs the extra prometheus.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    help="Format of the log. Defaults to text, or to what the application has configured.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every job.")
@click.option("-q", "--quiet", is_flag=True, help="Log only warnings and errors.")
@click.option("--check", is_flag=True, help="Print what would run, check the database, and exit.")
def run(queues: tuple[str, ...], **options: Any) -> None:
    """Run a worker until SIGTERM or SIGINT, or several workers, each in its own process.

    Works on the given queues, in that order; without any on those of TASKER_QUEUES, else on all. After the first signal
    it finishes the running jobs, for the grace period at most; a second signal ends it at once. Unfinished jobs go back
    to their queues. On SIGUSR1 it logs the running jobs with their stacks.
    """
    state, bounds = app_state(), _bounds(options)
    settings, workers = _settings(queues, options), options["workers"]
    is_child, number = hold_lifeline(), os.environ.pop(NUMBER, "1")
    role = _role(queues, options, number)
    plan = _plan(state, settings, bounds, role, workers)
    if options["check"]:
        _check(state, settings, plan)
        return
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    form = options["log_format"]
    set_up_log(app, form=form, verbose=options["verbose"], quiet=options["quiet"], with_process=workers > 1)
    if options["reloads"] and not is_child:
        if workers > 1:
            raise click.UsageError("--reload is for one process. Leave out --workers.")
        state.client.close()
        sys.exit(reload())
    if is_child and workers > 1:
        file = os.environ.pop(HEALTH, None)
        with Probes(WorkersHealth(state.workers), file=Path(file) if file else None):
            _work(state, bounds, role, settings)
        return
    if not len(state.registry):
        log.warning(NO_TASKS)
    log.info("%s", "; ".join(f"{name}: {value}" for name, value in plan if value))
    if workers > 1:
        _supervise(app, state, bounds, options)
    with _probes(WorkersHealth(state.workers), options), _metrics(app, options["metrics_port"]):
        _work(state, bounds, role, settings)


def _work(state: AppState, bounds: Bounds, role: WorkerRole, settings: dict[str, Any]) -> None:
    print_on_signal(state.workers)
    state.run(bounds=bounds, role=role, **settings)


def _supervise(app: Flask, state: AppState, bounds: Bounds, options: dict[str, Any]) -> NoReturn:
    # What is wrong with the database or the platform is said here, once.
    state.store.driver.check_platform()
    state.store.driver.prepare()
    state.client.close()
    ends = bounds.drain or bounds.max_idle is not None
    supervisor = Supervisor(own_command(), options["workers"], ends=ends, environment=os.environ)
    with tempfile.TemporaryDirectory(prefix="taskworker-") as folder:
        health = supervisor.write_health_to(Path(folder))
        with _probes(health, options), _metrics(app, options["metrics_port"]):
            code = supervisor.run()
    sys.exit(code)


def _probes(health: Health, options: dict[str, Any]) -> Probes:
    address: tuple[str, int] | None = options["address"]
    file: Path | None = options["health_file"]
    if file is not None and not file.absolute().parent.is_dir():
        raise click.UsageError(f"--health-file: the folder {str(file.absolute().parent)!r} does not exist.")
    try:
        return Probes(health, address=address, file=file, environment=os.environ)
    except OSError as error:
        raise _cannot_listen("--health-port", address or ("", 0), error) from error


@contextmanager
def _metrics(app: Flask, address: tuple[str, int] | None) -> Iterator[None]:
    """Answer Prometheus for as long as this is open."""
    if address is None:
        yield
        return
    host, port = address
    try:
        from ..metrics import serve_metrics

        server = serve_metrics(app, port, host)
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise _cannot_listen("--metrics-port", address, error) from error
    log.info("serving metrics at http://%s:%s", host, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _cannot_listen(option: str, address: tuple[str, int], error: OSError) -> click.ClickException:
    host, port = address
    reason = error.strerror or str(error)
    return click.ClickException(f"{option}: {host} port {port} cannot be used: {reason}. Choose another one.")


def _role(queues: tuple[str, ...], options: dict[str, Any], number: str) -> WorkerRole:
    exclude = frozenset(options["exclude"])
    if both := sorted(exclude & set(queues)):
        raise click.UsageError(f"The queue {both[0]!r} is both given and excluded.")
    template = name = options["template"] or ""
    for word, value in (("{host}", socket.gethostname()), ("{pid}", str(os.getpid())), ("{number}", number)):
        name = name.replace(word, value)
    if "{" in name or "}" in name or not name.isprintable() or len(name) > MAX_NAME:
        raise click.UsageError(
            f"--name {template!r:.100} is invalid. Give at most {MAX_NAME} printable characters; {{host}}, {{pid}} and "
            "{number} are filled in."
        )
    return WorkerRole(exclude=exclude, schedules=not options["no_scheduler"], name=name)


def _bounds(options: dict[str, Any]) -> Bounds:
    if options["max_memory"] is not None and resident_mb() is None:
        raise click.UsageError("--max-memory works on Linux only: this system does not report memory use.")
    return Bounds(
        drain=options["drain"],
        max_jobs=options["max_jobs"],
        max_idle=options["max_idle"],
        max_memory_mb=options["max_memory"],
    )


def _settings(queues: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """What overrides the configuration, by the names of its fields."""
    given = {
        "queues": tuple(dict.fromkeys(queues)) or None,
        "concurrency": options["concurrency"],
        "threads": options["threads"],
        "shutdown_timeout": options["grace"],
    }
    return {name: value for name, value in given.items() if value is not None}


def _check(state: AppState, settings: dict[str, Any], plan: list[tuple[str, str | None]]) -> None:
    if state.store.driver.schema_version() is None:
        tell("No tables yet: the worker creates them.")
    else:
        state.store.driver.prepare()
    tasks = ", ".join(sorted(task.name for task in state.registry))
    click.echo("\n".join(pairs([*plan, ("tasks", tasks or None)])))
    for name in settings.get("queues", ()):
        if name not in known_queues(state):
            tell(f"Note: no task uses the queue {name!r}; it only gets jobs enqueued with using(queue={name!r}).")
    if not tasks:
        tell(NO_TASKS)
        sys.exit(FAILED)


def _plan(
    state: AppState, settings: dict[str, Any], bounds: Bounds, role: WorkerRole, workers: int
) -> list[tuple[str, str | None]]:
    config = replace(state.config, **settings)
    schedules = sum(len(task.options.schedules) for task in state.registry)
    return [
        ("app", state.import_name),
        ("database", config.database_uri.render_as_string(hide_password=True)),
        ("processes", str(workers) if workers > 1 else None),
        ("name", role.name or None),
        ("queues", ", ".join(config.queues or ("all",))),
        ("except", ", ".join(sorted(role.exclude)) or None),
        ("schedules", None if role.schedules else "none"),
        ("at once", f"{plural(config.concurrency, 'async job')}, {plural(config.threads, 'sync job')}"),
        ("grace", f"{config.shutdown_timeout:g} s"),
        ("ends", _ends(bounds)),
        ("registered", f"{plural(len(state.registry), 'task')}, {plural(schedules, 'schedule')}"),
    ]


def _ends(bounds: Bounds) -> str | None:
    reasons = [
        bounds.drain and "when no job is ready",
        bounds.max_jobs and f"after {plural(bounds.max_jobs, 'job')}",
        bounds.max_idle is not None and f"after {bounds.max_idle:g} s without a job",
        bounds.max_memory_mb and f"above {bounds.max_memory_mb:g} MB of memory",
    ]
    return " or ".join(reason for reason in reasons if reason) or None
