"""``flask tasks list`` and ``flask tasks job``: what the code declares, and what is known of one job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import click

from ..commands import tasks_command
from ..core.clock import from_ms
from ..core.retry import Retry
from ..core.tasks import Task
from ..core.words import spoken
from ..errors import NotDecodable
from ..ops.job_page import JobPage
from ..ops.rows import StepRow
from ..ops.views import (
    JobView,
    ScheduleView,
    TryView,
    as_json,
    declared_schedules,
    schedule_view,
)
from .follow import follow_job, progress_words
from .group import AS_JSON, CreatingCommand, app_state, browser, complete_job, complete_job_in, tell
from .running import NO_TASKS
from .schedules import next_in
from .text import moment, pairs, plural, safe, safe_lines, shortened, to_json

_LONGEST_VALUE = 2000


# -- list --------------------------------------------------------------------------------------------------------------


@tasks_command.command("list", cls=CreatingCommand)
@AS_JSON
def list_tasks(in_json: bool) -> None:
    """List the tasks that the code declares.

    With their signatures, options and schedules. See the status for schedules made at run time.
    """
    state = app_state()
    now = state.store.clock()
    tasks = sorted(state.registry, key=lambda task: task.name)
    schedules = [schedule_view(row, now) for row in declared_schedules(state.registry, (), now, state.config.timezone)]
    for task in tasks:
        own = [schedule for schedule in schedules if schedule.task == task.name]
        click.echo(_task_json(task, own) if in_json else _task_text(task, own, now))
    if not tasks:
        tell(NO_TASKS)


def _task_text(task: Task[..., Any, Any], schedules: list[ScheduleView], now: int) -> str:
    options = task.options
    facts = [task.kind, f"queue {options.queue}"]
    if options.priority:
        facts.append(f"priority {options.priority}")
    for policy in options.retries:
        kinds = "" if policy.on == (Exception,) else f" after {', '.join(kind.__name__ for kind in policy.on)}"
        facts.append(f"retry{kinds}: {policy.max_attempts} tries, {_backoff(policy)}")
        if not isinstance(policy.backoff, tuple):
            facts.append(f"from {_period(policy.base)} to {_period(policy.cap)}")
    if not options.retries:
        facts.append("no retry")
    if options.timeout:
        facts.append(f"timeout {_period(options.timeout)}")
    lines = [click.style(safe(task.name), bold=True) + safe(_signature(task)), f"    {safe(', '.join(facts))}"]
    for schedule in schedules:
        explained = f' "{schedule.explained}"' if schedule.explained else ""
        fires = f"next {moment(schedule.next_at)} ({next_in(schedule, now)})" if schedule.next_at else "never again"
        lines.append(f"    {safe(f'schedule {schedule.name}: {schedule.when}{explained}, {fires}')}")
    return "\n".join(lines)


def _period(period: timedelta) -> str:
    return spoken(round(period.total_seconds() * 1000))


def _backoff(retry: Retry) -> str:
    if isinstance(retry.backoff, tuple):
        return f"after {', '.join(_period(delay) for delay in retry.backoff)}"
    return retry.backoff if isinstance(retry.backoff, str) else getattr(retry.backoff, "__name__", "own back-off")


class _Bare:
    """An annotation that is written without quotes: under ``from __future__ import annotations`` all are strings."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __repr__(self) -> str:
        return self._words


def _signature(task: Task[..., Any, Any]) -> str:
    def bare(annotation: Any) -> Any:
        return _Bare(annotation) if isinstance(annotation, str) else annotation

    signature = task._signature
    parameters = [p.replace(annotation=bare(p.annotation)) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=bare(signature.return_annotation)))


def _task_json(task: Task[..., Any, Any], schedules: list[ScheduleView]) -> str:
    options = task.options
    return to_json(
        {
            "name": task.name,
            "signature": _signature(task),
            "kind": task.kind,
            "queue": options.queue,
            "priority": options.priority,
            "max_attempts": task.max_attempts,
            "retry": [
                {
                    "max_attempts": policy.max_attempts,
                    "backoff": _backoff(policy),
                    "base_s": policy.base.total_seconds(),
                    "cap_s": policy.cap.total_seconds(),
                    "jitter": policy.jitter,
                    "on": [kind.__name__ for kind in policy.on],
                    "never": [kind.__name__ for kind in policy.never],
                }
                for policy in options.retries
            ],
            "timeout_s": options.timeout and options.timeout.total_seconds(),
            "schedules": [as_json(schedule) for schedule in schedules],
        }
    )


# -- job ---------------------------------------------------------------------------------------------------------------


