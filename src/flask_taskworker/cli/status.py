"""``flask tasks status``: one screen that says whether all is well."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ..commands import tasks_command
from ..core.triggers import describe, trigger_from_text
from ..core.words import MOST, counted, spoken
from ..errors import NotDecodable
from ..ops.health import Snapshot, info_of, name_of
from ..store.sql import QueueRow, ScheduleRow, WorkerRow
from .group import UNHEALTHY, Period, app_state
from .text import iso, moment_in, odd_fields, safe, table, to_json, unless_odd

if TYPE_CHECKING:
    from ..state import AppState

_NEXT_SCHEDULES = 10
_WATCH = 2.0
_CLEAR = "\x1b[H\x1b[2J\x1b[3J"


@tasks_command.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--watch",
    type=Period(least=0.1),
    is_flag=False,
    flag_value=_WATCH,
    metavar="[SECONDS]",
    help="Look again every so often, without a number every 2 seconds, until Ctrl+C.",
)
def status(as_json: bool, watch: float | None) -> None:
    """Say whether all is well.

    Shows workers, queues, counts and schedules. Exits with 4 if all is not well: jobs are ready or due and no living
    worker takes them, a worker has not checked in for 30 seconds, its event loop is blocked or hung jobs hold all its
    threads, a schedule is late by more than a minute, or a job has been ready for more than 5 minutes. Jobs of paused
    queues may wait.
    """
    state = app_state()
    if watch is None:
        snapshot = Snapshot.take(state.store)
        click.echo(_status_json(snapshot) if as_json else _status_text(snapshot))
        sys.exit(UNHEALTHY if snapshot.problems() else 0)
    _watch(state, as_json, watch)


def _watch(state: AppState, as_json: bool, pause: float) -> None:
    while True:
        snapshot = Snapshot.take(state.store)
        screen = _CLEAR if sys.stdout.isatty() and not as_json else ""
        click.echo(screen + (_status_json(snapshot) if as_json else f"{_status_text(snapshot)}\n"))
        sys.stdout.flush()
        time.sleep(pause)


def _status_text(snapshot: Snapshot) -> str:
    parts = [
        _verdict(snapshot),
        [_title("Workers"), *_workers(snapshot)],
        [_title("Queues"), *_queues(snapshot)],
        [_title("Jobs"), *_counts(snapshot)],
        [_title("Schedules"), *_schedules(snapshot)],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _title(text: str) -> str:
    return click.style(text, bold=True)


def _verdict(snapshot: Snapshot) -> list[str]:
    problems = snapshot.problems()
    if not problems:
        return [click.style("Healthy.", fg="green", bold=True)]
    return [click.style("Unhealthy.", fg="red", bold=True), *(f"  - {safe(problem)}" for problem in problems)]


def _workers(snapshot: Snapshot) -> list[str]:
    if not snapshot.workers:
        return ["  No worker runs. Start one: flask tasks run"]
    headers = ("worker", "state", "up", "beat", "running", "async", "sync", "hung", "lag", "memory", "queues", "id")
    rows = [_worker_cells(worker, snapshot) for worker in snapshot.workers]
    return table(headers, rows, right={"up", "beat", "running", "async", "sync", "hung", "lag", "memory"})


def _worker_cells(worker: WorkerRow, snapshot: Snapshot) -> tuple[str, ...]:
    info = info_of(worker)
    busy = info.get("running") or {}
    memory, lag = info.get("resident_mb"), info.get("loop_lag_ms")
    return (
        str(info.get("name") or name_of(worker)),
        "silent" if snapshot.is_silent(worker) else worker.state,
        unless_odd(worker, "started_at", spoken(snapshot.now - worker.started_at)),
        unless_odd(worker, "beat_at", f"{spoken(snapshot.now - worker.beat_at)} ago"),
        str(worker.running),
        f"{busy.get('async', 0)}/{info.get('concurrency', '?')}",
        f"{busy.get('sync', 0)}/{info.get('threads', '?')}",
        str(info.get("hung_threads", "")),
        f"{lag:.0f} ms" if isinstance(lag, int | float) else "",
        f"{memory:.0f} MB" if isinstance(memory, int | float) else "",
        _queue_words(info),
        worker.id,
    )


def _queue_words(info: dict[str, Any]) -> str:
    excluded = ", ".join(info.get("exclude") or ())
    return ", ".join(info.get("queues") or ("all",)) + (f" but {excluded}" if excluded else "")


def _queues(snapshot: Snapshot) -> list[str]:
    if not snapshot.queues and not snapshot.paused:
        return ["  No job is ready."]
    rows = [
        (queue.name, counted(queue.ready), unless_odd(queue, "oldest_at", spoken(snapshot.now - queue.oldest_at)))
        for queue in snapshot.queues
    ]
    rows += [(name, "0", "") for name in snapshot.paused if name not in {queue.name for queue in snapshot.queues}]
    cells = [(*row, "paused" if row[0] in snapshot.paused else "") for row in rows]
    return table(("queue", "ready", "oldest wait", "state"), cells, right={"ready", "oldest wait"})


def _counts(snapshot: Snapshot) -> list[str]:
    counts = _count_fields(snapshot)
    if not any(counts.values()):
        return ["  There is no job yet. Enqueue one: flask tasks call NAME"]
    return table(tuple(counts), [[counted(number) for number in counts.values()]], right=set(counts))


def _count_fields(snapshot: Snapshot) -> dict[str, int]:
    counts = snapshot.counts
    names = ("scheduled", "ready", "running", "succeeded", "failed", "cancelled")
    return {name: getattr(counts, name) for name in names}


def _schedules(snapshot: Snapshot) -> list[str]:
    if not snapshot.schedules:
        return ["  No schedule is stored. A worker stores those in the code when it starts."]
    ordered = sorted(snapshot.schedules, key=lambda s: (bool(s.paused), s.next_at is None, s.next_at or 0, s.name))
    rows = [
        (s.name, _when(s), moment_in(s, "last_at") or "never", _next(s, snapshot)) for s in ordered[:_NEXT_SCHEDULES]
    ]
    more = len(ordered) - len(rows)
    return table(("schedule", "when", "last", "next"), rows) + ([f"  … and {more} more"] if more else [])


def _when(schedule: ScheduleRow) -> str:
    try:
        return describe(trigger_from_text(schedule.trigger))
    except NotDecodable:
        # A later version of the code may have stored it.
        return "cannot be read by this version"


def _next(schedule: ScheduleRow, snapshot: Snapshot) -> str:
    if schedule.paused:
        return "paused"
    if schedule.is_unclear:
        return "?"
    if schedule.next_at is None:
        return "never again"
    if snapshot.is_late(schedule):
        return f"late for {spoken(snapshot.now - schedule.next_at)}"
    return f"in {spoken(schedule.next_at - snapshot.now)}"


def _status_json(snapshot: Snapshot) -> str:
    problems = snapshot.problems()
    return to_json(
        {
            "healthy": not problems,
            "problems": problems,
            "at": iso(snapshot.now),
            "workers": [_worker_fields(worker, snapshot.now) for worker in snapshot.workers],
            "queues": [
                {"name": q.name, "ready": q.ready, "oldest_wait_s": _since(q, "oldest_at", snapshot.now)}
                | odd_fields(q)
                for q in snapshot.queues
            ],
            "paused_queues": snapshot.paused,
            "counts": _count_fields(snapshot),
            "counted_up_to": MOST,
            "next_due": iso(snapshot.next_due),
            "schedules": [_schedule_fields(schedule) for schedule in snapshot.schedules],
        }
    )


def _since(row: WorkerRow | QueueRow, field: str, now: int) -> float | None:
    """Seconds."""
    return None if field in row.odd else max(0, now - getattr(row, field)) / 1000


def _worker_fields(worker: WorkerRow, now: int) -> dict[str, Any]:
    fields = {
        "id": worker.id,
        "host": worker.host,
        "pid": None if "pid" in worker.odd else worker.pid,
        "state": worker.state,
        "started_at": iso(worker.started_at),
        "up_s": _since(worker, "started_at", now),
        "beat_age_s": _since(worker, "beat_at", now),
        "jobs_running": worker.running,
        **odd_fields(worker),
    }
    return fields | {name: value for name, value in info_of(worker).items() if name not in fields}


def _schedule_fields(schedule: ScheduleRow) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "task": schedule.task,
        "when": _when(schedule),
        "last_at": iso(schedule.last_at),
        "next_at": iso(schedule.next_at),
        "paused": bool(schedule.paused),
        "source": schedule.source,
        **odd_fields(schedule),
    }
