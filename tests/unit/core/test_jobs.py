"""The handle of a job: what it shows, and when it looks again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from flask_taskworker import JobState
from flask_taskworker.core.jobs import Job, moment
from flask_taskworker.core.rows import JobRecord, Progress
from flask_taskworker.errors import JobNotFound

RECORD = JobRecord(
    id=7,
    uid="u",
    task="shop.pay",
    queue="default",
    kind="sync",
    priority=0,
    state="running",
    run_at=0,
    max_attempts=3,
    timeout=None,
    failures=1,
    progress=Progress(1, 2)._to_text(),
    created_at=1000,
)


class Rows:
    """A client that knows some rows."""

    def __init__(self, *records: JobRecord) -> None:
        self.records = {record.id: record for record in records}

    def record(self, job_id: int) -> JobRecord:
        if job_id not in self.records:
            raise JobNotFound
        return self.records[job_id]


def handle(record: JobRecord, *stored: JobRecord) -> Job[Any]:
    return Job(record, cast(Any, Rows(*stored)))


def test_a_job_shows_its_record() -> None:
    job = handle(RECORD)
    assert (job.id, job.task, job.state, job.attempt) == (7, "shop.pay", JobState.RUNNING, 2)
    assert job.created_at == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert (job.run_at, job.finished_at, job.progress) == (None, None, Progress(1, 2))
    assert repr(job) == "<Job 7 shop.pay running>"
    with pytest.raises(AttributeError, match="cannot be set"):
        job.id = 8  # type: ignore[assignment]


@pytest.mark.parametrize(("state", "failures", "attempt"), [("failed", 3, 3), ("failed", 0, 1), ("scheduled", 2, 3)])
def test_attempt_is_the_last_one_of_a_failed_job(state: str, failures: int, attempt: int) -> None:
    assert handle(RECORD._replace(state=state, failures=failures)).attempt == attempt


def test_jobs_are_equal_by_their_uid() -> None:
    assert {handle(RECORD), handle(RECORD._replace(state="ready"))} == {handle(RECORD)}
    assert handle(RECORD) != handle(RECORD._replace(uid="other"))


def test_refresh_looks_again() -> None:
    job = handle(RECORD, RECORD._replace(state="succeeded"))
    assert job.refresh().state is JobState.SUCCEEDED


@pytest.mark.parametrize("stored", [(), (RECORD._replace(uid="another job of that number"),)])
def test_a_pending_job_that_is_not_stored_says_so(stored: tuple[JobRecord, ...]) -> None:
    with pytest.raises(JobNotFound, match="The job is pending"):
        handle(RECORD._replace(state="pending"), *stored).refresh()


def test_no_moment_is_none() -> None:
    assert (moment(None), moment(0)) == (None, None)
