"""One dashboard in one app, or several: mounted from code or configuration, and the same facts as the commands."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Every
from flask_taskworker.dashboard import create_dashboard
from flask_taskworker.dashboard.blueprint import ROUTES
from tests.support.dashboard_lab import Lab


def test_configuration_alone_mounts_it(make_app: Callable[..., Flask]) -> None:
    app = make_app(TASKER_DASHBOARD_URL="/tasks")
    BackgroundTaskWorker(app)
    app.debug = True
    assert app.test_client().get("/tasks/").status_code == 200


def test_a_second_dashboard_has_a_name_and_permissions_of_its_own(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    task_worker = BackgroundTaskWorker(app)
    app.register_blueprint(create_dashboard(task_worker, access=lambda: True), url_prefix="/tasks")
    second = create_dashboard(task_worker, access=lambda: "read", name="status")
    app.register_blueprint(second, url_prefix="/status")
    client = app.test_client()
    assert 'href="/status/jobs"' in client.get("/status/").text
    own = {"Sec-Fetch-Site": "same-origin"}
    assert client.post("/status/queues/pause", data={"name": "default"}, headers=own).status_code == 403


def test_every_address_has_one_endpoint() -> None:
    assert len({route.rule for route in ROUTES}) == len({route.endpoint for route in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize(
    ("command", "page", "key"), [("jobs", "/jobs", "jobs"), ("schedule list", "/schedules", "schedules")]
)
def test_pages_and_commands_tell_the_same_facts_under_the_same_keys(
    make_app: Callable[..., Flask], command: str, page: str, key: str
) -> None:
    lab = Lab(make_app(), mail=False)
    task = lab.task_worker.task(name="add", retry=2)(lambda: None)
    with lab.app.app_context():
        task.enqueue()
        task.using(delay=60).enqueue()
        task.schedule(Every(hours=1), name="hourly")
    answer = lab.app.test_cli_runner().invoke(args=["tasks", *command.split(), "--json"])
    told = [json.loads(line) for line in answer.output.splitlines()]
    shown = lab.data(page)[key]
    assert len(told) == len(shown) > 0
    for facts, row in zip(told, shown, strict=True):
        assert {name: row[name] for name in facts} == facts
