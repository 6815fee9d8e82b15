"""Job: what happened, why, and what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Response, current_app
from werkzeug.exceptions import Forbidden, NotFound

from ...client.origin import read_origin
from ...core.failures import Frame, frames_of
from ...core.filters import JobFilter
from ...core.rows import Failure, JobRecord, Progress
from ...core.words import spoken
from ...ops.browse import HOUR_MS
from ...ops.rows import Figures, JobWhole, add_up
from ...store.sql import Attempt
from .. import charts, redact, words
from ..filtering import filter_text
from ..redact import COVER, Unreadable, without_logins
from ..routes import Route
from ..rows import WORDS, attempt, duration, error_line, job_row, percent, possible
from ..view import View
from ..words import state_of

_STEP_MS = 2 * HOUR_MS
_SLICES = 12
_UNREADABLE = "(what is stored cannot be read as JSON, so it is not shown)"
_TRIES = 20
"""Tries that are shown: the newest."""
_FIRST, _LAST = 3, 6
"""Tries at both ends of the timeline that are shown."""
CHILDREN = 20
MAX_TRACEBACK = 20_000
"""Characters at the end of a traceback that are shown."""
MAX_LOG = 100_000
"""Characters of log lines that are shown, those of the newest tries first."""
_BRIEF = 4_000
"""Characters of the message, and of the traceback, of an earlier try."""
_FRAMES = 10
"""Frames of the application's own code that are shown."""
_LONG = f"(more than {redact.READ:,} characters, which are not shown here)"


def page(view: View, job_id: int) -> Response:
    """One job. Raises JobNotFound."""
    whole = view.browser.job(job_id, tries=_TRIES, most=redact.READ)
    record = whole.record
    state = state_of(record, whole.discarded)
    origin = {key: _plain(value) for key, value in read_origin(whole.origin).items()}
    failure = _failure(whole)
    data = {
        "id": record.id,
        "task": record.task,
        "known": view.task(record.task) is not None,
        "state": state,
        "cancel_requested": bool(record.cancel_requested) and record.state == "running",
        "facts": _facts(record, whole),
        "times": {name: getattr(record, name) or None for name in _TIMES},
        "took_ms": duration(record),
        "timeline": _timeline(whole, state, origin),
        "parent": origin.get("job") if isinstance(origin.get("job"), int) else None,
        "origin": origin,
        **_children(view, whole),
        "payload": view.may("payload"),
        **_payload(view, whole),
        "progress": _progress(record),
        "error": failure and _error(failure),
        **_tries(view, whole),
        "tries_before": max(0, record.claim - _TRIES),
        "earlier": _earlier(view, record.task),
        "alike": filter_text(JobFilter(group=whole.failure_group)) if whole.failure_group else None,
        "its_jobs": filter_text(JobFilter(task=record.task)),
        "actions": [(action, WORDS[action]) for action in possible(view, state)],
    }
    return view.page("job.html", data, title=f"Job {record.id}")


def _plain(value: object) -> object:
    """A fact of a job's origin; the path of a request may hold a token."""
    return redact.without_path_tokens(without_logins(value)) if isinstance(value, str) else value


_TIMES = ("created_at", "run_at", "started_at", "finished_at", "expires_at")


def _facts(record: JobRecord, whole: JobWhole) -> dict[str, Any]:
    return {
        "queue": record.queue,
        "kind": record.kind,
        "priority": record.priority,
        "attempt": attempt(record),
        "max_attempts": record.max_attempts,
        "failures": record.failures,
        "crashes": record.crashes,
        "timeout_s": None if record.timeout is None else record.timeout / 1000,
        "schedule": record.schedule,
        "fire_at": record.fire_at,
        "unique_key": record.unique_key,
        "at_most_once": bool(record.at_most_once),
        "worker": record.worker_id,
        "uid": record.uid,
        "group": whole.failure_group,
    }


def _children(view: View, whole: JobWhole) -> dict[str, Any]:
    """The jobs that were enqueued inside this one, and where there are more."""
    found = view.browser.children(whole, limit=CHILDREN + 1)
    return {
        "children": [job_row(view, row) for row in found[:CHILDREN]],
        "more_children": filter_text(JobFilter(parent=whole.record.id)) if len(found) > CHILDREN else None,
    }


# -- arguments, result, progress ---------------------------------------------------------------------------------------


def _payload(view: View, whole: JobWhole) -> dict[str, Any]:
    """Arguments and result, as values for JSON and as text for the page; nothing without the permission."""
    shown: dict[str, Any] = {}
    for name in ("args", "result"):
        value, text, is_cut = _shown(view, whole, name) if view.may("payload") else (None, None, False)
        shown |= {name: value, f"{name}_text": text, f"{name}_cut": is_cut}
    return shown


