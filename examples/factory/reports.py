"""Reports: a task with a schedule, which can also be enqueued like any other."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app

from flask_taskworker import Cron, current_job

from .extensions import task_worker

blueprint = Blueprint("reports", __name__, url_prefix="/reports")


@task_worker.task(queue="reports", schedule=Cron("0 18 * * MON-SAT", timezone="Europe/Berlin"))
async def close_the_day() -> str:
    """However many processes run the shop, each evening has one of these."""
    report = f"{current_app.config['SHOP_NAME']} closes the day of {current_job.fire_at or 'today'}"
    current_app.logger.info(report)
    return report


@blueprint.post("/")
def close_now() -> dict[str, Any]:
    # One at a time: while an earlier one is unfinished, this is the same job again.
    return {"job": close_the_day.using(unique="by hand").enqueue().id}
