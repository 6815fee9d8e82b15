"""Workers: which take jobs, what they run, and which were lost."""

from __future__ import annotations

from typing import Literal

from flask import Response

from ...ops.rows import JobRow
from ...ops.views import with_more, worker_view
from ..view import Route, View

PER_PAGE = 50
_RUNNING = 200
"""Running jobs that the page looks at."""
_SHOWN = 10
"""Of these, those that are shown with each worker."""
_ORDER = ("silent", "lost", "up", "draining", "left")


def page(view: View) -> Response:
    """Every worker that the store knows, what needs attention first."""
    by_worker: dict[str | None, list[JobRow]] = {}
    for job in view.browser.running(limit=_RUNNING):
        by_worker.setdefault(job.record.worker_id, []).append(job)
    views = [worker_view(worker, view.now) for worker in view.state.store.workers()]
    views.sort(key=lambda worker: (_ORDER.index(worker.state), worker.started_at))
    shown, pages = view.part(views, PER_PAGE)
    workers = [
        with_more(
            worker,
            jobs=[
                {"id": job.record.id, "task": job.record.task, "started_at": job.record.started_at}
                for job in by_worker.get(worker.id, [])[:_SHOWN]
            ],
        )
        for worker in shown
    ]
    return view.page("workers.html", {"workers": workers, **pages}, title="Workers")


def quiet(view: View) -> Response:
    """One worker takes no more jobs."""
    return _ask(view, "quiet", "takes no more jobs")


def stop(view: View) -> Response:
    """One worker stops, as after SIGTERM."""
    return _ask(view, "stop", "is asked to stop")


def _ask(view: View, wish: Literal["quiet", "stop"], words: str) -> Response:
    name = view.form("name")
    done = view.operations("workers").ask_worker(name, wish)
    return view.redirect("workers", message=f"Worker {name} {words if done else 'was asked for that before'}.")


ROUTES = (
    Route("/workers", "workers", page, arguments=("page",)),
    Route("/workers/quiet", "quiet_worker", quiet, methods=("POST",), permission="workers"),
    Route("/workers/stop", "stop_worker", stop, methods=("POST",), permission="workers"),
)