def _shown(view: View, whole: JobWhole, name: str) -> tuple[Any, str, bool]:
    """One of the two as a value, as text, and whether it is more than that."""
    if len(getattr(whole, name) or "") > redact.READ:
        return None, _LONG, True
    try:
        value = _covered(view, whole, name)
    except Unreadable:
        return None, _UNREADABLE, False
    text = COVER if value == COVER else redact.pretty(value)
    return redact.cut(value), text, len(text) > redact.MOST


def _covered(view: View, whole: JobWhole, name: str) -> Any:
    task = view.task(whole.record.task)
    return redact.arguments(whole.args, task) if name == "args" else redact.result(whole.result, task)


def all_of(view: View, job_id: int) -> Response:
    """All of the arguments, of the result, of the error or of the log, covered, as plain text. Raises JobNotFound."""
    what = view.choice("what", ("args", "result", "error", "log"), "args")
    if what != "error" and not view.may("payload"):
        raise Forbidden("You may not see this: it needs the permission 'payload'.")
    whole = view.browser.job(job_id, tries=_TRIES if what == "log" else 0)
    try:
        match what:
            case "error":
                text = _words(whole)
            case "log":
                text = _log(whole)
            case _:
                text = redact.pretty(_covered(view, whole, what), None)
    except Unreadable:
        raise NotFound(f"{_UNREADABLE[1:-1].capitalize()}.") from None
    response = current_app.response_class(text.encode("utf-8", "replace"), content_type="text/plain; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="job-{job_id}-{what}.txt"'
    return response


def _words(whole: JobWhole) -> str:
    failure = _failure(whole)
    if failure is None:
        raise NotFound(f"Job {whole.record.id} has no error.")
    return without_logins(failure.traceback or failure.message)


def _log(whole: JobWhole) -> str:
    return "".join(
        f"{words.stamp(line.at)} {line.level} {line.logger}: {without_logins(line.text)}\n"
        for claim in sorted(whole.lines)
        for line in whole.lines[claim]
    )


def _progress(record: JobRecord) -> dict[str, Any] | None:
    progress = Progress.from_text(record.progress)
    if progress is None:
        return None
    total = "" if progress.total is None else f" of {progress.total:,.10g}"
    return {
        "done": progress.done,
        "total": progress.total,
        "percent": percent(record.progress),
        "text": without_logins(f"{progress.done:,.10g}{total} {progress.text}".strip()),
    }


# -- errors ------------------------------------------------------------------------------------------------------------


def _failure(whole: JobWhole) -> Failure | None:
    if whole.error is None and whole.record.failure_kind is None:
        return None
    return Failure.from_text(whole.error, whole.record.failure_kind)


def _error(failure: Failure, most: int = MAX_TRACEBACK) -> dict[str, Any]:
    frames = frames_of(failure.traceback)
    own = [frame for frame in frames if frame.own] or frames[-1:]
    message = min(most, redact.MOST)
    return {
        "kind": failure.kind,
        "type": failure.type,
        "line": error_line(failure),
        "message": without_logins(failure.message[:message]),
        # The innermost first: there it was raised.
        "frames": [_frame(frame) for frame in own[: -_FRAMES - 1 : -1]],
        "traceback": without_logins(failure.traceback[-most:]),
        "is_cut": len(failure.traceback) > most or len(failure.message) > message,
    }


def _frame(frame: Frame) -> dict[str, Any]:
    return {**frame._asdict(), "source": without_logins(frame.source[:300])}


# -- tries -------------------------------------------------------------------------------------------------------------


def _tries(view: View, whole: JobWhole) -> dict[str, Any]:
    """The known attempts, newest first, with the last lines that each has logged."""
    record = whole.record
    known = {one.claim: one for one in whole.attempts}
    tries, left = [], MAX_LOG
    for claim in sorted({*known, *whole.lines, record.claim} - {0}, reverse=True)[:_TRIES]:
        one = _known_try(known[claim], whole.error) if claim in known else _other_try(record, claim)
        lines = []
        for line in reversed(whole.lines.get(claim, []) if view.may("payload") else []):
            left -= len(line.logger) + len(line.text)
            if left < 0:
                break
            lines.append({**line._asdict(), "text": without_logins(line.text)})
        tries.append({**one, "lines": lines[::-1]})
    return {"tries": tries, "log_cut": left < 0}


def _known_try(one: Attempt, shown: str | None) -> dict[str, Any]:
    failure = Failure.from_text(one.error, None) if one.error else None
    return {
        "claim": one.claim,
        "attempt": one.attempt,
        "outcome": one.outcome,
        "worker": one.worker_id,
        "started_at": one.started_at,
        "finished_at": one.finished_at,
        "took_ms": max(0, one.finished_at - one.started_at) if one.started_at else None,
        "error": failure and _error(failure, _BRIEF),
        "is_above": one.error is not None and one.error == shown,
    }


def _other_try(record: JobRecord, claim: int) -> dict[str, Any]:
    """Of a try that simply succeeded, or goes on, no row is kept: the job's own says it."""
    last = claim == record.claim and record.state in ("running", "succeeded")
    return {
        "claim": claim,
        "attempt": attempt(record) if last else None,
        "outcome": record.state if last else "ended",
        "worker": record.worker_id if last else None,
        "started_at": record.started_at if last else None,
        "finished_at": record.finished_at if last else None,
        "took_ms": duration(record) if last else None,
        "error": None,
        "is_above": False,
    }


# -- the timeline ------------------------------------------------------------------------------------------------------


def _timeline(whole: JobWhole, state: str, origin: dict[str, Any]) -> list[dict[str, Any]]:
    record = whole.record
    steps = [{"what": "enqueued", "state": None, "at": record.created_at, "detail": _by(origin, record)}]
    steps += _wait(record, whole.attempts)
    steps += _elided([_try_step(one) for one in whole.attempts])
    return [*steps, _where_it_stands(record, state)]


def _where_it_stands(record: JobRecord, state: str) -> dict[str, Any]:
    match state:
        case "scheduled" | "retrying":
            what, at = "next try" if record.failures else "due", record.run_at
        case "running":
            what, at = f"try {attempt(record)}", record.started_at or 0
        case "ready":
            what, at = "waits for a worker", record.run_at
        case _:
            what, at = "ended", record.finished_at or 0
    took = duration(record) if record.state == "succeeded" else None
    return {
        "what": what,
        "state": record.state if record.finished_at else state,
        "at": at or None,
        "detail": f"took {spoken(took)}" if took is not None else "",
    }


def _by(origin: dict[str, Any], record: JobRecord) -> str:
    if record.schedule:
        return f"by the schedule {record.schedule}"
    for name, word in (("job", "by job"), ("request", "by"), ("command", "by the command")):
        if name in origin:
            return f"{word} {origin[name]}"
    return ""


def _wait(record: JobRecord, attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """How long it waited for its first try, where that is known."""
    first = attempts[0].started_at if attempts else record.started_at
    since = record.created_at if attempts or not record.run_at else max(record.run_at, record.created_at)
    if not first or first < since:
        return []
    return [{"what": f"waited {spoken(first - since)}", "state": None, "at": None, "detail": ""}]


def _try_step(one: Attempt) -> dict[str, Any]:
    took = f"after {spoken(one.finished_at - one.started_at)}" if one.started_at else ""
    state = "failed" if one.outcome in ("failed", "retrying") else one.outcome
    return {"what": f"try {one.attempt}", "state": state, "at": one.finished_at, "detail": took}


def _elided(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    left_out = len(steps) - _FIRST - _LAST
    if left_out <= 0:
        return steps
    gap = {"what": f"{left_out} more tries", "state": None, "at": None, "detail": ""}
    return [*steps[:_FIRST], gap, *steps[-_LAST:]]


# -- earlier runs ------------------------------------------------------------------------------------------------------


def _earlier(view: View, task: str) -> dict[str, Any] | None:
    """How the task did in the last day."""
    start = view.now // _STEP_MS * _STEP_MS - (_SLICES - 1) * _STEP_MS
    found = {f.start: f for f in view.browser.figures(start, step=_STEP_MS, span=3600, task=task)}
    total = add_up(list(found.values()))
    if total is None:
        return None
    medians = [_seconds(found.get(start + i * _STEP_MS)) for i in range(_SLICES)]
    return {
        "tries": sum(total.run),
        "succeeded": total.succeeded,
        "failed": total.failed,
        "p50": words.percentile(total.run_percentile(0.5)),
        "p95": words.percentile(total.run_percentile(0.95)),
        "longest_ms": total.longest_ms,
        "chart": charts.sparkline(medians, "Median seconds, in 2 hours each"),
    }


def _seconds(figures: Figures | None) -> float:
    p50 = figures.run_percentile(0.5) if figures else None
    return round(p50.ms / 1000, 3) if p50 else 0.0


ROUTES = (
    Route("/jobs/<int:job_id>", "job", page),
    Route("/jobs/<int:job_id>/all", "job_all", all_of, arguments=("what",)),
)
