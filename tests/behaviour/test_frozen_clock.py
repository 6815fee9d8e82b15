"""Tests of applications stop the clock, with freezegun or time-machine. Jobs, delays and schedules follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import freezegun
import pytest
import time_machine
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, JobTimeout, Retry, current_job
from flask_taskworker.testing import Jobs

pytestmark = pytest.mark.both_databases(slow="postgresql")

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
LIBRARIES: dict[str, Callable[[], Any]] = {
    "freezegun": lambda: freezegun.freeze_time(NOON),
    "time-machine": lambda: time_machine.travel(NOON, tick=False),
}


@pytest.fixture(params=LIBRARIES)
def clock(request: pytest.FixtureRequest, idle_worker: BackgroundTaskWorker) -> Iterator[Any]:
    """The clock of the process stands still. It moves with ``move_to()``, which both libraries have."""
    with LIBRARIES[request.param]() as clock:
        yield clock


@pytest.mark.sqlite_only
def test_frozen_moments_are_arguments_and_results(idle_worker: BackgroundTaskWorker, clock: Any) -> None:
    @idle_worker.task
    def an_hour_later(day: date, moment: datetime) -> datetime:
        assert day == moment.date()
        return moment + timedelta(hours=1)

    idle_worker.start()
    job = an_hour_later.enqueue(datetime.now(UTC).date(), datetime.now(UTC))
    assert job.result(timeout=20) == NOON + timedelta(hours=1)
    assert job.created_at == job.refresh().finished_at == NOON


def test_waiting_for_a_result_ends_though_the_clock_stands_still(idle_worker: BackgroundTaskWorker, clock: Any) -> None:
    job = idle_worker.task(name="later")(lambda: None).using(delay=3600).enqueue()
    idle_worker.start()
    with pytest.raises(JobTimeout):
        job.result(timeout=0.01)


@pytest.mark.sqlite_only
def test_worker_stops_though_the_clock_stands_still(idle_worker: BackgroundTaskWorker, clock: Any) -> None:
    idle_worker.start()
    idle_worker.stop(timeout=2)
    assert not idle_worker._workers()


def test_delays_and_retries_are_due_when_the_clock_is_moved(
    app: Flask, idle_worker: BackgroundTaskWorker, clock: Any
) -> None:
    @idle_worker.task(retry=Retry(max_attempts=2, base=60, jitter=0))
    def at_the_second_try() -> None:
        if current_job.attempt == 1:
            raise ConnectionError

    with Jobs(app) as jobs:
        job = at_the_second_try.using(delay=3600).enqueue()
        assert jobs.drain().total == 0
        clock.move_to(NOON + timedelta(hours=1))
        assert jobs.drain(raise_errors=False).total == 1
        assert job.refresh().run_at == NOON + timedelta(hours=1, minutes=1)
        clock.move_to(NOON + timedelta(hours=1, minutes=1))
        assert jobs.drain().succeeded == 1
