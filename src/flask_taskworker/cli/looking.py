"""``flask tasks list`` and ``flask tasks job``: what the code declares, and what is known of one job."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import click

from ..client.origin import read_origin
from ..commands import tasks_command
from ..core.clock import from_ms, to_ms
from ..core.retry import Retry
from ..core.rows import Failure
from ..core.tasks import DeclaredSchedule, Task
from ..core.triggers import Cron, describe
from ..core.words import spoken
from ..errors import NotDecodable
from ..ops.rows import JobWhole
from ..ops.views import JobView, TryView, as_json, job_view, line_views, try_view
from ..state import AppState
from .follow import follow_job, progress_words
from .group import CreatingCommand, app_state, browser, complete_job, tell
from .running import NO_TASKS
from .text import moment, pairs, plural, safe, safe_lines, shortened, to_json

_LONGEST_VALUE = 2000


# -- list --------------------------------------------------------------------------------------------------------------


@tasks_command.command("list", cls=CreatingCommand)
@click.option("--json", "in_json", is_flag=True, help="Print one JSON object a line.")
def list_tasks(in_json: bool) -> None:
    """List the tasks that the code declares.

    With their signatures, options and schedules; those made at run time are in the status.
    """
    state = app_state()
    now = from_ms(state.store.clock())
    tasks = sorted(state.registry, key=lambda task: task.name)
    for task in tasks:
        click.echo(_task_json(task, now) if in_json else _task_text(task, now))
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
@click.option("--json", "in_json", is_flag=True, help="Print one JSON object; with --follow one for each event.")
def show_job(job_id: int, follow: bool, in_json: bool) -> None:
    """Show all that is known of one job.

    Its state, arguments and result, where it comes from, what its tries have logged, and the tracebacks of those that
    did not succeed.
    """
    if follow:
        follow_job(job_id, in_json=in_json)
        return
    state = app_state()
    job = browser().job(job_id)
    click.echo(_job_json(state, job) if in_json else "\n".join(_job_lines(state, job)))


def _job_lines(state: AppState, whole: JobWhole) -> list[str]:
    now, job = state.store.clock(), job_view(whole)
    facts = [
        ("state", _state_words(job)),
        ("arguments", _shown_call(state, whole.args)),
        ("result", shortened(to_json(_result(state, whole)), _LONGEST_VALUE) if job.state == "succeeded" else None),
        ("error", shortened(job.error.text, _LONGEST_VALUE) if job.error else None),
        ("group", job.failure_group),
        ("progress", progress_words(job) or None),
        ("queue", f"{job.queue}, priority {job.priority}, {job.kind}"),
        ("tries", _tries_words(job)),
        ("due", _ago(job.run_at, now)),
        ("enqueued", _ago(job.created_at, now)),
        ("by", _origin_words(whole.origin)),
        ("started", _ago(job.started_at, now)),
        ("finished", _ago(job.finished_at, now)),
        ("pruned", _ago(job.expires_at, now)),
        ("schedule", job.schedule and f"{job.schedule}, for {moment(job.fire_at)}"),
        ("unique key", job.unique_key),
        ("worker", job.worker_id),
        ("uid", job.uid),
    ]
    lines = [click.style(f"Job {job.id} {safe(job.task)}", bold=True), *pairs(facts)]
    tries = {one.claim: one for one in map(try_view, whole.attempts)}
    for claim in sorted({*tries, *whole.lines}):
        lines += ["", click.style(safe(_try_title(job, claim, tries.get(claim))), bold=True)]
        if (one := tries.get(claim)) is not None and one.error is not None:
            lines += [f"  {line}" for line in safe_lines(one.traceback or one.error.text).splitlines()]
        for line in whole.lines.get(claim, ()):
            lines.append(safe(f"  {from_ms(line.at):%H:%M:%S} {line.level} {line.logger}: {line.text}"))
    return lines


def _state_words(job: JobView) -> str:
    asked = ", asked to stop" if job.cancel_requested and job.state == "running" else ""
    return f"{job.state}{asked}{', discarded' if job.discarded else ''}"


def _shown_call(state: AppState, text: str) -> str:
    """The call as it would be typed; the stored text where this version of the code cannot read it."""
    try:
        args, kwargs = state.registry.codec.decode_call(text)
    except NotDecodable:
        return shortened(text, _LONGEST_VALUE)
    shown = [to_json(value) for value in args] + [f"{name}={to_json(value)}" for name, value in kwargs.items()]
    return shortened(", ".join(shown), _LONGEST_VALUE) or "none"


def _result(state: AppState, job: JobWhole) -> Any:
    if job.result is None:
        return None
    try:
        return state.registry.codec.decode(job.result)
    except NotDecodable:
        return _unread(job.result)


def _tries_words(job: JobView) -> str:
    crashes = f", {plural(job.crashes, 'crash', 'crashes')}" if job.crashes else ""
    return f"{job.attempt} of {job.max_attempts}, claimed {plural(job.claim, 'time')}{crashes}"


def _ago(milliseconds: int | None, now: int) -> str | None:
    if not milliseconds:
        return None
    age = now - milliseconds
    return f"{moment(milliseconds)} ({f'{spoken(age)} ago' if age >= 0 else f'in {spoken(-age)}'})"


def _origin_words(text: str | None) -> str | None:
    origin = read_origin(text)
    return shortened(", ".join(f"{name} {value}" for name, value in origin.items()), _LONGEST_VALUE) or None


def _try_title(job: JobView, claim: int, one: TryView | None) -> str:
    if one is None:
        # Only the last one can be of a job that runs, or that has simply succeeded.
        return f"Claim {claim}: {job.state if claim == job.claim else 'ended'}"
    took = "" if one.took_ms is None else f" after {spoken(one.took_ms)}"
    return f"Try {one.attempt}: {one.outcome}{took}, {moment(one.finished_at)}, worker {one.worker_id}"


def _job_json(state: AppState, whole: JobWhole) -> str:
    try:
        args, kwargs = state.registry.codec.decode_call(whole.args)
    except NotDecodable:
        args, kwargs = _unread(whole.args), None
    return to_json(
        as_json(job_view(whole))
        | {
            "args": args,
            "kwargs": kwargs,
            "result": _result(state, whole),
            "traceback": Failure.from_text(whole.error, None).traceback or None,
            "origin": read_origin(whole.origin) or None,
            "tries": [as_json(try_view(one)) for one in whole.attempts],
            "lines": [as_json(line) for line in line_views(whole.lines)],
        }
    )


def _unread(text: str) -> Any:
    """What another version of the code has stored, as far as JSON goes."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
