"""Queues that are paused for a time. On every database alike."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Limit
from flask_taskworker.errors import DeclarationError

pytestmark = pytest.mark.both_databases


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize("limit", [None, Limit("one", running=1)])
def test_queue_is_resumed_when_its_pause_is_over(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker], limit: Limit | None
) -> None:
    task_worker = make_worker(app, start=False)

    @task_worker.task(limit=limit)
    def now() -> float:
        return datetime.now(UTC).timestamp()

    queue, until = task_worker.queues["default"], in_seconds(0.5)
    queue.pause(until=until)
    assert queue.summary.paused_until == pytest.approx(until.timestamp() * 1000, abs=1)
    jobs = now.enqueue_many([(), ()])
    task_worker.start()
    assert all(job.result(timeout=20) >= until.timestamp() - 0.001 for job in jobs)
    assert not queue.paused


def test_why_says_when_a_pause_is_over(idle_worker: BackgroundTaskWorker) -> None:
    @idle_worker.task
    def work() -> None: ...

    job = work.enqueue()
    idle_worker.queues["default"].pause(until=datetime(2126, 5, 1, 18, tzinfo=UTC))
    reason = next(reason for reason in job.why() if reason.kind == "paused")
    assert "Its pause is over at 2126-05-01 18:00" in reason.ends
    # The last word counts.
    idle_worker.queues["default"].pause()
    assert idle_worker.queues["default"].summary.paused_until is None


@pytest.mark.parametrize("until", [in_seconds(-1), datetime(2126, 5, 1)])  # noqa: DTZ001
def test_pause_until_a_moment_that_has_passed_or_is_naive_is_refused(
    idle_worker: BackgroundTaskWorker, until: datetime
) -> None:
    with pytest.raises(DeclarationError, match="has passed|no time zone"):
        idle_worker.queues["default"].pause(until=until)
