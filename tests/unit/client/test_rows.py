"""The rows of jobs to be stored."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flask_taskworker import BackgroundTaskWorker
from flask_taskworker.client.rows import new_job, new_jobs, new_uids, unique_key
from flask_taskworker.core.clock import from_ms
from flask_taskworker.core.tasks import EnqueueOptions, Task

NOW = 1_777_777_777_777


@pytest.fixture
def task() -> Task[..., Any, Any]:
    @BackgroundTaskWorker().task(queue="web", priority=3, timeout=1.5, retry=4)
    def pay(x: int) -> None: ...

    return pay


@pytest.mark.parametrize(
    ("options", "run_at", "state"),
    [
        ({}, 0, "ready"),
        ({"delay": timedelta(0)}, 0, "ready"),
        ({"delay": timedelta(seconds=2)}, NOW + 2000, "scheduled"),
        ({"run_at": from_ms(NOW + 5)}, NOW + 5, "scheduled"),
        ({"run_at": from_ms(NOW - 5)}, 0, "ready"),
    ],
)
def test_a_job_that_is_due_has_no_moment(
    task: Task[..., Any, Any], options: dict[str, Any], run_at: int, state: str
) -> None:
    row = new_job(task, "[[],{}]", EnqueueOptions(**options), NOW)
    assert (row.run_at, row.state) == (run_at, state)


def test_options_come_before_those_of_the_task(task: Task[..., Any, Any]) -> None:
    row = new_job(task, "[[],{}]", EnqueueOptions(), NOW)
    assert (row.queue, row.priority, row.timeout, row.max_attempts) == ("web", 3, 1500, 4)
    row = new_job(task, "[[],{}]", EnqueueOptions(queue="other", priority=0, uid="mine"), NOW)
    assert (row.queue, row.priority, row.uid) == ("other", 0, "mine")


def test_many_rows_are_alike_but_for_arguments_and_uid(task: Task[..., Any, Any]) -> None:
    rows = new_jobs(task, ["[[1],{}]", "[[2],{}]"], EnqueueOptions(), NOW, None)
    assert [row.args for row in rows] == ["[[1],{}]", "[[2],{}]"]
    assert len({row.uid for row in rows}) == 2
    assert len({row._replace(uid="", args="") for row in rows}) == 1


def test_uids_grow_with_the_time() -> None:
    assert max(new_uids(NOW, 100)) < min(new_uids(NOW + 1, 100))
    assert {len(uid) for uid in new_uids(NOW, 3)} == {32}


def test_task_and_key_stay_apart() -> None:
    pairs = [("a", "b:c"), ("a:b", "c"), ("a\\", ":b"), ("a\\:", "b")]
    assert len({unique_key(task, key) for task, key in pairs}) == len(pairs)
    assert unique_key("shop.pay", "7") == "shop.pay:7"
