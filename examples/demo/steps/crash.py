"""A worker process is killed in the middle of its jobs. None of them is lost.

This process's worker stops for a while, so that the jobs go to the other one for certain.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flask_taskworker import Job, JobState

from ..stage import Stage, wait_until
from ..tasks import survive, task_worker

JOBS = 8
TIMEOUT = 30
ROOT = Path(__file__).resolve().parents[3]
"""Where ``examples`` can be imported from."""


def run(stage: Stage) -> str:
    jobs = begin_elsewhere(stage)
    killed = time.perf_counter()
    claims = [job.result(timeout=TIMEOUT) for job in jobs]
    seconds = time.perf_counter() - killed
    stage.check("each job of a killed process ran again, once", claims == [2] * JOBS, claims)
    wait_until(lambda: stage.tally.of(survive, "rescued") == JOBS, "all rescues are counted")
    stage.tell("rescued", f"{JOBS} jobs of a killed process ended in another one {seconds:.2f} s later")
    return f"a process was killed with {JOBS} jobs at work; all of them ended in another one"


def begin_elsewhere(stage: Stage) -> list[Job[int]]:
    """Jobs that another process had begun when it was killed."""
    task_worker.stop()
    try:
        jobs = [survive.enqueue() for _ in range(JOBS)]
        with other_process(stage.data) as process:
            stage.screen.follow("crash", JOBS, lambda: (count_running(jobs), f"begun by process {process.pid}"))
        return jobs
    finally:
        task_worker.start()


@contextmanager
def other_process(data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker for the queue "fragile", started as anybody would start one, and killed at the end."""
    app = f"examples.demo.app:create_app({str(data)!r})"
    command = [sys.executable, "-m", "flask", "--app", app, "tasks", "run", "fragile"]
    with (data / "other-process.log").open("wb") as log:
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process:
            try:
                yield process
            finally:
                process.kill()


def count_running(jobs: list[Job[int]]) -> int:
    return sum(job.refresh().state is JobState.RUNNING for job in jobs)
