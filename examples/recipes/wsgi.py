"""A small application for every server: a request enqueues a job and waits for its result."""

from __future__ import annotations

import os

from flask import Flask

from flask_taskworker import BackgroundTaskWorker

app = Flask(__name__)
app.config.from_prefixed_env()
task_worker = BackgroundTaskWorker(app)


@task_worker.task
def add(x: int, y: int) -> int:
    return x + y


@app.get("/add/<int:x>/<int:y>")
def enqueue(x: int, y: int) -> dict[str, int]:
    return {"sum": add.enqueue(x, y).result(timeout=20)}


# With workers in processes of their own, the web processes only enqueue.
if "WEB_ONLY" not in os.environ:
    task_worker.start()
