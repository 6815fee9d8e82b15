"""``flask tasks list`` and ``flask tasks job``: what the code declares, and what is known of one job."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from ..client.origin import read_origin
from ..commands import tasks_command
from ..core.clock import from_ms, to_ms
from ..core.retry import Retry
from ..core.rows import Failure, JobRecord
from ..core.tasks import DeclaredSchedule, Task
from ..core.triggers import Cron, describe
from ..core.words import spoken
from ..errors import NotDecodable
from ..ops.rows import JobWhole
from ..store.sql import Attempt
from .follow import follow_job, line_fields, log_words, progress_words
from .group import CreatingCommand, app_state, browser, complete_job, tell
from .listing import job_fields
from .running import NO_TASKS
from .text import iso, moment, pairs, plural, safe, safe_lines, shortened, to_json

if TYPE_CHECKING:
    from ..state import AppState

_LONGEST_VALUE = 2000


# -- list --------------------------------------------------------------------------------------------------------------


@tasks_command.command("list", cls=CreatingCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def list_tasks(as_json: bool) -> None:
    """List the tasks that the code declares.

    With their signatures, options and schedules; those made at run time are in the status.
    """
    state = app_state()
    now = from_ms(state.store.clock())
    tasks = sorted(state.registry, key=lambda task: task.name)
    for task in tasks:
        click.echo(_task_json(task, now) if as_json else _task_text(task, now))
    if not tasks:
        tell(NO_TASKS)


def _task_text(task: Task[..., Any, Any], now: datetime) -> str:
    options = task.options
    facts = [
        task.kind,
        f"queue {options.queue}",
        f"priority {options.priority}" if options.priority else None,
        f"retry: {_retry_words(options.retry)}" if options.retry else "no retry",
        f"timeout {_period(options.timeout)}" if options.timeout else None,
    ]
    lines = [click.style(safe(task.name), bold=True) + safe(_signature(task))]
    lines.append("    " + safe(", ".join(fact for fact in facts if fact)))
    lines += [f"    {safe(_declared_words(schedule, now))}" for schedule in task.declared_schedules()]
    return "\n".join(lines)


def _retry_words(retry: Retry) -> str:
    backoff = retry.backoff if isinstance(retry.backoff, str) else getattr(retry.backoff, "__name__", "own back-off")
    return f"{retry.max_attempts} tries, {backoff}, from {_period(retry.base)} to {_period(retry.cap)}"


def _period(period: timedelta) -> str:
    return spoken(round(period.total_seconds() * 1000))


def _declared_words(schedule: DeclaredSchedule, now: datetime) -> str:
    trigger = schedule.trigger
    explained = f' "{trigger.explain()}"' if isinstance(trigger, Cron) else ""
    following = trigger.next_after(now)
    fires = f"next {moment(to_ms(following))} (in {_period(following - now)})" if following else "never again"
    return f"schedule {schedule.name}: {describe(trigger)}{explained}, {fires}"


class _Bare:
    """An annotation that is written without quotes: under ``from __future__ import annotations`` all are strings."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __repr__(self) -> str:
        return self._words


def _signature(task: Task[..., Any, Any]) -> str:
    signature = task.signature
    parameters = [p.replace(annotation=_bare(p.annotation)) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=_bare(signature.return_annotation)))


def _bare(annotation: Any) -> Any:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


def _task_json(task: Task[..., Any, Any], now: datetime) -> str:
    options = task.options
    return to_json(
        {
            "name": task.name,
            "signature": _signature(task),
            "kind": task.kind,
            "queue": options.queue,
            "priority": options.priority,
            "max_attempts": task.max_attempts,
            "retry": options.retry and _retry_fields(options.retry),
            "timeout_s": options.timeout and options.timeout.total_seconds(),
            "schedules": [_declared_fields(schedule, now) for schedule in task.declared_schedules()],
        }
    )


