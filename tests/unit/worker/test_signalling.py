"""A slow receiver of signals must not fill the memory."""

from __future__ import annotations

import threading

import pytest

from flask_taskworker import BackgroundTaskWorker, signals
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases


@pytest.mark.timing(signal_backlog=5)
def test_no_further_jobs_begin_while_receivers_are_far_behind(task_worker: BackgroundTaskWorker) -> None:
    gate = threading.Event()
    done: list[int] = []

    @task_worker.task(name="count")
    async def count(number: int) -> None:
        done.append(number)

    def slow(_app: object, **_: object) -> None:
        gate.wait(30)

    with signals.job_succeeded.connected_to(slow):
        jobs = count.enqueue_many([(number,) for number in range(2000)])
        wait_for(lambda: len(done) > 5)
        first = len(done)
        assert first < 2000, "all ran although no receiver had heard of the first"
        gate.set()
        wait_for(lambda: len(done) == len(jobs))
