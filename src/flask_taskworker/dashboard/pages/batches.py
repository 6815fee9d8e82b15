"""Batches: how far each is, and one of them."""

from __future__ import annotations

from flask import Response
from werkzeug.exceptions import NotFound

from ...core.filters import JobFilter
from ...errors import BatchNotFound
from ...ops.views import batch_view
from .. import words
from ..rows import job_line
from ..view import Route, View

PER_PAGE = 50
SHOWN = 20
"""Jobs of a batch, and failed ones, on its page."""


def page(view: View) -> Response:
    """The newest batches."""
    batches = [
        batch_view(row, view.now) for row in view.browser.batches(limit=PER_PAGE + 1, before=view.number("before"))
    ]
    older = batches[PER_PAGE - 1].id if len(batches) > PER_PAGE else None
    return view.page("batches.html", {"batches": batches[:PER_PAGE], "older": older}, title="Batches")


def one(view: View, batch_id: int) -> Response:
    """One batch, and its newest jobs."""
    try:
        batch = batch_view(view.browser.batch(batch_id), view.now)
    except BatchNotFound as error:
        raise NotFound(str(error)) from error
    chosen = JobFilter(batch=batch_id)
    found = view.browser.jobs(chosen, limit=SHOWN, names=view.names)
    data = {
        "batch": batch,
        "jobs": [job_line(view, row) for row in found.rows],
        "filter": str(chosen),
        "failed": str(JobFilter(batch=batch_id, states=("failed",))),
    }
    return view.page("batch.html", data, title=f"Batch {batch_id}")


def _act(view: View, batch_id: int, action: str, permission: str, done: str) -> Response:
    number = view.operations(permission).act_on_batch(action, batch_id)
    message = done.format(words.plural(number, "job")) if number else f"Nothing was done to batch {batch_id}."
    return view.redirect("batch", batch_id=batch_id, message=message)


def retry(view: View, batch_id: int) -> Response:
    """Run its failed jobs again."""
    return _act(view, batch_id, "retry", "retry", "{} went back to the queues.")


def cancel(view: View, batch_id: int) -> Response:
    """Cancel its jobs."""
    return _act(view, batch_id, "cancel", "cancel", "The batch is cancelled.")


def seal(view: View, batch_id: int) -> Response:
    """Only its own jobs add others from now on."""
    return _act(view, batch_id, "seal", "cancel", "The batch is sealed.")


ROUTES = (
    Route("/batches", "batches", page, arguments=("before",)),
    Route("/batches/<int:batch_id>", "batch", one),
    Route("/batches/<int:batch_id>/retry", "retry_batch", retry, methods=("POST",), permission="retry"),
    Route("/batches/<int:batch_id>/cancel", "cancel_batch", cancel, methods=("POST",), permission="cancel"),
    Route("/batches/<int:batch_id>/seal", "seal_batch", seal, methods=("POST",), permission="cancel"),
)
