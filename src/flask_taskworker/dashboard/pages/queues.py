"""Queues: what waits, what runs, how long it takes; pause and resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Response, request
from werkzeug.exceptions import NotFound

from ...core.filters import JobFilter
from ...core.words import MOST
from ...mail.queue.queue import QUEUE as MAIL_QUEUE
from ...ops.health import LONG_WAIT_MS, SILENT_MS, info_of, takes
from ...ops.rows import QueueState
from ...store.sql import WorkerRow
from .. import charts, words
from ..filtering import filter_text
from ..routes import Route
from ..view import View

PER_PAGE = 50
_BADGES = {
    "ok": ("ok", "ok"),
    "idle": ("scheduled", "no worker yet"),
    "paused": ("paused", "paused"),
    "no worker": ("failed", "no worker"),
    "slow": ("late", "slow"),
}


def page(view: View) -> Response:
    """Every queue that code names, that has jobs, that worked in the last hour, or that is paused."""
    queues = view.browser.queues(also=_named(view))
    workers = [worker for worker in view.browser.workers() if takes_jobs(worker, view.now)]
    shown, pages = view.part(queues, PER_PAGE)
    rows = [_row(queue, workers, view.now) for queue in shown]
    return view.page("queues.html", {"queues": rows, "counted_up_to": MOST, **pages}, title="Queues")


def _named(view: View) -> list[str]:
    """The queues of the application's tasks, and that of mails where it has a Mail."""
    named = {task.options.queue for task in view.state.registry}
    return sorted(named | {MAIL_QUEUE} if "mail" in view.app.extensions else named)


def takes_jobs(worker: WorkerRow, now: int) -> bool:
    """Whether this worker lives and claims jobs."""
    return worker.state == "alive" and now - worker.beat_at <= SILENT_MS


def _row(queue: QueueState, workers: Sequence[WorkerRow], now: int) -> dict[str, Any]:
    serving = [info for info in map(info_of, workers) if takes(info, queue.name)]
    state, number, figures = _state(queue, bool(serving), now), sum(map(slots, serving)), queue.figures
    p95 = figures.wait_percentile(0.95) if figures else None
    return {
        "name": queue.name,
        "ready": queue.ready,
        "running": queue.running,
        "slots": number,
        "done_last_hour": figures.ended if figures else 0,
        "failed_last_hour": figures.failed if figures else 0,
        "p95_wait_ms": p95.ms if p95 else None,
        "p95_wait_at_least": p95.at_least if p95 else False,
        "p95_wait": words.percentile(p95),
        "oldest_at": queue.oldest_at,
        "state": state,
        "badge": words.state(*_BADGES[state]),
        "meter": charts.meter(queue.running, number, f"{queue.running:,} of {number:,} slots are busy with this queue"),
        "filter": filter_text(JobFilter(states=("ready",), queue=queue.name)),
        "paused": queue.paused,
        "paused_at": queue.paused_at,
        "paused_by": queue.paused_by,
    }


def slots(info: dict[str, Any]) -> int:
    """How many jobs a worker runs at once, async and sync ones together."""
    return sum(number for name in ("concurrency", "threads") if isinstance(number := info.get(name), int))


def _state(queue: QueueState, is_served: bool, now: int) -> str:
    if queue.paused:
        return "paused"
    if queue.ready and not is_served:
        return "no worker"
    if queue.oldest_at is not None and now - queue.oldest_at > LONG_WAIT_MS:
        return "slow"
    return "ok" if is_served else "idle"


def pause(view: View) -> Response:
    """No worker takes jobs from the queue any more."""
    name = _known(view)
    view.operations("pause").pause_queue(name)
    return view.redirect("queues", message=f"Queue {name} is paused. Its running jobs go on.")


def resume(view: View) -> Response:
    """Workers take jobs from it again."""
    name = _known(view)
    done = view.operations("pause").resume_queue(name)
    return view.redirect("queues", message=f"Queue {name} {'goes on' if done else 'was not paused'}.")


def _known(view: View) -> str:
    name = request.form.get("name", "")
    if name not in {queue.name for queue in view.browser.queues(also=_named(view))}:
        raise NotFound(f"Queue {name!r:.80} is unknown: no task names it, and it has no jobs.")
    return name


ROUTES = (
    Route("/queues", "queues", page, arguments=("page",)),
    Route("/queues/pause", "pause_queue", pause, methods=("POST",), permission="pause"),
    Route("/queues/resume", "resume_queue", resume, methods=("POST",), permission="pause"),
)
