"""Queues: what waits, what runs, how long it takes; pause and resume."""

from __future__ import annotations

from flask import Response, request
from werkzeug.exceptions import NotFound

from ...core.words import MOST
from ...mail.queue.queue import QUEUE as MAIL_QUEUE
from ...ops.rows import QueueState
from ...ops.views import queue_summary
from ..view import Route, View

PER_PAGE = 50


def page(view: View) -> Response:
    """Every queue that code names, that has jobs, that worked in the last hour, or that is paused."""
    shown, pages = view.part(_queues(view), PER_PAGE)
    workers = view.state.store.workers()
    queues = [queue_summary(queue, workers, view.now) for queue in shown]
    return view.page("queues.html", {"queues": queues, "counted_up_to": MOST, **pages}, title="Queues")


def _queues(view: View) -> list[QueueState]:
    named = {task.options.queue for task in view.state.registry}
    return view.browser.queues(also=sorted(named | {MAIL_QUEUE} if "mail" in view.app.extensions else named))


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
    if name not in {queue.name for queue in _queues(view)}:
        raise NotFound(f"No queue has the name {name!r:.80}: no task names it, and no job is in it.")
    return name


ROUTES = (
    Route("/queues", "queues", page, arguments=("page",)),
    Route("/queues/pause", "pause_queue", pause, methods=("POST",), permission="pause"),
    Route("/queues/resume", "resume_queue", resume, methods=("POST",), permission="pause"),
)
