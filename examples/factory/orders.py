"""Orders: a view enqueues, a task packs, another view tells how it went."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app, url_for

from flask_taskworker import Retry

from .extensions import task_worker

blueprint = Blueprint("orders", __name__, url_prefix="/orders")


@task_worker.task(queue="orders", retry=Retry(max_attempts=5, base=1), timeout=30)
def pack(goods: str) -> str:
    """Runs inside the app's context, so ``current_app`` is the shop that took the order."""
    return f"{goods}, packed by {current_app.config['SHOP_NAME']}"


@blueprint.post("/<goods>")
def place(goods: str) -> tuple[dict[str, Any], int]:
    """The current app's database gets the job: nothing says here which shop this is."""
    job = pack.enqueue(goods)
    return {"job": job.id, "look": url_for(".show", job_id=job.id)}, 202


@blueprint.get("/<int:job_id>")
def show(job_id: int) -> dict[str, Any]:
    job = task_worker.get_job(job_id)
    return {"state": job.state, "result": job.result() if job.state == "succeeded" else None}


@blueprint.errorhandler(LookupError)
def not_found(error: LookupError) -> tuple[dict[str, str], int]:
    """JobNotFound is a LookupError."""
    return {"error": str(error)}, 404
