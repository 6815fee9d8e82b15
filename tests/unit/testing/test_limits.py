"""Limits in a test: admitted as in production, by the clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, JobState, Limit, Rate, SnoozeJob
from flask_taskworker.testing import Jobs, TaskClock

SHOP = Limit("shop", running=1, key="shop_id")
CARRIER = Limit("carrier", rate=Rate(1, per=60))


@pytest.fixture
def ran() -> list[int]:
    """What has run, in order."""
    return []


def test_jobs_of_a_lane_run_in_order(jobs: Jobs, task_worker: BackgroundTaskWorker, ran: list[int]) -> None:
    @task_worker.task(limit=SHOP)
    def sync(shop_id: int, number: int) -> None:
        ran.append(number)

    sync.enqueue_many([(7, 1), (7, 2), (8, 3)])
    sync.using(priority=5).enqueue(7, 4)
    assert [job.arguments["number"] for job in jobs.in_line(SHOP, 7)] == [4, 1, 2]
    assert jobs.drain().succeeded == 4
    assert [number for number in ran if number != 3] == [4, 1, 2]
    assert jobs.in_line(SHOP, 7) == []


def test_rate_goes_by_the_clock_of_the_test(
    jobs: Jobs, task_clock: TaskClock, task_worker: BackgroundTaskWorker, ran: list[int]
) -> None:
    @task_worker.task(limit=CARRIER)
    def label(number: int) -> None:
        ran.append(number)

    _, second, third, _ = label.enqueue_many([(1,), (2,), (3,), (4,)])
    assert jobs.drain().succeeded == 1
    assert jobs.in_line(CARRIER)[:2] == [second, third]
    assert second.refresh().state is JobState.HELD
    assert task_clock.advance(seconds=59).total == 0
    assert task_clock.advance(seconds=1).succeeded == 1
    assert task_clock.advance(minutes=2).succeeded == 2
    assert ran == [1, 2, 3, 4]


def test_drain_goes_to_the_next_opening(jobs: Jobs, task_clock: TaskClock, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(limit=CARRIER)
    def label() -> None: ...

    label.enqueue_many([()] * 5)
    assert jobs.drain(until=task_clock.now + timedelta(seconds=61)).succeeded == 2
    assert jobs.drain(scheduled=True).succeeded == 3


def test_closed_lane_opens_when_the_clock_is_there(
    jobs: Jobs, task_clock: TaskClock, task_worker: BackgroundTaskWorker, ran: list[int]
) -> None:
    @task_worker.task(limit=Limit("api", running=2))
    def call(number: int) -> None:
        ran.append(number)
        if len(ran) == 1:
            raise SnoozeJob(300, limit=True)

    call.enqueue_many([(1,), (2,)])
    assert jobs.drain().snoozed == 1
    assert task_clock.advance(seconds=299).total == 0
    assert task_clock.advance(seconds=1).succeeded == 2
    assert sorted(ran) == [1, 1, 2]


def test_limit_of_a_queue_goes_by_the_clock_of_the_test(make_app: Callable[..., Flask]) -> None:
    app = make_app(TASKER_QUEUE_LIMITS={"mail": Limit(rate=Rate(1, per=60))})
    task_worker = BackgroundTaskWorker(app)

    @task_worker.task(queue="mail")
    def send() -> None: ...

    jobs = Jobs(app)
    with app.app_context(), TaskClock(app) as clock:
        send.enqueue_many([()] * 3)
        assert jobs.drain().succeeded == 1
        assert clock.advance(seconds=60).succeeded == 1
        assert jobs.drain(scheduled=True).succeeded == 1


def test_limited_job_runs_inline_and_alone(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(limit=SHOP)
    def sync(shop_id: int) -> int:
        return shop_id + 1

    with jobs.inline():
        assert sync.enqueue(7).result(timeout=0) == 8
    assert jobs.perform(sync, 8) == 9


def test_room_of_a_crashed_job_comes_back_when_it_is_rescued(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(limit=SHOP)
    def sync(shop_id: int) -> None: ...

    first, second = sync.enqueue_many([(7,), (7,)])
    jobs.crash(at="before_run")
    assert jobs.drain().crashed == 1
    assert jobs.drain().total == 0
    assert jobs.in_line(SHOP, 7) == [second]
    assert jobs.recover() == [first]
    assert jobs.drain().succeeded == 2


def test_lane_can_be_asserted(jobs: Jobs, task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(name="sync", limit=SHOP)
    def sync(shop_id: int) -> None: ...

    @task_worker.task
    def free() -> None: ...

    sync.using(limit_key="7/eu").enqueue(7)
    free.enqueue()
    assert jobs.assert_enqueued(sync, lane="shop:7/eu").lane == "shop:7/eu"
    jobs.assert_not_enqueued(sync, lane="shop:7")
    jobs.assert_enqueued(free, lane=None)
    with pytest.raises(AssertionError, match=r"lane: wanted 'shop:7', is 'shop:7/eu'\n.*\n.*held, .*lane='shop:7/eu'"):
        jobs.assert_enqueued(sync, lane="shop:7")
