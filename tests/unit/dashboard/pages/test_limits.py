"""The page of limits: how each stands, and the form that changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import Limit, Rate
from tests.support.dashboard_lab import XSS, Lab


@pytest.fixture
def lab(make_app: Callable[..., Flask]) -> Lab:
    lab = Lab(make_app(TASKER_QUEUE_LIMITS={"mail": Limit(running=2)}))
    lab.task_worker.task(name="label", limit=Limit("carrier", running=5, rate=Rate(100, per=60)))(lambda: None)
    lab.task_worker.task(name="sync", limit=Limit("shop", running=1, key="shop_id"))(lambda shop_id: None)
    return lab


def limit(lab: Lab, name: str) -> dict[str, Any]:
    (found,) = [row for row in lab.data("/limits")["limits"] if row["name"] == name]
    return found  # type: ignore[no-any-return]


def put_in_line(lab: Lab, *keys: str) -> list[int]:
    """Jobs of the limit "shop" with these keys, and the first of each key has the room."""
    with lab.app.app_context():
        task = lab.task_worker._registry.find("sync")
        jobs = [task.using(limit_key=key).enqueue(1) for key in keys]
    lab.rows("INSERT INTO taskworker_limit (name, running, source, set_at, seen_at) VALUES ('shop', 1, 'code', 1, 1)")
    for key in set(keys):
        lab.rows("UPDATE taskworker_permit SET phase = 1 WHERE lane = 'shop:' || ?", key)
        (first,) = lab.rows("SELECT min(job_id) FROM taskworker_permit WHERE lane = 'shop:' || ?", key)[0]
        lab.rows("UPDATE taskworker_permit SET phase = 2 WHERE job_id = ?", first)
        lab.rows("UPDATE taskworker_job SET state = 'ready' WHERE id = ?", first)
    return [job.id for job in jobs]


def test_limits_of_tasks_and_queues_are_there_before_any_job(lab: Lab) -> None:
    assert [row["name"] for row in lab.data("/limits")["limits"]] == ["carrier", "queue:mail", "shop"]
    assert (limit(lab, "carrier")["rate"], limit(lab, "carrier")["tasks"]) == ("100/m", ["label"])
    html = lab.page("/limits")
    assert "for each <bdi>shop_id</bdi>" in html
    assert "queue <bdi>mail</bdi>" in html


def test_page_without_limits_says_how_to_declare_one(make_app: Callable[..., Flask]) -> None:
    assert "No limits yet. Declare one:" in Lab(make_app()).page("/limits")


def test_longest_lines_lead_to_their_jobs(lab: Lab) -> None:
    first, *_ = put_in_line(lab, "7", "7", "7", "8", "8", "a b")
    assert [(row["key"], row["waiting"], row["job"]) for row in limit(lab, "shop")["lanes"]] == [
        ("7", 2, first),
        ("8", 1, first + 3),
    ]
    html = lab.page("/limits")
    assert f'<a href="/tasks/jobs/{first}">#{first}</a>' in html
    assert 'href="/tasks/jobs?filter=state:held+lane:shop:7"' in html
    assert {row["id"] for row in lab.data("/jobs", filter="state:held lane:shop:7")["jobs"]} == {first + 1, first + 2}


def test_limit_is_changed_and_reset_in_the_visitors_name(lab: Lab) -> None:
    assert "Limit carrier is running 2, rate 20/s:5." in lab.act(
        "/limits/change", name="carrier", running="2", rate="20/s:5"
    )
    changed = limit(lab, "carrier")
    assert (changed["running"], changed["rate"], changed["source"], changed["set_by"]) == (
        2,
        "20/s:5",
        "runtime",
        "ana",
    )
    assert "code: running 5, rate 100/m" in lab.page("/limits")
    assert "Limit carrier was already running 2, rate 20/s:5." in lab.act(
        "/limits/change", name="carrier", running="2", rate="20/s:5"
    )
    lab.act("/limits/change", name="carrier", running="", rate="20/s")
    assert limit(lab, "carrier")["running"] is None
    assert "Limit carrier is running 5, rate 100/m again." in lab.act("/limits/reset", name="carrier")
    assert "Limit carrier is not changed." in lab.act("/limits/reset", name="carrier")
    assert [(row.who, row.action) for row in lab.audit()] == [("ana", "reset"), ("ana", "limit"), ("ana", "limit")]


@pytest.mark.parametrize(
    ("running", "rate", "says"),
    [
        ("", "", "would limit nothing"),
        ("0", "", "at least 1"),
        ("-1", "", "Running is &#39;-1&#39;"),
        ("1", "fast", "is not a rate"),
        ("1", "5/s:6", "more than its number"),
    ],
)
def test_what_cannot_be_set_is_refused(lab: Lab, running: str, rate: str, says: str) -> None:
    response = lab.post("/limits/change", name="carrier", running=running, rate=rate)
    assert (response.status_code, says in response.text) == (400, True), response.text
    assert lab.audit() == []


def test_unknown_limit_is_not_found(lab: Lab) -> None:
    assert lab.post("/limits/change", name="typo", running="1").status_code == 404
    assert lab.post("/limits/reset", name="typo").status_code == 404


def test_changing_needs_its_permission(lab: Lab) -> None:
    lab.permissions = {"view", "pause"}
    assert lab.post("/limits/change", name="carrier", running="1").status_code == 403
    assert "Change the limit" not in lab.page("/limits")
    assert limit(lab, "carrier")["running"] == 5


def test_form_of_another_site_changes_nothing(lab: Lab) -> None:
    foreign = {"Origin": "https://evil.example"}
    answer = lab.client.post("/tasks/limits/change", data={"name": "carrier", "running": "1"}, headers=foreign)
    assert answer.status_code == 403
    assert limit(lab, "carrier")["running"] == 5


def test_keys_are_escaped(lab: Lab) -> None:
    put_in_line(lab, *(key for key in XSS for _ in range(2)))
    html = lab.page("/limits")
    assert "<script>alert" not in html
    assert "<img src=x" not in html


def test_jobs_page_tells_its_lane_and_its_place(lab: Lab) -> None:
    jobs = put_in_line(lab, "7", "7", "7")
    assert lab.data(f"/jobs/{jobs[2]}")["lane"] == "shop:7"
    html = lab.page(f"/jobs/{jobs[2]}")
    assert "It is 2nd in line of the limit &#39;shop&#39;, key &#39;7&#39; (1 running: job " in html
    assert "waits for its turn" in html
    assert 'href="/tasks/jobs?filter=lane:shop:7"' in html


def test_held_jobs_have_a_tab_where_there_are_limits(lab: Lab, make_app: Callable[..., Flask]) -> None:
    put_in_line(lab, "7", "7", "7")
    assert [(tab["state"], tab["count"]) for tab in lab.data("/jobs")["tabs"]][1] == ("held", "2")
    assert "held" not in [tab["state"] for tab in Lab(make_app()).data("/jobs")["tabs"]]
