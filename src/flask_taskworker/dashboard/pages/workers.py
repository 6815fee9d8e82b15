"""Workers: which take jobs, what they run, and which were lost."""

from __future__ import annotations

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


ROUTES = (Route("/workers", "workers", page, arguments=("page",)),)
