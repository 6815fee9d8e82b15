"""One job as its page and its command show it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flask_taskworker import BackgroundTaskWorker, JobNotFound, Retry
from flask_taskworker.ops.browse import Browser
from flask_taskworker.ops.job_page import JobPage
from flask_taskworker.store.sql import Store
from flask_taskworker.testing import Jobs

pytestmark = pytest.mark.both_databases


def test_a_job_is_gathered_with_its_tries_its_children_and_its_task(
    idle_worker: BackgroundTaskWorker, store: Store
) -> None:
    @idle_worker.task(retry=Retry(2, base=timedelta(0)))
    def parent(number: int) -> None:
        child.enqueue()
        raise ValueError(number)

    @idle_worker.task
    def child() -> None: ...

    app = idle_worker._state().find_app()
    assert app is not None
    job = parent.enqueue(3)
    Jobs(app).drain(scheduled=True, raise_errors=False)
    page = JobPage.take(Browser(store), job.id, now=store.clock())
    assert (page.job.id, page.job.state, page.args) == (job.id, "failed", "[[3],{}]")
    assert [(one.attempt, one.outcome, one.is_stored) for one in page.tries] == [
        (1, "retrying", True),
        (2, "failed", True),
    ]
    assert page.tries[1].traceback == page.traceback
    assert page.job.error is not None
    assert (page.job.error.text, "ValueError: 3" in page.traceback) == ("ValueError: 3", True)
    assert [row.record.task.rpartition(".")[2] for row in page.children] == ["child", "child"]
    assert (page.has_more_children, page.earlier and page.earlier.failed) == (False, 1)


@pytest.mark.usefixtures("idle_worker")
def test_a_job_that_never_existed_is_not_found(store: Store) -> None:
    with pytest.raises(JobNotFound, match="Job 77 never existed, or it was pruned"):
        JobPage.take(Browser(store), 77, now=store.clock())
