"""What a running job lets others know by ``current_job.meta``. On every database alike."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from flask_taskworker import BackgroundTaskWorker, Retry, current_job
from flask_taskworker.core.rows import Progress
from flask_taskworker.errors import ArgumentsError
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

PATIENCE = 20
Rows = Callable[..., list[tuple[Any, ...]]]


def test_others_read_the_meta_of_a_job_while_it_runs_and_when_it_has_ended(task_worker: BackgroundTaskWorker) -> None:
    go = threading.Event()

    @task_worker.task
    def crawl() -> str:
        current_job.meta["page"] = 1
        current_job.progress(1, 2)
        go.wait(PATIENCE)
        current_job.meta.update({"page": 2, "tags": ["a", None, 1.5]})
        current_job.meta["gone"] = True
        del current_job.meta["gone"]
        return str(current_job.meta)

    job = crawl.enqueue()
    wait_for(lambda: job.refresh().meta)
    assert job.meta == {"page": 1}
    assert job.progress == Progress(1, 2)
    go.set()
    assert job.result(PATIENCE) == "{'page': 2, 'tags': ['a', None, 1.5]}"
    assert job.refresh().meta == {"page": 2, "tags": ["a", None, 1.5]}
    assert job.progress == Progress(1, 2)


def test_meta_alone_is_no_progress(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    async def look() -> None:
        current_job.meta["page"] = 1

    job = look.enqueue().wait(PATIENCE)
    assert (job.meta, job.progress) == ({"page": 1}, None)


def test_each_attempt_begins_with_an_empty_meta(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task(retry=Retry(2, base=0.001))
    def look() -> int:
        seen = len(current_job.meta)
        current_job.meta[f"attempt {current_job.attempt}"] = seen
        if current_job.attempt == 1:
            raise ValueError
        return seen

    job = look.enqueue()
    assert job.result(PATIENCE) == 0
    assert job.refresh().meta == {"attempt 2": 0}


def test_what_meta_cannot_hold_is_refused_where_it_is_set(task_worker: BackgroundTaskWorker) -> None:
    errors: list[str] = []

    @task_worker.task
    def look() -> None:
        for key, value in (("x", object()), (1, "x"), ("x", (1, 2)), ("x", float("nan")), ("x", "x" * 10_000)):
            try:
                current_job.meta[key] = value  # type: ignore[index]
            except ArgumentsError as error:
                errors.append(str(error))

    assert look.enqueue().wait(PATIENCE).meta == {}
    assert [error.partition(". ")[0].partition(" = ")[0][:20] for error in errors] == [
        "meta['x']",
        "meta[1]",
        "meta['x']",
        "meta['x']",
        "meta would take 10,0",
    ]
    assert "lists and dicts" in errors[0]


def test_a_job_that_uses_no_meta_stores_none(task_worker: BackgroundTaskWorker, rows: Rows) -> None:
    @task_worker.task
    def quiet() -> None: ...

    @task_worker.task
    def loud() -> None:
        current_job.progress(1)

    quiet.enqueue().wait(PATIENCE)
    loud.enqueue().wait(PATIENCE)
    assert rows("SELECT progress FROM taskworker_job ORDER BY id") == [(None,), ('[1, null, ""]',)]
