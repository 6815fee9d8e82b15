"""The list of schedules: bounded, however many an application makes at run time."""

from __future__ import annotations

import pytest
from flask import Flask

from flask_taskworker import Every
from tests.support.dashboard_lab import Lab
from tests.support.stored import store_jobs

NUMBER = 10_000


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """An app with a schedule for each of many customers."""
    app = Flask("many", instance_path=str(tmp_path_factory.mktemp("instance")))
    app.config.update(TASKER_DURABILITY="normal")
    lab = Lab(app, mail=False)
    tick = lab.task_worker.task(name="tick")(lambda: None)
    with app.app_context():
        tick.schedule(Every(hours=1), name="customer 0")
    lab.rows(
        "INSERT INTO taskworker_schedule (name, task, trigger, args, next_at, source, seen_at) "
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?) "
        "SELECT 'customer ' || i, task, trigger, args, next_at + i, source, seen_at FROM taskworker_schedule, n",
        NUMBER,
    )
    names = [f"customer {number}" for number in range(100)]
    times = {"state": "succeeded", "started_at": 1, "finished_at": 5}
    store_jobs(lab.rows, *({"schedule": name, "fire_at": at, **times} for name in names for at in range(1, 31)))
    return lab


@pytest.mark.parametrize("path", ["/", "/schedules", "/queues", "/workers", "/system", "/schedule?name=customer%207"])
def test_no_page_grows_with_the_number_of_schedules(lab: Lab, path: str) -> None:
    assert len(lab.page(path)) < 100_000
    assert len(lab.client.get(f"/tasks{path}{'&' if '?' in path else '?'}format=json").data) < 100_000


def test_each_schedule_is_on_one_page_of_the_list(lab: Lab) -> None:
    first = lab.data("/schedules")
    assert (first["page"], first["total"]) == (1, NUMBER)
    assert f"page 1 of {first['pages']}, 10,000 in all" in lab.page("/schedules")
    names = [
        row["name"] for page in (1, 2, first["pages"]) for row in lab.data("/schedules", page=str(page))["schedules"]
    ]
    assert len(set(names)) == len(names)
    assert names[0] == "customer 0"
    assert lab.data("/schedules", page="99999")["page"] == first["pages"]


def test_a_schedule_is_found_by_a_part_of_its_name(lab: Lab) -> None:
    found = lab.data("/schedules", find="CUSTOMER 177")
    assert [row["name"] for row in found["schedules"]][:2] == ["customer 177", "customer 1770"]
    assert found["total"] == 11
    assert "No schedule has this in its name" in lab.page("/schedules", find="no such")