@tasks_command.command("job")
@click.argument("job_id", metavar="ID", type=int, shell_complete=complete_job)
@click.option(
    "--follow",
    is_flag=True,
    help="Show state, progress and log lines as they come, until the job has ended. Exits with 1 if it failed.",
)
@click.option("--json", "in_json", is_flag=True, help="Print one JSON object; with --follow one per event.")
def show_job(job_id: int, follow: bool, in_json: bool) -> None:
    """Show everything about one job.

    Its state, arguments and result, where it was enqueued, what its tries logged, and the tracebacks of failed tries.
    """
    if follow:
        follow_job(job_id, in_json=in_json)
        return
    state = app_state()
    now, codec = state.store.clock(), state.registry.codec
    page = JobPage.take(browser(), job_id, now=now)
    job = page.job
    args: Any
    kwargs: Any
    try:
        args, kwargs = codec.decode_call(page.args)
    except NotDecodable:
        args, kwargs = _unread(page.args), None
    try:
        result = None if page.result is None else codec.decode(page.result)
    except NotDecodable:
        result = _unread(page.result or "")
    if in_json:
        more = {
            "args": args,
            "kwargs": kwargs,
            "result": result,
            "traceback": page.traceback or None,
            "meta": page.meta,
            "origin": page.origin or None,
            "expires_ms": page.expires_ms,
            "tries": as_json(page.tries),
            "steps": as_json([one._asdict() for one in page.steps]),
            "calls": as_json(page.calls),
            "lane": page.lane,
            "children": [row.record.id for row in page.children],
            "has_more_children": page.has_more_children,
            "earlier": as_json(page.earlier),
        }
        click.echo(to_json(as_json(job) | more))
        return
    payload = [
        ("lane", page.lane),
        ("arguments", _call(page.args, args, kwargs)),
        ("result", to_json(result) if job.state == "succeeded" else None),
        ("meta", to_json(page.meta) if page.meta else None),
        ("by", ", ".join(f"{name} {value}" for name, value in page.origin.items()) or None),
        ("expires", f"{spoken(page.expires_ms)} after it is due" if page.expires_ms is not None else None),
        (
            "stands for",
            f"{plural(page.calls.calls, 'call')}, the last {_ago(page.calls.last_at, now)}" if page.calls else None,
        ),
    ]
    click.echo(click.style(f"Job {job.id} {safe(job.task)}", bold=True))
    click.echo("\n".join(_facts(job, payload, now)))
    for step in reversed(page.steps):
        click.echo(safe(_step_line(step)))
    for one in page.tries:
        click.echo("\n".join(_try_lines(one)))


def _call(stored: str, args: Any, kwargs: Any) -> str:
    """The arguments as they would be typed; the stored text where this version of the code cannot read it."""
    words = [to_json(value) for value in args] if kwargs is not None else [stored]
    words += [f"{name}={to_json(value)}" for name, value in (kwargs or {}).items()]
    return ", ".join(words) or "none"


def _step_line(step: StepRow) -> str:
    if step.ended_at is None:
        until = "" if step.due_at is None else f" until {moment(step.due_at)}"
        return f"{step.kind} {step.name} (execution {step.claim}){until}"
    took = spoken(step.ended_at - step.began_at)
    return f"{step.kind} {step.name} (execution {step.claim}, {took}): {step.result or 'null'}"


@tasks_command.command("why")
@click.argument("job_id", metavar="ID", type=int, shell_complete=complete_job_in("scheduled", "held", "ready"))
@AS_JSON
def show_why(job_id: int, in_json: bool) -> None:
    """Show why a job waits, and what would end that.

    Prints nothing but its state for a job that runs or has ended.
    """
    job = app_state().client.job(job_id)
    reasons = job.why()
    tell(f"Job {job.id} {job.task} is {job.state}.")
    for reason in reasons:
        click.echo(to_json(as_json(reason)) if in_json else safe(f"{reason.text} {reason.ends}"))


def _unread(text: str) -> Any:
    """What another version of the code has stored, as far as JSON goes."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _facts(job: JobView, payload: list[tuple[str, str | None]], now: int) -> list[str]:
    asked = ", asked to stop" if job.cancel_requested and job.state == "running" else ""
    crashes = f", {plural(job.crashes, 'crash', 'crashes')}" if job.crashes else ""
    facts = [
        ("state", f"{job.state}{asked}{', discarded' if job.discarded else ''}"),
        *payload,
        ("error", job.error.text if job.error else None),
        ("group", job.failure_group),
        ("progress", progress_words(job) or None),
        ("queue", f"{job.queue}, priority {job.priority}, {job.kind}"),
        ("try", f"{job.attempt} of {job.max_attempts}, claimed {plural(job.claim, 'time')}{crashes}"),
        ("due", _ago(job.run_at, now)),
        ("enqueued", _ago(job.created_at, now)),
        ("started", _ago(job.started_at, now)),
        ("finished", _ago(job.finished_at, now)),
        ("pruned", _ago(job.expires_at, now)),
        ("schedule", job.schedule and f"{job.schedule}, for {moment(job.fire_at)}"),
        ("unique key", job.unique_key),
        ("worker", job.worker_id),
        ("uid", job.uid),
    ]
    return pairs([(name, value and shortened(value, _LONGEST_VALUE)) for name, value in facts])


def _ago(milliseconds: int | None, now: int) -> str | None:
    if not milliseconds:
        return None
    age = now - milliseconds
    return f"{moment(milliseconds)} ({f'{spoken(age)} ago' if age >= 0 else f'in {spoken(-age)}'})"


def _try_lines(one: TryView) -> Iterator[str]:
    title = f"Claim {one.claim}" if one.attempt is None else f"Try {one.attempt}"
    took = "" if one.took_ms is None else f" after {spoken(one.took_ms)}"
    ended = f", {moment(one.finished_at)}" if one.finished_at else ""
    worker = f", worker {one.worker_id}" if one.worker_id else ""
    yield f"\n{click.style(safe(f'{title}: {one.outcome}{took}{ended}{worker}'), bold=True)}"
    if one.error is not None:
        yield from (f"  {line}" for line in safe_lines(one.traceback or one.error.text).splitlines())
    for line in one.lines:
        yield safe(f"  {from_ms(line.at):%H:%M:%S} {line.level} {line.logger}: {line.text}")
