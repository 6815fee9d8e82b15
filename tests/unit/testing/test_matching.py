"""Comparing what a test wants with the jobs that there are: which fit, and what a failed assertion says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast
from unittest import mock

import pytest

from flask_taskworker.core.jobs import JobClient
from flask_taskworker.core.rows import JobRecord
from flask_taskworker.errors import ArgumentsError
from flask_taskworker.testing.matching import MOST_SHOWN, EnqueuedJob, Wanted, by_name, listing, no_match, some_by_name

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NO_CLIENT = cast(JobClient, None)


def add(x: int, y: int = 2, *rest: int, **more: int) -> None: ...


def a_job(job_id: int = 1, task: str = "add", arguments: dict[str, Any] | None = None, **fields: Any) -> EnqueuedJob:
    record = JobRecord._make([None] * len(JobRecord._fields))._replace(
        id=job_id, task=task, queue="default", priority=0, state="ready", run_at=0, marks=0, **fields
    )
    return EnqueuedJob(record, NO_CLIENT, {"x": 1, "y": 2} if arguments is None else arguments)


def test_what_is_not_mentioned_may_be_anything() -> None:
    assert Wanted(task="add").misses(a_job()) == []
    assert Wanted(task="add", arguments={"x": mock.ANY}, properties={"queue": "default"}).misses(a_job()) == []


def test_each_difference_is_a_line() -> None:
    wanted = Wanted(task="sub", arguments={"x": 3, "z": 1}, properties={"queue": "web"})
    assert wanted.misses(a_job()) == [
        "task: wanted sub, is add",
        "x: wanted 3, is 1",
        "z: wanted 1, has none",
        "queue: wanted 'web', is 'default'",
    ]


@pytest.mark.parametrize(("seconds", "fits"), [(0, True), (0.9, True), (-0.9, True), (1.1, False)])
def test_time_is_compared_to_the_second(seconds: float, fits: bool) -> None:
    job = a_job()
    with mock.patch.object(EnqueuedJob, "run_at", NOON + timedelta(seconds=seconds)):
        assert (Wanted(task="add", properties={"run_at": NOON}).misses(job) == []) is fits


def test_nearest_miss_is_the_job_of_that_task_with_the_fewest_differences() -> None:
    jobs = [a_job(1, arguments={"x": 9, "y": 9}), a_job(2, arguments={"x": 1, "y": 9}), a_job(3, task="other")]
    message = no_match(Wanted(task="add", arguments={"x": 1, "y": 2}), jobs, [], None)
    assert message.splitlines()[:3] == [
        "No job is add(x=1, y=2).",
        "Nearest miss: job 2",
        "  y: wanted 2, is 9",
    ]


def test_wrong_number_of_jobs_names_both_numbers() -> None:
    jobs = [a_job(1), a_job(2)]
    assert no_match(Wanted(task="add"), jobs, jobs, 1).startswith("2 jobs are add(); wanted: 1.")


def test_long_listings_are_cut() -> None:
    lines = listing([a_job(number) for number in range(MOST_SHOWN + 3)]).splitlines()
    assert len(lines) == 1 + MOST_SHOWN + 1
    assert lines[-1].strip() == "… and 3 more"
    assert listing([]) == "Nothing was enqueued."


def test_stored_call_is_shown_by_name_with_its_defaults() -> None:
    assert by_name(add, [1], {"z": 3}) == {"x": 1, "y": 2, "rest": (), "z": 3}


def test_call_of_another_version_is_shown_by_number() -> None:
    assert by_name(add, [], {"w": 3}) == {"w": 3}
    assert by_name(None, [1, 2], {}) == {"[0]": 1, "[1]": 2}


def test_unknown_arguments_are_refused_with_the_signature() -> None:
    with pytest.raises(ArgumentsError, match="has no such arguments"):
        some_by_name("pay", lambda amount: None, [], {"amonut": 3})
