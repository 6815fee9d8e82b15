"""What both processes import: the application, its worker and its task.

The two meet in the database alone: by default ``instance/taskworker.db`` beside this file. Every configuration value
can be set from outside, for example ``FLASK_TASKER_DATABASE_URI=sqlite:////var/lib/primes/jobs.db``.
"""

from __future__ import annotations

import os

from flask import Flask

from flask_taskworker import BlockingTaskWorker, current_job

app = Flask(__name__)
app.config.from_prefixed_env()
task_worker = BlockingTaskWorker(app)


@task_worker.task
def count_primes(below: int) -> str:
    """Slow on purpose, so that there is something to see."""
    found = 0
    for number in range(2, below):
        found += all(number % divisor for divisor in range(2, int(number**0.5) + 1))
        if number % 1000 == 0:
            current_job.progress(number, below)
            current_job.check()  # ends the job here when it was cancelled
    return f"{found:,} primes, counted by process {os.getpid()}"
