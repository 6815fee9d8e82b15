"""The web process: python examples/two_processes/web.py, then open http://127.0.0.1:5000

It only enqueues: it has the same BlockingTaskWorker as the worker process and never starts it. Try it without a worker
first: the jobs wait in the database until there is one, whatever is restarted in between.
"""

from __future__ import annotations

from collections import deque

from flask import redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from shared import app, count_primes, task_worker

# What this process has enqueued since it started. An application would keep a job's id with what the job is about.
latest: deque[int] = deque(maxlen=20)


@app.get("/")
def index() -> str:
    return render_template("index.html", jobs=[task_worker.get_job(job_id) for job_id in reversed(latest)])


@app.post("/")
def enqueue() -> ResponseReturnValue:
    latest.append(count_primes.enqueue(request.form.get("below", 100_000, type=int)).id)
    return redirect(url_for("index"), code=303)


@app.post("/cancel/<int:job_id>")
def cancel(job_id: int) -> ResponseReturnValue:
    task_worker.get_job(job_id).cancel()
    return redirect(url_for("index"), code=303)


if __name__ == "__main__":
    app.run()
