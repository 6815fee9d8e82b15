"""Job: what happened, why, and what comes next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flask import Response, current_app
from werkzeug.exceptions import Forbidden, NotFound

from ...client.origin import read_origin
from ...core.failures import frames_of
from ...core.rows import Failure
from ...core.words import spoken
from ...ops.browse import HOUR_MS
from ...ops.rows import JobWhole, add_up
from ...ops.views import JobView, TryView, job_view, try_view
from .. import redact, words
from ..redact import COVER, Unreadable, without_logins
from ..rows import job_line, possible, with_more
from ..view import Route, View

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
    job = job_view(whole)
    tries = [try_view(one) for one in whole.attempts]
    # The path of a request may hold a token.
    origin = {
        key: redact.without_path_tokens(without_logins(value)) if isinstance(value, str) else value
        for key, value in read_origin(whole.origin).items()
    }
    children = view.browser.children(whole, limit=CHILDREN + 1)
    failure = Failure.from_text(whole.error, whole.record.failure_kind) if job.error else None
    data = {
        **with_more(job, word=job.word, at=job.at),
        "progress": job.progress and replace(job.progress, text=without_logins(job.progress.text)),
        "known": view.task(job.task) is not None,
        "timeline": list(_timeline(job, tries, origin)),
        "parent": origin.get("job") if isinstance(origin.get("job"), int) else None,
        "origin": origin,
        "children": [job_line(view, row) for row in children[:CHILDREN]],
        "has_more_children": len(children) > CHILDREN,
        "payload": view.may("payload"),
        **_shown(view, whole, "args"),
        **_shown(view, whole, "result"),
        "error": failure and _error(failure, MAX_TRACEBACK),
        **_tries(view, whole, job, {one.claim: one for one in tries}),
        "tries_before": max(0, job.claim - _TRIES),
        "earlier": _earlier(view, job.task),
        "actions": possible(view, job.word),
    }
    return view.page("job.html", data, title=f"Job {job.id}")


# -- arguments and result ----------------------------------------------------------------------------------------------


def _shown(view: View, whole: JobWhole, name: str) -> dict[str, Any]:
    """One of the two as a value for JSON, as text for the page, and whether it is more; not without the permission."""
    value, text, is_cut = None, None, False
    if view.may("payload") and len(getattr(whole, name) or "") > redact.READ:
        text, is_cut = _LONG, True
    elif view.may("payload"):
        try:
            covered = _covered(view, whole, name)
            text = COVER if covered == COVER else redact.pretty(covered)
            value, is_cut = redact.cut(covered), len(text) > redact.MOST
        except Unreadable:
            text = _UNREADABLE
    return {name: value, f"{name}_text": text, f"{name}_cut": is_cut}


def _covered(view: View, whole: JobWhole, name: str) -> Any:
    task = view.task(whole.record.task)
    return redact.arguments(whole.args, task) if name == "args" else redact.result(whole.result, task)


def all_of(view: View, job_id: int) -> Response:
    """All of the arguments, of the result, of the error or of the log, covered, as plain text. Raises JobNotFound."""
    what = view.choice("what", ("args", "result", "error", "log"), "args")
    if what != "error" and not view.may("payload"):
        raise Forbidden("You may not see this: it needs the permission 'payload'.")
    whole = view.browser.job(job_id, tries=_TRIES if what == "log" else 0)
    failure = Failure.from_text(whole.error, whole.record.failure_kind) if job_view(whole).error else None
    try:
        match what:
            case "error" if failure is None:
                raise NotFound(f"Job {job_id} has no error.")
            case "error":
                text = without_logins(failure.traceback or failure.message) if failure else ""
            case "log":
                lines = [line for _, some in sorted(whole.lines.items()) for line in some]
                told = (f"{words.stamp(line.at)} {line.level} {line.logger}: {line.text}" for line in lines)
                text = "".join(f"{without_logins(line)}\n" for line in told)
            case _:
                text = redact.pretty(_covered(view, whole, what), None)
    except Unreadable:
        raise NotFound(f"{_UNREADABLE[1:-1].capitalize()}.") from None
    response = current_app.response_class(text.encode("utf-8", "replace"), content_type="text/plain; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="job-{job_id}-{what}.txt"'
    return response


# -- errors and tries --------------------------------------------------------------------------------------------------


def _error(failure: Failure, most: int) -> dict[str, Any]:
    """A failure with at most *most* characters of its traceback."""
    frames = frames_of(failure.traceback)
    own = [frame for frame in frames if frame.own] or frames[-1:]
    shown = min(most, redact.MOST)
    return {
        "kind": failure.kind,
        "type": failure.type,
        "message": without_logins(failure.message[:shown]),
        # The innermost first: there it was raised.
        "frames": [
            {**frame._asdict(), "source": without_logins(frame.source[:300])} for frame in own[: -_FRAMES - 1 : -1]
        ],
        "traceback": without_logins(failure.traceback[-most:]),
        "is_cut": len(failure.traceback) > most or len(failure.message) > shown,
    }


def _tries(view: View, whole: JobWhole, job: JobView, known: dict[int, TryView]) -> dict[str, Any]:
    """The tries of which something is known, newest first, with the last lines that each has logged."""
    errors = {one.claim: one.error for one in whole.attempts}
    tries, left = [], MAX_LOG
    for claim in sorted({*known, *whole.lines, job.claim} - {0}, reverse=True)[:_TRIES]:
        lines = []
        for line in reversed(whole.lines.get(claim, []) if view.may("payload") else []):
            left -= len(line.logger) + len(line.text)
            if left < 0:
                break
            lines.append({**line._asdict(), "text": without_logins(line.text)})
        one = with_more(known[claim]) if claim in known else _other_try(job, claim)
        error = errors.get(claim)
        one["error"] = _error(Failure.from_text(error, None), _BRIEF) if error else None
        one.pop("traceback", None)
        tries.append({**one, "is_above": error is not None and error == whole.error, "lines": lines[::-1]})
    return {"tries": tries, "log_cut": left < 0}


def _other_try(job: JobView, claim: int) -> dict[str, Any]:
    """A try that simply succeeded, or goes on, has no row: the job's own says it."""
    last = claim == job.claim and job.state in ("running", "succeeded")
    names = ("attempt", "worker_id", "started_at", "finished_at", "took_ms")
    return {
        "claim": claim,
        "outcome": job.state if last else "ended",
        **{name: getattr(job, name) if last else None for name in names},
    }


