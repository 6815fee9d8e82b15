"""Sentry: one event for each job that fails for good, with the job that it came from. Needs the extra ``sentry``.

Sentry's own logging integration makes the event, from the line that a worker logs at ERROR. Here each try gets a scope
of its own, so that tags and breadcrumbs of one job never show up in the event of another, and the event gets the task
as its transaction, the job as its context, and our group of failures as its fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .core.current_job import running_job
from .core.failures import group_of
from .core.rows import Claim
from .core.tasks import HasRegistry, registry_of

try:
    import sentry_sdk
except ImportError as _error:
    raise ImportError("flask_taskworker.sentry needs sentry-sdk: pip install 'Flask-TaskWorker[sentry]'.") from _error

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint


def instrument(task_worker: HasRegistry) -> None:
    """Give each try of a job of *task_worker* in this process a scope of its own in Sentry; call it where jobs run.

    Before or after ``init_app`` and ``sentry_sdk.init()``; harmless when repeated. Raises ArgumentsError for anything
    but a TaskWorker.
    """
    registry_of(task_worker).scope = _scope_of


def uninstrument(task_worker: HasRegistry) -> None:
    """Give the jobs of *task_worker* no scopes any more."""
    registry_of(task_worker).scope = None


@contextmanager
def _scope_of(claim: Claim) -> Iterator[None]:
    """Around one try, and around the line that is logged about its end."""
    with sentry_sdk.isolation_scope() as scope:
        scope.set_transaction_name(claim.task, source="task")
        scope.set_tag("taskworker.task", claim.task)
        scope.set_tag("taskworker.queue", claim.queue)
        job = {"id": claim.id, "uid": claim.uid, "attempt": claim.attempt, "schedule": claim.schedule}
        scope.set_context("job", job)
        scope.add_event_processor(_grouped)
        yield


def _grouped(event: Event, hint: Hint) -> Event:
    """Only the event of the failure itself: what the task has captured before is grouped by Sentry."""
    job = running_job()
    if job is not None and job.failure is not None:
        event["fingerprint"] = [group_of(job.claim.task, job.failure)]
    return event
