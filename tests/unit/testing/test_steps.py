"""Steps in a test: sleeps are over when the clock of the test says so, and notices are given as in production."""

from __future__ import annotations

import pytest

from flask_taskworker import BackgroundTaskWorker, JobState, current_job
from flask_taskworker.testing import Jobs


def test_sleeping_jobs_go_on_without_waiting(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def onboard() -> str:
        current_job.sleep("trial", 14 * 24 * 3600)
        answer: str = current_job.wait_for("approval", timeout=3600, default="no answer")
        return answer

    job, other = onboard.enqueue(), onboard.enqueue()
    assert jobs.drain().succeeded == 0
    other.tell("approval", "yes")
    jobs.drain(scheduled=True)
    assert (job.result(timeout=0), other.result(timeout=0)) == ("no answer", "yes")


def test_job_that_waits_without_a_timeout_waits_on(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def onboard() -> bool:
        return bool(current_job.wait_for("approval"))

    job = onboard.enqueue()
    jobs.drain(scheduled=True)
    assert job.refresh().state is JobState.SCHEDULED
    job.tell("approval", True)
    jobs.drain()
    assert job.result(timeout=0) is True


def test_sleep_and_wait_of_one_job_are_skipped(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def onboard() -> str:
        current_job.sleep("trial", 14 * 24 * 3600)
        answer: str = current_job.wait_for("approval", timeout=3600, default="no answer")
        return answer

    job, other = onboard.enqueue(), onboard.enqueue()
    for _ in range(2):
        jobs.drain()
        jobs.skip_sleep(job)
    jobs.drain()
    assert job.result(timeout=0) == "no answer"
    assert other.refresh().state is JobState.SCHEDULED
    with pytest.raises(AssertionError, match="neither sleeps nor waits"):
        jobs.skip_sleep(job)
