"""``flask tasks status``: one screen that shows whether everything is healthy."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Literal, NoReturn

import click
from flask import current_app

from ..commands import tasks_command
from ..core.filters import STATES
from ..core.words import MOST, counted, spoken
from ..errors import DeclarationError
from ..ops.alerts import look as send_alerts
from ..ops.status import Status, take_status
from ..ops.views import as_json
from ..store.sql import Store
from .group import AS_JSON, NOTHING, UNHEALTHY, Period, app_state, operations, tell
from .schedules import next_words
from .text import moment, plural, safe, table, to_json

_NEXT_SCHEDULES = 10
_WATCH = 2.0
_CLEAR = "\x1b[H\x1b[2J\x1b[3J"


WATCH = click.option(
    "--watch",
    type=Period(least=0.1),
    is_flag=False,
    flag_value=_WATCH,
    metavar="[SECONDS]",
    help="Repeat until Ctrl+C, every 2 seconds by default.",
)


@tasks_command.command("status")
@click.option("--json", "in_json", is_flag=True, help="Print one JSON object.")
@WATCH
@click.option("--alert", is_flag=True, help="Also send the alerts that TASKER_ALERTS asks for, as workers do.")
def status(in_json: bool, watch: float | None, alert: bool) -> None:
    """Show whether everything is healthy.

    Lists workers, queues, counts and schedules. Exits with 4 if something is wrong: jobs are ready or due and no
    living worker takes them, a worker has not checked in for 30 seconds, its event loop is blocked or hung jobs
    hold all its threads, a schedule is late by more than a minute, finished jobs are not deleted, or a job has been
    ready for more than 5 minutes. Jobs of paused queues may wait.
    """
    store = app_state().store
    if alert:
        send_alerts(current_app._get_current_object())  # type: ignore[attr-defined]
    for seen in _looks(store, watch, in_json=in_json):
        click.echo(_as_json(seen) if in_json else _as_text(seen))
    sys.exit(UNHEALTHY if seen.problems else 0)


def _set_slots(name: str | None, threads: int | None, concurrency: int | None) -> NoReturn:
    names = [one.id for one in app_state().store.workers() if one.state == "alive"] if name is None else [name]
    try:
        done = [one for one in names if operations().set_slots(one, threads=threads, concurrency=concurrency)]
    except DeclarationError as error:
        tell(str(error))
        sys.exit(NOTHING)
    tell(f"{plural(len(done), 'worker')} changed; each learns it within about a second.")
    sys.exit(0 if done else NOTHING)


@tasks_command.command("workers")
@click.argument("act", metavar="[stop|quiet|set]", type=click.Choice(["stop", "quiet", "set"]), required=False)
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--threads", type=click.IntRange(1), metavar="N", help='With "set": sync jobs at once.')
@click.option("-c", "--concurrency", type=click.IntRange(1), metavar="N", help='With "set": async jobs at once.')
@AS_JSON
@WATCH
def workers(
    act: Literal["stop", "quiet", "set"] | None,
    name: str | None,
    threads: int | None,
    concurrency: int | None,
    in_json: bool,
    watch: float | None,
) -> None:
    """List the workers: what they run, what they take, and how they are; or stop one, or change its slots.

    With "quiet" a worker takes no more jobs and goes on with those that it runs. With "stop" it then ends, as after
    SIGTERM, within about a second if nothing runs. With "set" it runs as many jobs at once as the options say, until
    it ends; without NAME all workers do. NAME is its name or its id. Exits with 3 if no living worker has that name,
    or if it was asked before.
    """
    if act == "set":
        _set_slots(name, threads, concurrency)
    if threads is not None or concurrency is not None:
        raise click.UsageError("--threads and --concurrency go with set: flask tasks workers set --threads 4")
    if act is not None:
        if name is None:
            raise click.UsageError("Say which worker: give its name or its id.")
        try:
            asked = operations().ask_worker(name, act)
        except DeclarationError as error:
            tell(str(error))
            sys.exit(NOTHING)
        words = f"asked to {'stop' if act == 'stop' else 'be quiet'}"
        tell(f"Worker {name} is {words}." if asked else f"Worker {name} was {words} before.")
        sys.exit(0 if asked else NOTHING)
    for seen in _looks(app_state().store, watch, in_json=in_json):
        click.echo("\n".join(to_json(as_json(one)) for one in seen.workers) if in_json else "\n".join(_workers(seen)))


@tasks_command.command("queues")
@AS_JSON
@WATCH
def queues(in_json: bool, watch: float | None) -> None:
    """List the queues: what waits and runs in them, whether they are paused, and for how long the oldest job waits."""
    for seen in _looks(app_state().store, watch, in_json=in_json):
        click.echo("\n".join(to_json(as_json(one)) for one in seen.queues) if in_json else "\n".join(_queues(seen)))


def _looks(store: Store, watch: float | None, *, in_json: bool) -> Iterator[Status]:
    """One look, or one after the other on a screen that is cleared, where it is one."""
    while True:
        found = take_status(store)
        if watch is not None and sys.stdout.isatty() and not in_json:
            click.echo(_CLEAR, nl=False)
        yield found
        if watch is None:
            return
        sys.stdout.flush()
        time.sleep(watch)


def _as_json(status: Status) -> str:
    return to_json({"healthy": not status.problems, "counted_up_to": MOST} | as_json(status))


def _as_text(status: Status) -> str:
    if status.problems:
        verdict = [click.style("Unhealthy.", fg="red", bold=True), *(f"  - {safe(line)}" for line in status.problems)]
    else:
        verdict = [click.style("Healthy.", fg="green", bold=True)]
    counts = [status.counts.words(name) for name in STATES]
    has_jobs = any(count not in ("", "0") for count in counts)
    parts = [
        verdict,
        [click.style("Workers", bold=True), *_workers(status)],
        [click.style("Queues", bold=True), *_queues(status)],
        [
            click.style("Jobs", bold=True),
            *(
                table(STATES, [counts], right=set(STATES))
                if has_jobs
                else ["  No jobs yet. Enqueue one: flask tasks call NAME"]
            ),
        ],
        [click.style("Schedules", bold=True), *_schedules(status)],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _workers(status: Status) -> list[str]:
    if not status.workers:
        return ["  No worker runs. Start one: flask tasks run"]
    headers = ("worker", "state", "up", "beat", "running", "async", "sync", "hung", "lag", "memory", "queues", "id")
    rows = [
        (
            worker.name,
            worker.state,
            spoken(status.at - worker.started_at),
            f"{spoken(status.at - worker.beat_at)} ago",
            str(worker.running),
            f"{worker.async_busy}/{worker.async_slots or '?'}",
            f"{worker.sync_busy}/{worker.sync_slots or '?'}",
            str(worker.hung_threads or ""),
            "" if worker.loop_lag_ms is None else f"{worker.loop_lag_ms:.0f} ms",
            "" if worker.resident_mb is None else f"{worker.resident_mb:.0f} MB",
            ", ".join(worker.queues or ("all",)) + (f" except {', '.join(worker.exclude)}" if worker.exclude else ""),
            worker.id,
        )
        for worker in status.workers
    ]
    return table(headers, rows, right={"up", "beat", "running", "async", "sync", "hung", "lag", "memory"})


def _queues(status: Status) -> list[str]:
    rows = [
        (
            queue.name,
            queue.state,
            counted(queue.ready),
            f"{queue.running}/{queue.slots}",
            "" if queue.oldest_at is None else spoken(status.at - queue.oldest_at),
        )
        for queue in status.queues
    ]
    headers = ("queue", "state", "ready", "running", "oldest wait")
    return table(headers, rows, right=set(headers[2:])) if rows else ["  No queue has jobs."]


def _schedules(status: Status) -> list[str]:
    if not status.schedules:
        return ["  No schedule is stored. A worker stores those in the code when it starts."]
    ordered = sorted(status.schedules, key=lambda s: (s.paused, s.next_at is None, s.next_at or 0, s.name))
    rows = [
        (s.name, s.when, moment(s.last_at) or "never", next_words(s, status.at), s.state)
        for s in ordered[:_NEXT_SCHEDULES]
    ]
    more = len(ordered) - len(rows)
    lines = table(("schedule", "when", "last", "next", "state"), rows)
    return [*lines, f"  … and {more} more"] if more else lines
