"""``flask tasks list`` and ``flask tasks job``: what the code declares, and what is known of one job."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from ..clock import from_ms, to_ms
from ..errors import NotDecodable
from ..health import spoken
from ..jobs import Failure, JobRecord, Progress
from ..retry import Retry
from ..store.sql import Attempt, JobEnding
from ..tasks import DeclaredSchedule, Task
from ..triggers import Cron, describe
from .group import app_state, tasks_command, tell
from .running import NO_TASKS
from .text import iso, moment, pairs, plural, safe, safe_lines, shortened, to_json

if TYPE_CHECKING:
    from ..extension import AppState

_LONGEST_VALUE = 2000
_TIMES = ("run_at", "fire_at", "created_at", "started_at", "finished_at", "expires_at")


# -- list --------------------------------------------------------------------------------------------------------------


@tasks_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def list_tasks(as_json: bool) -> None:
    """List the tasks that the code declares.

    With their signatures, options and schedules; those made at run time are in the status.
    """
    state = app_state()
    now = from_ms(state.store.clock())
    tasks = sorted(state.task_worker.registry, key=lambda task: task.name)
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
@click.argument("job_id", metavar="ID", type=int)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_job(job_id: int, as_json: bool) -> None:
    """Show all that is known of one job.

    Its state, arguments and result, and the tries that did not succeed, with their tracebacks.
    """
    state = app_state()
    record, ending = state.store.record(job_id), state.store.ending(job_id)
    args, tries = state.store.args(job_id), state.store.attempts(job_id)
    if as_json:
        click.echo(_job_json(state, record, ending, args, tries))
    else:
        click.echo("\n".join(_job_lines(state, record, ending, args, tries)))


def _job_lines(state: AppState, record: JobRecord, ending: JobEnding, args: str, tries: list[Attempt]) -> list[str]:
    now = state.store.clock()
    facts = [
        ("state", _state_words(record)),
        ("arguments", _shown_call(state, args)),
        ("result", _shown_result(state, record, ending)),
        ("error", _error_words(ending)),
        ("progress", _progress_words(record)),
        ("queue", f"{safe(record.queue)}, priority {record.priority}, {record.kind}"),
        ("tries", _tries_words(record)),
        ("due", _ago(record.run_at, now)),
        ("enqueued", _ago(record.created_at, now)),
        ("started", _ago(record.started_at, now)),
        ("finished", _ago(record.finished_at, now)),
        ("pruned", _ago(record.expires_at, now)),
        ("schedule", record.schedule and f"{safe(record.schedule)}, for {moment(record.fire_at)}"),
        ("unique key", record.unique_key and safe(record.unique_key)),
        ("worker", record.worker_id),
        ("uid", record.uid),
    ]
    lines = [click.style(f"Job {record.id} {safe(record.task)}", bold=True), *pairs(facts)]
    return lines + [line for one in tries for line in _try_lines(one)]


def _state_words(record: JobRecord) -> str:
    asked = record.cancel_requested and record.state == "running"
    return f"{record.state}, asked to stop" if asked else record.state


def _shown_call(state: AppState, text: str) -> str:
    """The call as it would be typed; the stored text where this version of the code cannot read it."""
    try:
        args, kwargs = state.task_worker.registry.codec.decode_call(text)
    except NotDecodable:
        return safe(shortened(text, _LONGEST_VALUE))
    shown = [to_json(value) for value in args] + [f"{name}={to_json(value)}" for name, value in kwargs.items()]
    return safe(shortened(", ".join(shown), _LONGEST_VALUE)) or "none"


def _shown_result(state: AppState, record: JobRecord, ending: JobEnding) -> str | None:
    if record.state != "succeeded":
        return None
    return safe(shortened(to_json(_result(state, ending)), _LONGEST_VALUE))


def _result(state: AppState, ending: JobEnding) -> Any:
    if ending.result is None:
        return None
    try:
        return state.task_worker.registry.codec.decode(ending.result)
    except NotDecodable:
        return _unread(ending.result)


def _error_words(ending: JobEnding) -> str | None:
    if ending.error is None and ending.failure_kind is None:
        return None
    failure = Failure.from_text(ending.error, ending.failure_kind)
    words = f"{failure.type}: {failure.message}" if failure.type else failure.message or failure.kind
    return safe(shortened(words, _LONGEST_VALUE))


def _progress_words(record: JobRecord) -> str | None:
    progress = Progress.from_text(record.progress)
    if progress is None:
        return None
    total = "" if progress.total is None else f" of {progress.total:g}"
    return safe(f"{progress.done:g}{total} {progress.text}".rstrip())


def _tries_words(record: JobRecord) -> str:
    crashes = f", {plural(record.crashes, 'crash', 'crashes')}" if record.crashes else ""
    return f"{record.failures} of {record.max_attempts} failed, claimed {plural(record.claim, 'time')}{crashes}"


def _ago(milliseconds: int | None, now: int) -> str | None:
    if not milliseconds:
        return None
    age = now - milliseconds
    return f"{moment(milliseconds)} ({f'{spoken(age)} ago' if age >= 0 else f'in {spoken(-age)}'})"


def _try_lines(one: Attempt) -> list[str]:
    took = f" after {spoken(one.finished_at - one.started_at)}" if one.started_at else ""
    title = f"Try {one.attempt}: {one.outcome}{took}, {moment(one.finished_at)}, worker {one.worker_id}"
    failure = Failure.from_text(one.error, None)
    text = failure.traceback or f"{failure.type}: {failure.message}"
    return ["", click.style(safe(title), bold=True), *(f"  {line}" for line in safe_lines(text).splitlines())]


def _job_json(state: AppState, record: JobRecord, ending: JobEnding, args: str, tries: list[Attempt]) -> str:
    fields = record._asdict()
    fields |= {name: iso(fields[name]) for name in _TIMES}
    fields |= {"cancel_requested": bool(record.cancel_requested)}
    progress = Progress.from_text(record.progress)
    positional, keywords = _call(state, args)
    return to_json(
        fields
        | {
            "progress": progress,
            "args": positional,
            "kwargs": keywords,
            "result": _result(state, ending),
            "error": _failure_fields(ending.error, ending.failure_kind),
            "tries": [_try_fields(one) for one in tries],
        }
    )


def _call(state: AppState, text: str) -> tuple[Any, Any]:
    try:
        return state.task_worker.registry.codec.decode_call(text)
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