def _retry_fields(retry: Retry) -> dict[str, Any]:
    return {
        "backoff": retry.backoff if isinstance(retry.backoff, str) else getattr(retry.backoff, "__name__", "callable"),
        "base_s": retry.base.total_seconds(),
        "cap_s": retry.cap.total_seconds(),
        "jitter": retry.jitter,
        "on": [kind.__name__ for kind in retry.on],
        "never": [kind.__name__ for kind in retry.never],
    }


def _declared_fields(schedule: DeclaredSchedule, now: datetime) -> dict[str, Any]:
    trigger = schedule.trigger
    following = trigger.next_after(now)
    return {
        "name": schedule.name,
        "when": describe(trigger),
        "explained": trigger.explain() if isinstance(trigger, Cron) else None,
        "misfire": trigger.misfire,
        "overlap": trigger.overlap,
        "jitter_s": trigger.jitter.total_seconds(),
        "next_at": following and following.isoformat(),
    }


# -- job ---------------------------------------------------------------------------------------------------------------


@tasks_command.command("job")
@click.argument("job_id", metavar="ID", type=int, shell_complete=complete_job)
@click.option(
    "--follow",
    is_flag=True,
    help="Show state, progress and log lines as they come, until the job has ended. Exits with 1 if it has failed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; with --follow one for each event.")
def show_job(job_id: int, follow: bool, as_json: bool) -> None:
    """Show all that is known of one job.

    Its state, arguments and result, where it comes from, what its tries have logged, and the tracebacks of those that
    did not succeed.
    """
    if follow:
        follow_job(job_id, as_json=as_json)
        return
    state = app_state()
    job = browser().job(job_id)
    click.echo(_job_json(state, job) if as_json else "\n".join(_job_lines(state, job)))


def _job_lines(state: AppState, job: JobWhole) -> list[str]:
    now, record = state.store.clock(), job.record
    facts = [
        ("state", _state_words(job)),
        ("arguments", _shown_call(state, job.args)),
        ("result", _shown_result(state, job)),
        ("error", _error_words(job)),
        ("group", job.failure_group),
        ("progress", progress_words(record)),
        ("queue", f"{safe(record.queue)}, priority {record.priority}, {record.kind}"),
        ("tries", _tries_words(record)),
        ("due", _ago(record.run_at, now)),
        ("enqueued", _ago(record.created_at, now)),
        ("by", _origin_words(job.origin)),
        ("started", _ago(record.started_at, now)),
        ("finished", _ago(record.finished_at, now)),
        ("pruned", _ago(record.expires_at, now)),
        ("schedule", record.schedule and f"{safe(record.schedule)}, for {moment(record.fire_at)}"),
        ("unique key", record.unique_key and safe(record.unique_key)),
        ("worker", record.worker_id and safe(record.worker_id)),
        ("uid", safe(record.uid)),
    ]
    lines = [click.style(f"Job {record.id} {safe(record.task)}", bold=True), *pairs(facts)]
    return lines + [line for claim in _claims(job) for line in _try_lines(job, claim)]


def _state_words(job: JobWhole) -> str:
    asked = ", asked to stop" if job.record.cancel_requested and job.record.state == "running" else ""
    return f"{job.record.state}{asked}{', put away' if job.hidden else ''}"


def _shown_call(state: AppState, text: str) -> str:
    """The call as it would be typed; the stored text where this version of the code cannot read it."""
    try:
        args, kwargs = state.registry.codec.decode_call(text)
    except NotDecodable:
        return safe(shortened(text, _LONGEST_VALUE))
    shown = [to_json(value) for value in args] + [f"{name}={to_json(value)}" for name, value in kwargs.items()]
    return safe(shortened(", ".join(shown), _LONGEST_VALUE)) or "none"


def _shown_result(state: AppState, job: JobWhole) -> str | None:
    if job.record.state != "succeeded":
        return None
    return safe(shortened(to_json(_result(state, job)), _LONGEST_VALUE))


