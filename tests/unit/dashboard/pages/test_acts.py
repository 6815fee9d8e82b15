"""Acts on all that fit: also on those beyond what one page looks at."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from flask_taskworker.ops.browse import FEW, WINDOW
from tests.support.dashboard_lab import Lab
from tests.support.stored import store_jobs, store_many


@pytest.fixture
def lab(make_app: Callable[..., Flask]) -> Lab:
    return Lab(make_app(TASKER_DURABILITY="normal", TASKER_LOOP_INTERVAL=60))


def test_those_behind_many_others_of_their_state_are_counted_and_acted_on(lab: Lab) -> None:
    store_many(lab.rows, FEW + 1, state="'ready'", queue="'default'", finished_at="NULL", expires_at="NULL")
    store_jobs(lab.rows, *[{"task": "mine"}] * 3)
    asked = lab.post("/jobs/confirm", action="cancel", scope="all", filter="state:ready task:mine")
    assert "<strong>3</strong> jobs that fit" in asked.text
    assert "3 jobs cancelled" in lab.act("/jobs/bulk", action="cancel", filter="state:ready task:mine")
    assert lab.rows("SELECT DISTINCT state FROM taskworker_job WHERE task = 'mine'") == [("cancelled",)]


def test_those_older_than_a_page_looks_at_are_acted_on_by_a_job(lab: Lab) -> None:
    store_jobs(lab.rows, *[{"task": "old", "state": "failed"}] * 3)
    store_many(lab.rows, WINDOW + 1, queue="'default'")
    asked = lab.post("/jobs/confirm", action="discard", scope="all", filter="task:old")
    assert "<strong>3</strong> jobs that fit" in asked.text
    assert 'action="/tasks/jobs/bulk"' in asked.text
    lab.act("/jobs/bulk", action="discard", filter="task:old")
    lab.drain()
    assert lab.rows("SELECT DISTINCT discarded FROM taskworker_job WHERE task = 'old'") == [(1,)]
