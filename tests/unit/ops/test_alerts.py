"""Alerts: said once when a problem begins and once when it is over, by one process of all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Mail
from flask_taskworker.core.config import TaskWorkerConfig
from flask_taskworker.errors import ConfigError
from flask_taskworker.ops.alerts import Alert, look
from flask_taskworker.signals import alert_changed
from flask_taskworker.worker.timing import DEFAULT_TIMING
from tests.support.waiting import wait_for

MakeApp = Callable[..., Flask]
SHOPS: list[Flask] = []
"""Those of the test, whose connections are closed after it."""
RULES = {"latency": 60, "failed_per_hour": 2, "mail": "ops@example.org"}


@pytest.fixture
def heard() -> Iterator[list[Alert]]:
    """The alerts that the signal has told."""
    alerts: list[Alert] = []

    def hear(app: Flask, alert: Alert) -> None:
        alerts.append(alert)

    with alert_changed.connected_to(hear):
        yield alerts


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while SHOPS:
        SHOPS.pop().extensions["taskworker"].client.close()


def shop(make_app: MakeApp, **config: Any) -> tuple[Flask, BackgroundTaskWorker]:
    app = make_app(TASKER_ALERTS=RULES, TESTING=True, MAIL_DEFAULT_SENDER="app@example.org", **config)
    task_worker = BackgroundTaskWorker(app)
    Mail(app)
    SHOPS.append(app)
    return app, task_worker


def wait_long(app: Flask) -> None:
    """Pretend that the jobs were enqueued two minutes earlier."""
    driver = app.extensions["taskworker"].store.driver
    driver.write("UPDATE taskworker_job SET created_at = created_at - 120000", {})


@pytest.mark.both_databases
def test_a_problem_is_said_once_when_it_begins_and_once_when_it_is_over(make_app: MakeApp, heard: list[Alert]) -> None:
    app, task_worker = shop(make_app)

    @task_worker.task
    def add() -> None: ...

    job = add.enqueue()
    wait_long(app)
    with app.extensions["mail"].record_messages() as outbox:
        assert [(alert.name, alert.is_over) for alert in look(app)] == [
            ("no worker", False),
            ("latency of default", False),
        ]
        assert look(app) == []
        assert job.cancel()
        assert [alert.is_over for alert in look(app)] == [True, True]
        assert look(app) == []
    assert [message.subject for message in outbox] == [
        f"[{app.name}] Tasks: 2 new problems",
        f"[{app.name}] Tasks: problems are over",
    ]
    assert "Problem: A job in queue 'default' has been ready for 2 min; 1 min is allowed." in outbox[0].body
    assert outbox[0].recipients == ["ops@example.org"]
    assert [alert.name for alert in heard] == ["no worker", "latency of default"] * 2
    assert heard[2].since == heard[0].since


@pytest.mark.both_databases
def test_of_several_processes_that_see_a_problem_one_says_it(make_app: MakeApp, heard: list[Alert]) -> None:
    app, task_worker = shop(make_app)

    @task_worker.task
    def add() -> None: ...

    add.enqueue()
    barrier = threading.Barrier(6)

    def process() -> None:
        barrier.wait(20)
        look(app)

    threads = [threading.Thread(target=process) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [alert.name for alert in heard] == ["no worker"]


@pytest.mark.both_databases
def test_a_worker_looks_by_itself_and_counts_the_failures_of_an_hour(make_app: MakeApp, heard: list[Alert]) -> None:
    _, task_worker = shop(make_app)
    task_worker._timing = replace(DEFAULT_TIMING, cleaning_interval=0.2, figures=0.05)

    @task_worker.task
    def fail() -> None:
        raise ValueError

    task_worker.start()
    try:
        for job in fail.enqueue_many([()] * 3):
            job.wait(20)
        wait_for(lambda: heard)
    finally:
        task_worker.stop(timeout=5)
    assert heard[0].text == "3 jobs failed within an hour; 2 are allowed."


def test_a_paused_queue_may_wait(make_app: MakeApp, heard: list[Alert]) -> None:
    app, task_worker = shop(make_app)

    @task_worker.task
    def add() -> None: ...

    add.enqueue()
    wait_long(app)
    task_worker.queues["default"].pause(who="test")
    assert look(app) == []


def test_without_the_setting_no_worker_looks(make_app: MakeApp) -> None:
    app = make_app()
    BackgroundTaskWorker(app)
    assert app.extensions["taskworker"].client.on_minute is None
    assert look(app) == []


def test_status_sends_alerts_where_it_is_asked_to(make_app: MakeApp, heard: list[Alert]) -> None:
    app, task_worker = shop(make_app)

    @task_worker.task
    def add() -> None: ...

    add.enqueue()
    runner = app.test_cli_runner()
    assert runner.invoke(args=["tasks", "status"]).exit_code == 4
    assert heard == []
    assert runner.invoke(args=["tasks", "status", "--alert"]).exit_code == 4
    assert [alert.name for alert in heard] == ["no worker"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (60, r"TASKER_ALERTS.*a dict such as"),
        ({"latencies": 60}, r"TASKER_ALERTS.*a dict such as"),
        ({"latency": -1}, r"TASKER_ALERTS\['latency'\]"),
        ({"failed_per_hour": 0}, r"TASKER_ALERTS\['failed_per_hour'\]"),
        ({"mail": "ops"}, r"TASKER_ALERTS\['mail'\].*an address"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_allowed(value: Any, words: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=words):
        TaskWorkerConfig.from_mapping({"TASKER_ALERTS": value}, instance_path=str(tmp_path))


def test_each_rule_may_be_left_out(tmp_path: Any) -> None:
    config = TaskWorkerConfig.from_mapping(
        {"TASKER_ALERTS": {"latency": timedelta(hours=1)}}, instance_path=str(tmp_path)
    )
    assert config.alerts is not None
    assert (config.alerts.latency, config.alerts.failed_per_hour, config.alerts.mail) == (timedelta(hours=1), None, ())