# -- the timeline ------------------------------------------------------------------------------------------------------


def _timeline(job: JobView, tries: list[TryView], origin: dict[str, Any]) -> Iterator[dict[str, Any]]:
    by = f"by the schedule {job.schedule}" if job.schedule else ""
    for name, word in (("job", "by job"), ("request", "by"), ("command", "by the command")):
        by = by or (f"{word} {origin[name]}" if name in origin else "")
    yield _step("enqueued", at=job.created_at, detail=by)
    first = tries[0].started_at if tries else job.started_at
    since = job.created_at if tries else max(job.run_at, job.created_at)
    if first and first >= since:
        yield _step(f"waited {spoken(first - since)}")
    steps = [
        _step(
            f"try {one.attempt}",
            state="failed" if one.outcome in ("failed", "retrying") else one.outcome,
            at=one.finished_at,
            detail="" if one.took_ms is None else f"after {spoken(one.took_ms)}",
        )
        for one in tries
    ]
    if (left_out := len(steps) - _FIRST - _LAST) > 0:
        steps[_FIRST:-_LAST] = [_step(f"{left_out} more tries")]
    yield from steps
    match job.state:
        case "scheduled" | "retrying":
            yield _step("next try" if job.failures else "due", state=job.word, at=job.run_at)
        case "running":
            yield _step(f"try {job.attempt}", state=job.word, at=job.started_at)
        case "ready":
            yield _step("waits for a worker", state=job.word, at=job.run_at)
        case state:
            took = f"took {spoken(job.took_ms)}" if state == "succeeded" and job.took_ms is not None else ""
            yield _step("ended", state=state, at=job.finished_at, detail=took)


def _step(what: str, *, state: str | None = None, at: int | None = None, detail: str = "") -> dict[str, Any]:
    return {"what": what, "state": state, "at": at or None, "detail": detail}


def _earlier(view: View, task: str) -> dict[str, Any] | None:
    """How the task did in the last day."""
    start = view.now // _STEP_MS * _STEP_MS - (_SLICES - 1) * _STEP_MS
    found = {f.start: f for f in view.browser.figures(start, step=_STEP_MS, span=3600, task=task)}
    total = add_up(list(found.values()))
    if total is None:
        return None
    slices = (found.get(start + i * _STEP_MS) for i in range(_SLICES))
    medians = (one.run_percentile(0.5) if one else None for one in slices)
    return {
        "tries": sum(total.run),
        "succeeded": total.succeeded,
        "failed": total.failed,
        "p50": total.run_percentile(0.5),
        "p95": total.run_percentile(0.95),
        "longest_ms": total.longest_ms,
        "medians_s": [round(median.ms / 1000, 3) if median else 0 for median in medians],
    }


ROUTES = (
    Route("/jobs/<int:job_id>", "job", page),
    Route("/jobs/<int:job_id>/all", "job_all", all_of, arguments=("what",)),
)
