"""What surrounds a job while it runs: of the place that started the worker, nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import pytest
from flask import Flask, has_request_context

from flask_taskworker import BackgroundTaskWorker

colour: ContextVar[str] = ContextVar("colour", default="none")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_job_sees_nothing_of_the_request_that_started_the_worker(kind: str, make_app: Callable[..., Flask]) -> None:
    app = make_app()
    task_worker = BackgroundTaskWorker(app)

    @task_worker.task
    def look() -> tuple[bool, str]:
        return has_request_context(), colour.get()

    @task_worker.task
    async def look_async() -> tuple[bool, str]:
        return has_request_context(), colour.get()

    token = colour.set("red")
    try:
        with app.test_request_context("/start"):
            task_worker.start()
            job = (look if kind == "sync" else look_async).enqueue()
            assert job.result(timeout=20) == (False, "none")
    finally:
        colour.reset(token)
        task_worker.stop(timeout=5)
