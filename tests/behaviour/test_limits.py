"""Limits, as a running worker keeps them. On every database alike."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, JobState, Limit, Rate, Retry, SnoozeJob, current_job
from flask_taskworker.store.sql import Store
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

Rows = Callable[..., list[tuple[Any, ...]]]


class Gauge:
    """How many run at once, and the most that ever did."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0
        self.order: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


def test_no_more_run_at_once_than_the_limit_allows(task_worker: BackgroundTaskWorker) -> None:
    gauge = Gauge()

    @task_worker.task(limit=Limit("carrier", running=3))
    async def label(number: int) -> None:
        with gauge:
            await asyncio.sleep(0.005)

    jobs = label.enqueue_many([(i,) for i in range(40)])
    assert jobs[0].state is JobState.HELD
    for job in jobs:
        job.result(timeout=30)
    assert gauge.most == 3


def test_lane_of_one_runs_in_strict_order(task_worker: BackgroundTaskWorker) -> None:
    seen: dict[int, list[int]] = {1: [], 2: []}

    @task_worker.task(limit=Limit("shop", running=1, key="shop_id"))
    def sync_stock(shop_id: int, number: int) -> None:
        seen[shop_id].append(number)

    jobs = sync_stock.enqueue_many([(1 + i % 2, i) for i in range(30)])
    for job in jobs:
        job.result(timeout=30)
    assert seen == {1: list(range(0, 30, 2)), 2: list(range(1, 30, 2))}


def test_key_for_one_call_has_a_lane_of_its_own(task_worker: BackgroundTaskWorker, rows: Rows) -> None:
    @task_worker.task(limit=Limit("shop", running=1, key="shop_id"))
    def sync_stock(shop_id: int) -> None: ...

    sync_stock.using(limit_key="7/eu").enqueue(7).result(timeout=20)
    assert rows("SELECT lane FROM taskworker_permit") == [("shop:7/eu",)]


def test_job_that_retries_lets_the_next_one_pass(task_worker: BackgroundTaskWorker) -> None:
    seen: list[str] = []

    @task_worker.task(limit=Limit("shop", running=1), retry=Retry(2, base=0.2, jitter=0))
    def work(name: str) -> None:
        seen.append(name)
        if name == "first" and current_job.attempt == 1:
            raise ValueError

    jobs = work.enqueue_many([("first",), ("second",)])
    for job in jobs:
        job.result(timeout=20)
    assert seen == ["first", "second", "first"]


def test_job_that_holds_is_passed_by_none(task_worker: BackgroundTaskWorker) -> None:
    seen: list[str] = []

    @task_worker.task(limit=Limit("shop", running=1, hold=True), retry=Retry(2, base=0.1, jitter=0))
    def work(name: str) -> None:
        seen.append(name)
        if name == "first" and current_job.attempt == 1:
            raise ValueError

    jobs = work.enqueue_many([("first",), ("second",)])
    for job in jobs:
        job.result(timeout=20)
    assert seen == ["first", "first", "second"]


def test_starts_keep_their_distance(task_worker: BackgroundTaskWorker) -> None:
    starts: list[float] = []

    @task_worker.task(limit=Limit("api", rate=Rate(20, per=1)))
    async def call() -> None:
        starts.append(time.monotonic())

    jobs = call.enqueue_many([()] * 10)
    for job in jobs:
        job.result(timeout=20)
    # The first may itself have been late, on a busy machine.
    assert starts[-1] - starts[0] >= 7 * 0.049


def test_answer_429_closes_the_lane(task_worker: BackgroundTaskWorker) -> None:
    seen: list[tuple[str, float]] = []

    @task_worker.task(limit=Limit("api", running=1))
    def call(name: str) -> None:
        seen.append((name, time.monotonic()))
        if len(seen) == 1:
            raise SnoozeJob(0.4, limit=True)

    jobs = call.enqueue_many([("first",), ("second",)])
    for job in jobs:
        job.result(timeout=20)
    assert seen[1][1] - seen[0][1] >= 0.39
    assert jobs[0].refresh().attempt == 1


def test_delayed_and_cancelled_jobs_take_no_room(task_worker: BackgroundTaskWorker) -> None:
    begun, go = threading.Event(), threading.Event()

    @task_worker.task(limit=Limit("shop", running=1))
    def work(waits: bool = False) -> None:
        if waits:
            begun.set()
            go.wait(20)

    first = work.enqueue(waits=True)
    assert begun.wait(20)
    cancelled, last, later = work.enqueue(), work.enqueue(), work.using(delay=0.05).enqueue()
    assert cancelled.cancel()
    go.set()
    for job in (first, last, later):
        job.result(timeout=20)
    assert cancelled.refresh().state is JobState.CANCELLED


def test_places_are_over_when_their_jobs_are(task_worker: BackgroundTaskWorker, rows: Rows, store: Store) -> None:
    @task_worker.task(limit=Limit("shop", running=2))
    def work() -> None: ...

    for job in work.enqueue_many([()] * 5):
        job.result(timeout=20)
    wait_for(lambda: set(rows("SELECT phase FROM taskworker_permit")) == {(5,)})


def test_queue_has_a_limit_of_its_own(app: Flask) -> None:
    gauge = Gauge()
    app.config["TASKER_QUEUE_LIMITS"] = {"exports": Limit(running=2)}
    task_worker = BackgroundTaskWorker(app)

    @task_worker.task(queue="exports")
    async def export() -> None:
        with gauge:
            await asyncio.sleep(0.01)

    with app.app_context():
        task_worker.start()
        try:
            for job in export.enqueue_many([()] * 20):
                job.result(timeout=30)
        finally:
            task_worker.stop()
    assert gauge.most == 2
