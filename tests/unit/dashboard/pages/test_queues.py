"""The page of queues: each with its state, and the buttons that pause and resume it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from tests.support.dashboard_lab import Lab


@pytest.fixture
def lab(make_app: Callable[..., Flask]) -> Lab:
    lab = Lab(make_app())
    lab.task_worker.task(name="crawl", queue="web")(lambda: None)
    return lab


def queue(lab: Lab, name: str) -> dict[str, object]:
    (found,) = [row for row in lab.data("/queues")["queues"] if row["name"] == name]
    return found  # type: ignore[no-any-return]


def test_queues_of_tasks_and_mail_are_there_before_any_job(lab: Lab) -> None:
    assert {row["name"] for row in lab.data("/queues")["queues"]} >= {"web", "mail"}
    assert (queue(lab, "web")["state"], queue(lab, "web")["ready"]) == ("idle", 0)


def test_a_queue_is_paused_and_resumed_in_the_visitors_name(lab: Lab) -> None:
    assert "Queue web is paused. Its running jobs go on." in lab.act("/queues/pause", name="web")
    paused = queue(lab, "web")
    assert (paused["state"], paused["paused_by"]) == ("paused", "ana")
    assert "Queue web goes on." in lab.act("/queues/resume", name="web")
    assert "Queue web was not paused." in lab.act("/queues/resume", name="web")
    assert [(row.action, row.target) for row in lab.audit()] == [("resume", "queue web"), ("pause", "queue web")]


def test_a_queue_without_a_task_or_a_job_is_not_found(lab: Lab) -> None:
    assert lab.post("/queues/pause", name="typo").status_code == 404
    assert lab.audit() == []


def test_pausing_needs_its_permission(lab: Lab) -> None:
    lab.permissions = {"view", "retry"}
    assert lab.post("/queues/pause", name="web").status_code == 403
    assert queue(lab, "web")["state"] == "idle"
