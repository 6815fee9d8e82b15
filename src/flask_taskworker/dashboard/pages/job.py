"""Job: what happened, why, and what comes next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flask import Response, current_app
from werkzeug.exceptions import BadRequest, Forbidden, NotFound

from ...core.failures import frames_of
from ...core.rows import Failure
from ...core.words import spoken, stamp
from ...errors import JobFinished, StepError
from ...ops.browse import MOST_DRAWN
from ...ops.job_page import JobPage
from ...ops.rows import LogLine, StepRow
from ...ops.views import ErrorView, job_view, with_more
from .. import redact
from ..graphs import drawing
from ..redact import COVER, Unreadable, without_logins
from ..rows import job_line, possible
from ..view import Route, View

_UNREADABLE = "(what is stored cannot be read as JSON, so it is not shown)"
_TRIES = 20
"""Tries that are shown: the newest."""
_FIRST, _LAST = 3, 6
"""Tries at both ends of the timeline that are shown."""
MAX_TRACEBACK = 20_000
"""Characters at the end of a traceback that are shown."""
MAX_LOG = 100_000
"""Characters of log lines that are shown, those of the newest tries first."""
_BRIEF = 4_000
"""Characters of the message, and of the traceback, of an earlier try."""
_FRAMES = 10
"""Frames of the application's own code that are shown."""
_NO_GRAPH: dict[str, Any] = {"after": [], "after_batches": [], "then": [], "drawing": None}
_WAITING = ("scheduled", "waiting", "retrying", "held", "ready")
_LONG = f"(more than {redact.READ:,} characters, which are not shown here)"


def page(view: View, job_id: int) -> Response:
    """One job. Raises JobNotFound."""
    found = JobPage.take(view.browser, job_id, now=view.now, tries=_TRIES, most=redact.READ)
    job = found.job
    # The path of a request may hold a token.
    origin = {
        key: redact.without_path_tokens(without_logins(value)) if isinstance(value, str) else value
        for key, value in found.origin.items()
    }
    data = {
        **with_more(job, word=job.word, at=job.at),
        "progress": job.progress and replace(job.progress, text=without_logins(job.progress.text)),
        "why": view.state.client.why(job_id) if job.state in _WAITING else [],
        **(_graph(view, job_id) if found.in_graph else _NO_GRAPH),
        "known": view.task(job.task) is not None,
        "timeline": list(_timeline(found, origin)),
        "parent": origin.get("job") if isinstance(origin.get("job"), int) else None,
        "origin": origin,
        "calls": found.calls,
        "lane": found.lane,
        "expires_ms": found.expires_ms,
        "children": [job_line(view, row) for row in found.children],
        "has_more_children": found.has_more_children,
        "payload": view.may("payload"),
        **_shown(view, found, "args"),
        **_shown(view, found, "result"),
        "meta": redact.cut(_covered(view, job.task, "result", json.dumps(found.meta))) if view.may("payload") else None,
        "error": job.error and _error(job.error, found.traceback, MAX_TRACEBACK),
        **_tries(view, found),
        "waits_for": next((s.name for s in found.steps if s.kind == "wait" and s.ended_at is None), None)
        if job.finished_at is None and view.may("tell")
        else None,
        "steps": [_stored_step(view, job.task, one) for one in found.steps],
        "tries_before": max(0, job.claim - _TRIES),
        "earlier": found.earlier,
        "actions": possible(view, job),
    }
    return view.page("job.html", data, title=f"Job {job.id}")


# -- arguments and result ----------------------------------------------------------------------------------------------


def _graph(view: View, job_id: int) -> dict[str, Any]:
    """What it waits for, what waits for it, and a drawing of all that hangs together, if that is not much."""
    graph = view.browser.graph(job_id)
    lines = {number: job_line(view, row) for number, row in graph.jobs.items()}
    above = sorted(parent for parent, child in graph.edges if child == job_id)
    below = sorted(child for parent, child in graph.edges if parent == job_id)
    return {
        "after": [lines[one] for one in above if one in lines],
        "after_batches": [-one for one in above if one < 0],
        "then": [lines[one] for one in below if one in lines],
        "drawing": drawing(graph, job_id) if 1 < len(graph.jobs) <= MOST_DRAWN else None,
    }


def _shown(view: View, found: JobPage, name: str) -> dict[str, Any]:
    """One of the two as a value for JSON, as text for the page, and whether it is more; not without the permission."""
    value, text, is_cut = None, None, False
    stored = found.args if name == "args" else found.result
    if view.may("payload") and len(stored or "") > redact.READ:
        text, is_cut = _LONG, True
    elif view.may("payload"):
        try:
            covered = _covered(view, found.job.task, name, stored)
            text = COVER if covered == COVER else redact.pretty(covered)
            value, is_cut = redact.cut(covered), len(text) > redact.MOST
        except Unreadable:
            text = _UNREADABLE
    return {name: value, f"{name}_text": text, f"{name}_cut": is_cut}


def _stored_step(view: View, task: str, step: StepRow) -> dict[str, Any]:
    """A step with what it has returned, covered as the result of the job; without the permission not even that."""
    text = None
    if view.may("payload"):
        try:
            is_long = len(step.result or "") > redact.READ
            text = _LONG if is_long else redact.pretty(_covered(view, task, "result", step.result))[:_BRIEF]
        except Unreadable:
            text = _UNREADABLE
    took_ms = None if step.ended_at is None else step.ended_at - step.began_at
    return {**step._asdict(), "took_ms": took_ms, "result": text}


