"""Batches, as a running worker keeps them. On every database alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from flask_taskworker import BackgroundTaskWorker, Batch, BatchNotFound, JobState, JobTimeout, Retry, current_job
from flask_taskworker.errors import ArgumentsError, NotAccepted
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

Rows = Callable[..., list[tuple[Any, ...]]]


class Shop:
    """Tasks that succeed or fail on request, and callbacks that say what they were called with."""

    def __init__(self, task_worker: BackgroundTaskWorker) -> None:
        self.heard: list[str] = []
        self.broken: set[int] = set()
        self.tries: list[int] = []
        self.go = threading.Event()
        self.begun = threading.Event()
        self.task_worker = task_worker

        @task_worker.task
        def work(number: int) -> int:
            self.tries.append(number)
            if number in self.broken:
                raise ValueError(number)
            return number

        @task_worker.task
        def hold() -> None:
            self.begun.set()
            self.go.wait(20)

        @task_worker.task
        def hear(word: str) -> None:
            self.heard.append(word)

        self.work, self.hold, self.hear = work, hold, hear

    def open(self, **options: Any) -> Any:
        calls = {f"on_{event}": self.hear.bind(event) for event in ("success", "failure", "end")}
        return self.task_worker.batch("import 7", **calls, **options)

    def settled(self, *words: str) -> None:
        """Exactly these callbacks were called."""
        wait_for(lambda: len(self.heard) >= len(words))
        assert sorted(self.heard) == sorted(words)


@pytest.fixture
def shop(task_worker: BackgroundTaskWorker) -> Shop:
    return Shop(task_worker)


def test_callbacks_come_when_all_have_ended(shop: Shop) -> None:
    with shop.open() as batch:
        shop.work.using(batch=batch).enqueue_many([(i,) for i in range(20)])
        shop.work.using(batch=batch).enqueue(20)
        assert batch.state == "open"
    assert batch.wait(timeout=20) == (21, 21, 0, 0)
    assert batch.state == "succeeded"
    assert batch.progress == 1
    shop.settled("success", "end")


def test_no_callback_comes_before_the_block_has_ended(shop: Shop) -> None:
    with shop.open() as batch:
        shop.work.using(batch=batch).enqueue(1).result(timeout=20)
        assert batch.counts.left == 0
        assert batch.state == "open"
    batch.wait(timeout=20)
    shop.settled("success", "end")


def test_empty_batch_ends_when_it_is_sealed(shop: Shop) -> None:
    with shop.open() as batch:
        assert batch.progress == 0
    assert batch.ended_at is not None
    assert batch.progress == 1
    shop.settled("success", "end")


def test_first_failure_is_told_once_and_success_never(shop: Shop) -> None:
    shop.broken = {3, 4}
    with shop.open() as batch:
        shop.work.using(batch=batch).enqueue_many([(i,) for i in range(6)])
    assert batch.wait(timeout=20) == (6, 4, 2, 0)
    assert batch.state == "failed"
    assert [job.state for job in batch.jobs("failed")] == [JobState.FAILED] * 2
    assert len(list(batch.jobs())) == 6
    shop.settled("failure", "end")


def test_job_that_retries_is_counted_once(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(retry=Retry(3, base=0.01, jitter=0))
    def shaky() -> None:
        if current_job.attempt < 3:
            raise ValueError

    with task_worker.batch("shaky") as batch:
        shaky.using(batch=batch).enqueue()
    assert batch.wait(timeout=20) == (1, 1, 0, 0)


def test_job_of_a_batch_adds_jobs_while_it_runs(task_worker: BackgroundTaskWorker) -> None:
    seen: list[tuple[int, Batch | None]] = []

    @task_worker.task
    def page(number: int) -> None:
        seen.append((number, current_job.batch))
        if number < 4:
            page.using(batch=current_job.batch).enqueue(number + 1)

    with task_worker.batch("pages") as batch:
        page.using(batch=batch).enqueue(1)
    assert batch.wait(timeout=20).total == 4
    assert seen == [(number, batch) for number in (1, 2, 3, 4)]


def test_callback_knows_its_batch(task_worker: BackgroundTaskWorker) -> None:
    seen: list[Any] = []

    @task_worker.task
    def report() -> None:
        assert current_job.batch is not None
        seen.append(current_job.batch.counts)

    with task_worker.batch("import", on_end=report.using(priority=5, queue="reports").bind()):
        pass
    wait_for(lambda: seen)
    assert seen == [(0, 0, 0, 0)]


def test_batch_that_is_sealed_takes_no_job_from_outside(shop: Shop) -> None:
    with shop.open() as batch:
        shop.hold.using(batch=batch).enqueue()
    assert shop.begun.wait(20)
    with pytest.raises(NotAccepted, match="is sealed"):
        shop.work.using(batch=batch).enqueue(1)
    with pytest.raises(NotAccepted, match="is sealed"):
        shop.work.using(batch=batch).enqueue_many([(1,), (2,)])
    shop.go.set()
    assert batch.wait(timeout=20) == (1, 1, 0, 0)
    with pytest.raises(NotAccepted, match="has ended"):
        shop.work.using(batch=batch).enqueue(1)
    assert 1 not in shop.tries


def test_exception_in_the_block_cancels_the_batch(shop: Shop) -> None:
    jobs = []
    with suppress(ZeroDivisionError), shop.open() as batch:
        jobs += shop.work.using(batch=batch, delay=3600).enqueue_many([(1,), (2,)])
        raise ZeroDivisionError
    assert batch.wait(timeout=20) == (2, 0, 0, 2)
    assert {job.refresh().state for job in jobs} == {JobState.CANCELLED}
    shop.settled("end")


def test_job_cancelled_by_hand_counts_and_success_is_not_told(shop: Shop) -> None:
    with shop.open() as batch:
        job = shop.work.using(batch=batch, delay=3600).enqueue(1)
        shop.work.using(batch=batch).enqueue(2)
    job.cancel()
    assert batch.wait(timeout=20) == (2, 1, 0, 1)
    assert batch.state == "cancelled"
    shop.settled("end")


def test_cancelled_batch_asks_running_jobs_to_stop_and_cancels_the_others(shop: Shop) -> None:
    with shop.open() as batch:
        shop.hold.using(batch=batch).enqueue()
        assert shop.begun.wait(20)
        shop.work.using(batch=batch, delay=3600).enqueue_many([(i,) for i in range(600)])
    assert batch.cancel()
    assert batch.counts.cancelled == 600
    shop.go.set()
    assert batch.wait(timeout=20) == (601, 1, 0, 600)
    assert not batch.cancel()


def test_first_failure_stops_the_others_where_that_is_wanted(shop: Shop) -> None:
    shop.broken = {1}
    with shop.open(stop_on_failure=True) as batch:
        shop.work.using(batch=batch, delay=3600).enqueue_many([(i,) for i in range(2, 700)])
        shop.work.using(batch=batch).enqueue(1)
    assert batch.wait(timeout=20) == (699, 0, 1, 698)
    shop.settled("failure", "end")
    shop.broken.clear()
    assert batch.retry() == 699
    assert batch.wait(timeout=60) == (699, 699, 0, 0)


def test_retry_of_the_batch_begins_another_round_at_once(app: Flask, shop: Shop) -> None:
    shop.broken = {3}
    with shop.open() as batch:
        shop.work.using(batch=batch).enqueue_many([(i,) for i in range(5)])
    batch.wait(timeout=20)
    shop.settled("failure", "end")
    shop.broken.clear()
    client = app.extensions["taskworker"].client
    on_news, woken = client.on_news, []
    client.on_news = lambda ready: (woken.append(ready), on_news(ready))
    assert batch.retry() == 1
    assert woken
    assert batch.wait(timeout=20) == (5, 5, 0, 0)
    assert batch.round == 2
    shop.settled("failure", "end", "success", "end")
    assert batch.retry() == 0
    assert batch.round == 2


def test_retry_of_one_job_by_hand_reopens_its_batch(shop: Shop) -> None:
    shop.broken = {3}
    with shop.open() as batch:
        jobs = shop.work.using(batch=batch).enqueue_many([(i,) for i in range(5)])
    batch.wait(timeout=20)
    assert jobs[3].retry()
    batch.wait(timeout=20)
    shop.settled("failure", "end", "failure", "end")
    shop.broken.clear()
    assert jobs[3].retry()
    assert batch.wait(timeout=20) == (5, 5, 0, 0)
    shop.settled("failure", "end", "failure", "end", "success", "end")


def test_batch_in_a_session_is_there_with_its_commit(app: Flask, shop: Shop) -> None:
    engine = create_engine(app.extensions["taskworker"].config.database_uri)
    with Session(engine) as session:
        with shop.open(session=session) as batch:
            shop.work.using(batch=batch).enqueue_many([(1,), (2,)])
            shop.work.using(batch=batch).enqueue(3)
        session.rollback()
        with pytest.raises(BatchNotFound):
            batch.wait(timeout=20)
        with shop.open(session=session) as batch:
            shop.work.using(batch=batch).enqueue_many([(1,), (2,)])
            shop.work.using(batch=batch).enqueue(3)
        session.commit()
    assert batch.wait(timeout=20) == (3, 3, 0, 0)
    shop.settled("success", "end")
    engine.dispose()


async def _use(shop: Shop) -> Batch:
    async with shop.open() as batch:
        await shop.work.using(batch=batch).aenqueue(1)
    assert await batch.await_(timeout=20) == (1, 1, 0, 0)
    with pytest.raises(JobTimeout):
        async with shop.open() as other:
            await other.await_(timeout=0.01)
    return batch


def test_coroutines_have_the_same(shop: Shop) -> None:
    assert asyncio.run(_use(shop)).state == "succeeded"


def test_what_stands_for_two_calls_belongs_to_the_batch_of_the_first(shop: Shop) -> None:
    with shop.open() as batch:
        first = shop.work.using(batch=batch, unique="k", delay=0.2).enqueue(1)
        assert shop.work.using(batch=batch, unique="k").enqueue(1) == first
        assert shop.work.using(batch=batch, uid="u").enqueue(2) == shop.work.using(batch=batch, uid="u").enqueue(2)
    assert batch.wait(timeout=20) == (2, 2, 0, 0)


def test_misuse_is_refused_and_stores_nothing(shop: Shop, rows: Rows) -> None:
    for wrong in (shop.work, 7, shop.work.using(unique="k").bind(1), shop.work.using(uid="u").bind(1)):
        with pytest.raises(ArgumentsError):
            shop.task_worker.batch("import", on_end=wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentsError):
        shop.work.using(batch=7)  # type: ignore[arg-type]
    with pytest.raises(ArgumentsError, match="uid"):
        shop.work.using(uid="batch:1:1:end")
    with pytest.raises(BatchNotFound):
        shop.task_worker.get_batch(7)
    assert rows("SELECT count(*) FROM taskworker_batch") == [(0,)]
    assert rows("SELECT count(*) FROM taskworker_job") == [(0,)]
