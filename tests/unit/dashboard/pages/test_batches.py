"""The pages of batches, and what the page of a job says of a graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from flask_taskworker.core.tasks import Task
from tests.support.dashboard_lab import Lab, assert_harmless


@pytest.fixture
def lab(make_app: Callable[..., Flask]) -> Lab:
    return Lab(make_app())


@pytest.fixture
def work(lab: Lab) -> Task[..., None, None]:
    @lab.task_worker.task(name="work")
    def work(number: int = 0) -> None:
        if number:
            raise ValueError

    return work


def test_batch_is_listed_shown_and_retried(lab: Lab, work: Task[..., None, None]) -> None:
    with lab.app.app_context():
        with lab.task_worker.batch("<b>import</b>") as batch:
            work.using(batch=batch).enqueue_many([(0,), (1,)])
        lab.drain()
    assert lab.data("/batches")["batches"][0]["state"] == "failed"
    assert_harmless(lab.page("/batches"))
    page = lab.page(f"/batches/{batch.id}")
    assert "Retry failed" in page
    assert_harmless(page)
    assert "1 job went back to the queues." in lab.act(f"/batches/{batch.id}/retry")
    assert "The batch is cancelled." in lab.act(f"/batches/{batch.id}/cancel")
    assert "Nothing was done" in lab.act(f"/batches/{batch.id}/cancel")
    assert [row.target for row in lab.audit()] == [f"batch {batch.id} (<b>import</b>)"] * 2
    assert lab.get("/batches/99").status_code == 404


def test_visitor_without_the_permission_changes_no_batch(make_app: Callable[..., Flask]) -> None:
    lab = Lab(make_app(), ("view",))
    with lab.app.app_context(), lab.task_worker.batch("import") as batch:
        assert lab.post(f"/batches/{batch.id}/cancel").status_code == 403
        assert lab.post(f"/batches/{batch.id}/seal").status_code == 403


def test_job_page_draws_what_hangs_together(lab: Lab, work: Task[..., None, None]) -> None:
    with lab.app.app_context():
        first = work.using(delay=3600).enqueue()
        child = work.using(after=first).enqueue()
        last = work.using(after=child).enqueue()
    page = lab.page(f"/jobs/{child.id}")
    assert "<h2>After</h2>" in page
    assert "<h2>Then</h2>" in page
    assert page.count('class="edge"') == 2
    assert "waiting" in page
    assert_harmless(page)
    data = lab.data(f"/jobs/{child.id}")
    assert [row["id"] for row in data["after"]] == [first.id]
    assert [row["id"] for row in data["then"]] == [last.id]


def test_large_graph_is_a_table(lab: Lab, work: Task[..., None, None]) -> None:
    with lab.app.app_context():
        parents = work.using(delay=3600).enqueue_many([()] * 60)
        last = work.using(after=parents).enqueue()
    assert 'class="edge"' not in lab.page(f"/jobs/{last.id}")
