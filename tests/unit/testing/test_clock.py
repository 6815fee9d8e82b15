"""``flask_taskworker.testing.TaskClock``: time that moves when the test says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import At, BackgroundTaskWorker, Cron, Every, Retry, TaskWorkerError, current_job
from flask_taskworker.errors import DeclarationError
from flask_taskworker.testing import Jobs, TaskClock

START = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)


@pytest.fixture
def fired() -> list[Any]:
    """What has run, with the time for which it stands."""
    return []


def test_schedules_fire_in_order_each_at_its_time(
    jobs: Jobs, task_clock: TaskClock, task_worker: BackgroundTaskWorker, fired: list[Any]
) -> None:
    task_clock.jump(START)

    @task_worker.task(schedule=Cron("0 3 * * *"))
    def nightly() -> None:
        fired.append(("nightly", current_job.fire_at, task_clock.now))

    @task_worker.task(schedule=Every(hours=12))
    async def half_daily() -> None:
        fired.append(("half_daily", current_job.fire_at, task_clock.now))

    assert task_clock.advance(days=2).succeeded == 6
    assert [fire_at for _, fire_at, _ in fired] == [
        datetime(2026, 1, day, hour, tzinfo=UTC) for day in (2, 3) for hour in (0, 3, 12)
    ]
    assert all(now == fire_at for _, fire_at, now in fired)
    jobs.assert_performed(nightly, times=2)
    jobs.assert_performed(half_daily, times=4)
    assert task_clock.now == START + timedelta(days=2)
    assert task_clock.advance(hours=1).total == 0


def test_time_stands_still_until_it_is_moved(
    jobs: Jobs, task_clock: TaskClock, task_worker: BackgroundTaskWorker
) -> None:
    @task_worker.task
    def later() -> None:
        """Due some day."""

    task_clock.jump(START)
    job = later.using(delay=3600).enqueue()
    assert job.run_at == START + timedelta(hours=1)
    assert jobs.drain().total == 0
    assert task_clock.advance(minutes=59, seconds=59).total == 0
    assert task_clock.advance(seconds=1).succeeded == 1
    assert job.refresh().finished_at == START + timedelta(hours=1)


@pytest.mark.sqlite_only
def test_what_has_run_is_not_pruned_however_far_time_moves(
    jobs: Jobs, task_clock: TaskClock, task_worker: BackgroundTaskWorker
) -> None:
    @task_worker.task(keep=1)
    def short_lived() -> None:
        """Kept for a second."""

    short_lived.enqueue()
    task_clock.advance(days=30)
    task_clock.advance(days=30)
    jobs.assert_performed(short_lived, times=1)


@pytest.mark.sqlite_only
def test_retries_are_due_in_their_time(
    jobs: Jobs, task_clock: TaskClock, task_worker: BackgroundTaskWorker, fired: list[Any]
) -> None:
    @task_worker.task(retry=Retry(max_attempts=3, base=60, jitter=0))
    def flaky() -> None:
        fired.append(task_clock.now)
        if len(fired) < 3:
            raise ConnectionError("no")

    start = task_clock.now
    flaky.enqueue()
    assert jobs.drain(raise_errors=False).retrying == 1
    with pytest.raises(ConnectionError):
        task_clock.advance(seconds=60)
    task_clock.advance(hours=1)
    jobs.assert_performed(flaky, times=1)
    assert [moment - start for moment in fired] == [timedelta(0), timedelta(minutes=1), timedelta(minutes=3)]


@pytest.mark.sqlite_only
def test_jobs_become_ready_without_being_run_on_request(
    jobs: Jobs, task_clock: TaskClock, task_worker: BackgroundTaskWorker
) -> None:
    task_clock.jump(START)

    @task_worker.task(schedule=At(START + timedelta(hours=1)))
    def once() -> None:
        """At one time."""

    once.using(delay=60).enqueue()
    assert task_clock.set(START + timedelta(hours=2), perform=False).total == 0
    assert [(job.state, job.schedule) for job in jobs.enqueued(once)] == [("ready", None), ("ready", once.name)]
    assert jobs.drain().succeeded == 2


@pytest.mark.sqlite_only
def test_what_was_jumped_over_follows_the_misfire_rule(
    jobs: Jobs, task_clock: TaskClock, task_worker: BackgroundTaskWorker
) -> None:
    task_clock.jump(START)

    @task_worker.task(schedule=Every(days=1, misfire="all", overlap="allow"))
    def every_one() -> None:
        """Made up for."""

    @task_worker.task(schedule=Every(days=1, misfire="skip"))
    def only_future() -> None:
        """Not made up for."""

    task_clock.advance()  # a worker was there, and stored the schedules
    task_clock.jump(START + timedelta(days=3))
    task_clock.advance(seconds=1)
    jobs.assert_performed(every_one, times=3)
    jobs.assert_not_enqueued(only_future)


@pytest.mark.sqlite_only
def test_schedule_that_never_ends_is_limited(task_clock: TaskClock, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(schedule=Every(seconds=1))
    def often() -> None:
        """Every second."""

    assert task_clock.advance(seconds=10, max=20).succeeded == 10
    assert task_clock.advance(seconds=20, max=20).succeeded == 20
    before = task_clock.now
    with pytest.raises(TaskWorkerError, match=r"More than 20 jobs have run: .*often 21 times"):
        task_clock.advance(days=1, max=20)
    assert task_clock.now - before < timedelta(seconds=30)


@pytest.mark.sqlite_only
def test_too_many_times_of_a_schedule_name_the_way_past_them(
    task_clock: TaskClock, task_worker: BackgroundTaskWorker
) -> None:
    @task_worker.task(schedule=Every(seconds=1))
    def often() -> None:
        """Every second."""

    @task_worker.task(schedule=Cron("0 3 * * *"))
    def nightly() -> None:
        """Once a day."""

    with pytest.raises(TaskWorkerError, match=r"many times of a schedule\? Go there with task_clock\.jump\(moment\)"):
        task_clock.advance(days=1, max=5)
    task_clock.jump(task_clock.now.replace(hour=2, minute=59, second=59) + timedelta(days=1))
    assert task_clock.advance(seconds=2).succeeded >= 2


@pytest.mark.sqlite_only
def test_period_is_in_seconds_or_a_timedelta(task_clock: TaskClock) -> None:
    before = task_clock.now
    for period in (60, 60.0, timedelta(seconds=60)):
        task_clock.advance(period, minutes=1)
    assert task_clock.now == before + timedelta(minutes=6)
    with pytest.raises(DeclarationError, match="period is '60'. Give a number of seconds or a timedelta"):
        task_clock.advance("60")  # type: ignore[arg-type]


@pytest.mark.sqlite_only
def test_time_goes_forward(task_clock: TaskClock) -> None:
    with pytest.raises(ValueError, match="Time goes forward only"):
        task_clock.set(START)
    with pytest.raises(ValueError, match="has no time zone"):
        task_clock.set(datetime(2030, 1, 1))  # noqa: DTZ001 - that is the point


@pytest.mark.sqlite_only
def test_clock_is_given_back(app: Flask) -> None:
    store = app.extensions["taskworker"].store
    before = store.clock
    with TaskClock(app) as clock:
        assert store.clock() == store.clock() == int(clock.now.timestamp() * 1000)
        with pytest.raises(RuntimeError, match="frozen already"):
            TaskClock(app).__enter__()
    assert store.clock is before
    with pytest.raises(RuntimeError, match="is not frozen"):
        clock.advance(days=1)