def _covered(view: View, name: str, what: str, stored: str | None) -> Any:
    task = view.task(name)
    return redact.arguments(stored or "", task) if what == "args" else redact.result(stored, task)


def all_of(view: View, job_id: int) -> Response:
    """All of the arguments, of the result, of the error or of the log, covered, as plain text. Raises JobNotFound."""
    what = view.choice("what", ("args", "result", "error", "log"), "args")
    if what != "error" and not view.may("payload"):
        raise Forbidden("You may not see this: it needs the permission 'payload'.")
    whole = view.browser.job(job_id, tries=_TRIES if what == "log" else 0)
    try:
        match what:
            case "error" if job_view(whole).error is None:
                raise NotFound(f"Job {job_id} has no error.")
            case "error":
                failure = Failure._from_text(whole.error, None)
                text = without_logins(failure.traceback or failure.message)
            case "log":
                lines = [line for _, some in sorted(whole.lines.items()) for line in some]
                told = (f"{stamp(line.at)} {line.level} {line.logger}: {line.text}" for line in lines)
                text = "".join(f"{without_logins(line)}\n" for line in told)
            case _:
                text = redact.pretty(_covered(view, whole.record.task, what, getattr(whole, what)), None)
    except Unreadable:
        raise NotFound(f"{_UNREADABLE[1:-1].capitalize()}.") from None
    response = current_app.response_class(text.encode("utf-8", "replace"), content_type="text/plain; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="job-{job_id}-{what}.txt"'
    return response


def tell(view: View, job_id: int) -> Response:
    """Give the job what it waits for, as JSON."""
    name, text = view.form("name"), view.form("value")
    try:
        view.operations("tell").tell(job_id, name, json.loads(text or "null"))
    except (ValueError, StepError) as error:
        raise BadRequest(f'The value must be JSON, such as true, 7 or "text": {error}') from error
    except JobFinished as error:
        return view.redirect("job", job_id=job_id, message=str(error))
    return view.redirect("job", job_id=job_id, message=f"Job {job_id} has the notice {name!r}.")


# -- errors and tries --------------------------------------------------------------------------------------------------


def _error(error: ErrorView, traceback: str, most: int) -> dict[str, Any]:
    """A failure with at most *most* characters of its traceback."""
    frames = frames_of(traceback)
    own = [frame for frame in frames if frame.own] or frames[-1:]
    shown = min(most, redact.MOST)
    return {
        "kind": error.kind,
        "type": error.type,
        "message": without_logins(error.message[:shown]),
        # The innermost first: there it was raised.
        "frames": [
            {**frame._asdict(), "source": without_logins(frame.source[:300])} for frame in own[: -_FRAMES - 1 : -1]
        ],
        "traceback": without_logins(traceback[-most:]),
        "is_cut": len(traceback) > most or len(error.message) > shown,
    }


def _tries(view: View, found: JobPage) -> dict[str, Any]:
    """The tries, newest first, with the last lines that each has logged."""
    job_error = found.job.error
    tries, left = [], MAX_LOG
    for one in found.tries[: -_TRIES - 1 : -1]:
        lines: list[LogLine] = []
        for line in reversed(one.lines if view.may("payload") else ()):
            left -= len(line.logger) + len(line.text)
            if left < 0:
                break
            lines.insert(0, replace(line, text=without_logins(line.text)))
        error = one.error and _error(one.error, one.traceback, _BRIEF)
        is_above = one.error is not None and (one.traceback, one.error.message) == (
            found.traceback,
            job_error and job_error.message,
        )
        shown = with_more(one, error=error, is_above=is_above, lines=lines)
        shown.pop("traceback")
        tries.append(shown)
    return {"tries": tries, "log_cut": left < 0}


# -- the timeline ------------------------------------------------------------------------------------------------------


def _timeline(found: JobPage, origin: dict[str, Any]) -> Iterator[dict[str, Any]]:
    job, tries = found.job, [one for one in found.tries if one.is_stored]
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
        case "waiting":
            yield _step("waits for other jobs", state=job.word)
        case "scheduled" | "retrying":
            yield _step("next try" if job.failures else "due", state=job.word, at=job.run_at)
        case "running":
            yield _step(f"try {job.attempt}", state=job.word, at=job.started_at)
        case "held":
            yield _step("waits for its turn", state=job.word)
        case "ready":
            yield _step("waits for a worker", state=job.word, at=job.run_at)
        case state:
            took = f"took {spoken(job.took_ms)}" if state == "succeeded" and job.took_ms is not None else ""
            yield _step("ended", state=state, at=job.finished_at, detail=took)


def _step(what: str, *, state: str | None = None, at: int | None = None, detail: str = "") -> dict[str, Any]:
    return {"what": what, "state": state, "at": at or None, "detail": detail}


ROUTES = (
    Route("/jobs/<int:job_id>", "job", page),
    Route("/jobs/<int:job_id>/tell", "tell", tell, methods=("POST",), permission="tell"),
    Route("/jobs/<int:job_id>/all", "job_all", all_of, arguments=("what",)),
)
