"""The page of the system: unknown tasks, settings, versions, the audit log, and the checks of the doctor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask

from flask_taskworker.dashboard.pages import system
from tests.support.dashboard_lab import Lab
from tests.support.stored import store_jobs


@pytest.fixture
def lab(make_app: Callable[..., Flask]) -> Lab:
    return Lab(make_app(MAIL_PASSWORD="hunter2", MAIL_SUPPRESS_SEND=True))


def test_jobs_of_tasks_that_no_code_declares_are_listed(lab: Lab) -> None:
    store_jobs(lab.rows, {"task": "gone"}, {"task": "gone"}, {"task": "other"})
    assert lab.data("/system")["unknown_tasks"] == {"gone": 2, "other": 1}


def test_settings_hide_their_secrets(lab: Lab) -> None:
    settings = lab.data("/system")["settings"]
    assert settings["MAIL_PASSWORD"] == "•••"
    assert "TASKER_THREADS" in settings
    assert "hunter2" not in lab.page("/system")


def test_versions_are_those_of_what_runs(lab: Lab) -> None:
    found = lab.data("/system")["versions"]
    assert {"Python", "SQLite", "Flask", "Flask-TaskWorker", "tables"} <= set(found)
    assert system.versions() is system.versions()


def test_the_audit_log_comes_in_pages(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "PAGE", 2)
    lab.task_worker.task(name="add")(lambda: None)
    for name in ("default", "mail", "default"):
        lab.act("/queues/pause", name=name)
    first = lab.data("/system")
    assert [row["target"] for row in first["audit"]] == ["queue default", "queue mail"]
    rest = lab.data("/system", before=str(first["older"]))
    assert ([row["target"] for row in rest["audit"]], rest["older"]) == (["queue default"], None)


def test_checks_ask_the_mail_server_only_when_told_to(lab: Lab) -> None:
    assert lab.data("/system/checks")["asked_mail_server"] is False
    assert "No mail leaves this machine" not in lab.page("/system/checks")
    assert "No mail leaves this machine" in lab.post("/system/checks").text
    lab.permissions = {"view"}
    assert lab.post("/system/checks").status_code == 403
