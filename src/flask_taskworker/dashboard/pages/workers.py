"""Workers: who takes jobs, what they run, and who was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Response

from ...ops.health import SILENT_MS, info_of, name_of
from ...ops.rows import JobRow
from ...store.sql import WorkerRow
from .. import words
from ..routes import Route
from ..view import View

PER_PAGE = 50
_RUNNING = 200
"""Running jobs that the page looks at."""
_SHOWN = 10
"""Of these, those that are shown with each worker."""

_BADGES = {
    "silent": ("warn", "silent"),
    "lost": ("failed", "LOST"),
    "up": ("ok", "up"),
    "draining": ("paused", "draining"),
    "left": ("cancelled", "left"),
}
_ORDER = tuple(_BADGES)


def page(view: View) -> Response:
    """Every worker that the store knows, what calls for attention first."""
    by_worker: dict[str | None, list[JobRow]] = {}
    for job in view.browser.running(limit=_RUNNING):
        by_worker.setdefault(job.record.worker_id, []).append(job)
    rows = [_row(worker, by_worker.get(worker.id, []), view.now) for worker in view.browser.workers()]
    rows.sort(key=lambda row: (_ORDER.index(row["state"]), row["started_at"]))
    shown, pages = view.part(rows, PER_PAGE)
    return view.page("workers.html", {"workers": shown, **pages}, title="Workers")


def _row(worker: WorkerRow, jobs: Sequence[JobRow], now: int) -> dict[str, Any]:
    info = info_of(worker)
    busy = info.get("running")
    queues = info.get("queues")
    state = state_of(worker, now)
    return {
        "id": worker.id,
        "name": name_of(worker),
        "version": info.get("version"),
        "state": state,
        "badge": words.state(*_BADGES[state]),
        "started_at": worker.started_at,
        "beat_at": worker.beat_at,
        "queues": [str(queue) for queue in queues] if isinstance(queues, list) else None,
        "running": worker.running,
        "async": {"busy": _number(busy, "async"), "slots": _number(info, "concurrency")},
        "sync": {"busy": _number(busy, "sync"), "slots": _number(info, "threads")},
        "resident_mb": _number(info, "resident_mb"),
        "loop_lag_ms": _number(info, "loop_lag_ms"),
        "hung_threads": _number(info, "hung_threads"),
        "jobs": [_job(job) for job in jobs[:_SHOWN]],
    }


def state_of(worker: WorkerRow, now: int) -> str:
    """What a person needs to know: a worker that was declared dead is lost, one that stopped by itself has left."""
    match worker.state:
        case "dead":
            return "lost"
        case "left":
            return "left"
        case _ if now - worker.beat_at > SILENT_MS:
            return "silent"
        case "draining":
            return "draining"
        case _:
            return "up"


def _job(job: JobRow) -> dict[str, Any]:
    return {"id": job.record.id, "task": job.record.task, "started_at": job.record.started_at}


def _number(values: Any, name: str) -> int | float | None:
    """A figure that the worker told; None where it told none, or nonsense."""
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


ROUTES = (Route("/workers", "workers", page, arguments=("page",)),)
