"""What may go wrong with a job: it fails and is tried again, takes too long, or is cancelled while it runs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from flask_taskworker import Job, JobCancelled, JobFailed, JobState

from .. import parsing
from ..stage import Stage, wait_until
from ..tasks import fingerprint, wait_too_long, watch, watch_in_thread

FLAKY = 30
TRIES = 3
TIMEOUT = 30


def run(stage: Stage) -> str:
    late = wait_too_long.enqueue()
    watching = [watch.enqueue(), watch_in_thread.enqueue()]
    retry_until_it_works(stage)
    end_too_late(stage, late)
    for job in watching:
        cancel_running(stage, job)
    cancel_waiting(stage)
    return f"{FLAKY} jobs succeeded at their third attempt, 1 ran out of time, 3 were cancelled"


def retry_until_it_works(stage: Stage) -> None:
    file = Path(parsing.__file__)
    jobs = fingerprint.enqueue_many([(str(file),)] * FLAKY)
    stage.screen.follow("mishaps", FLAKY, lambda: (stage.tally.ended(fingerprint), retries(stage)))
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    right = sum(job.result(timeout=TIMEOUT) == expected for job in jobs)
    stage.check("each flaky job succeeded in the end", right == FLAKY, right)
    attempts = {job.refresh().attempt for job in jobs}
    stage.check("each flaky job needed three attempts", attempts == {TRIES}, attempts)
    tried_again = stage.tally.of(fingerprint, "retrying")
    stage.check("each attempt that failed was counted once", tried_again == FLAKY * (TRIES - 1), tried_again)


def retries(stage: Stage) -> str:
    return f"{stage.tally.of(fingerprint, 'retrying')} failed attempts, to be tried again"


def end_too_late(stage: Stage, job: Job[None]) -> None:
    try:
        job.result(timeout=TIMEOUT)
    except JobFailed as failure:
        stage.check("a job that takes too long fails with a timeout", failure.kind == "timeout", failure.kind)
    else:
        stage.check("a job that takes too long fails", kept=False)


def cancel_running(stage: Stage, job: Job[Any]) -> None:
    """Once it has reported progress it certainly runs."""
    wait_until(lambda: job.refresh().progress is not None, f"{job} tells its progress")
    stage.check("a job that works tells its progress", job.state is JobState.RUNNING and "looked" in progress_of(job))
    job.cancel()
    try:
        job.result(timeout=TIMEOUT)
    except JobCancelled:
        stage.check("a job that was cancelled while it ran is cancelled", job.refresh().state is JobState.CANCELLED)
    else:
        stage.check("a job that was cancelled gives no result", kept=False)


def cancel_waiting(stage: Stage) -> None:
    """A unique job: while one with the key is unfinished, enqueueing again gives the same job."""
    once = watch.using(unique="only one", delay=3600)
    job = once.enqueue()
    stage.check("a unique job that is enqueued again is the same job", once.enqueue() == job)
    stage.check("a job waits for its time", job.refresh().state is JobState.SCHEDULED, job)
    job.cancel()
    stage.check("a job that waits is cancelled at once", job.refresh().state is JobState.CANCELLED, job)


def progress_of(job: Job[Any]) -> str:
    return job.progress.text if job.progress else ""