def _result(state: AppState, job: JobWhole) -> Any:
    if job.result is None:
        return None
    try:
        return state.registry.codec.decode(job.result)
    except NotDecodable:
        return _unread(job.result)


def _error_words(job: JobWhole) -> str | None:
    if job.error is None and job.record.failure_kind is None:
        return None
    failure = Failure.from_text(job.error, job.record.failure_kind)
    words = f"{failure.type}: {failure.message}" if failure.type else failure.message or failure.kind
    return safe(shortened(words, _LONGEST_VALUE))


def _tries_words(record: JobRecord) -> str:
    crashes = f", {plural(record.crashes, 'crash', 'crashes')}" if record.crashes else ""
    return f"{record.failures} of {record.max_attempts} failed, claimed {plural(record.claim, 'time')}{crashes}"


def _ago(milliseconds: int | None, now: int) -> str | None:
    if not milliseconds:
        return None
    age = now - milliseconds
    return f"{moment(milliseconds)} ({f'{spoken(age)} ago' if age >= 0 else f'in {spoken(-age)}'})"


def _origin_words(text: str | None) -> str | None:
    origin = read_origin(text)
    return safe(shortened(", ".join(f"{name} {value}" for name, value in origin.items()), _LONGEST_VALUE)) or None


# -- its tries


def _claims(job: JobWhole) -> list[int]:
    """The tries of which something is to be told, by their claims."""
    return sorted({one.claim for one in job.attempts} | set(job.lines))


def _try_lines(job: JobWhole, claim: int) -> list[str]:
    ended = next((one for one in job.attempts if one.claim == claim), None)
    lines = ["", click.style(safe(_try_title(job, claim, ended)), bold=True)]
    if ended is not None and ended.error is not None:
        failure = Failure.from_text(ended.error, None)
        text = failure.traceback or f"{failure.type}: {failure.message}"
        lines += [f"  {line}" for line in safe_lines(text).splitlines()]
    return lines + [f"  {log_words(line)}" for line in job.lines.get(claim, ())]


def _try_title(job: JobWhole, claim: int, ended: Attempt | None) -> str:
    if ended is None:
        # Only the last one can be of a job that runs, or that has simply succeeded.
        word = job.record.state if claim == job.record.claim else "ended"
        return f"Claim {claim}: {word}"
    took = f" after {spoken(ended.finished_at - ended.started_at)}" if ended.started_at else ""
    return f"Try {ended.attempt}: {ended.outcome}{took}, {moment(ended.finished_at)}, worker {ended.worker_id}"


def _job_json(state: AppState, job: JobWhole) -> str:
    positional, keywords = _call(state, job.args)
    return to_json(
        job_fields(job.record)
        | {
            "hidden": bool(job.hidden),
            "failure_group": job.failure_group,
            "args": positional,
            "kwargs": keywords,
            "result": _result(state, job),
            "error": _failure_fields(job.error, job.record.failure_kind),
            "origin": read_origin(job.origin) or None,
            "tries": [_try_fields(one) for one in job.attempts],
            "lines": [line_fields(claim, line) for claim, lines in job.lines.items() for line in lines],
        }
    )


def _call(state: AppState, text: str) -> tuple[Any, Any]:
    try:
        return state.registry.codec.decode_call(text)
    except NotDecodable:
        return _unread(text), None


def _unread(text: str) -> Any:
    """What another version of the code has stored, as far as JSON goes."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _failure_fields(error: str | None, kind: str | None) -> dict[str, str] | None:
    if error is None and kind is None:
        return None
    failure = Failure.from_text(error, kind)
    return {
        "kind": failure.kind,
        "type": failure.type,
        "message": failure.message,
        "traceback": failure.traceback,
    }


def _try_fields(one: Attempt) -> dict[str, Any]:
    return {
        "attempt": one.attempt,
        "claim": one.claim,
        "worker_id": one.worker_id,
        "started_at": iso(one.started_at),
        "finished_at": iso(one.finished_at),
        "outcome": one.outcome,
        "error": _failure_fields(one.error, None),
    }
