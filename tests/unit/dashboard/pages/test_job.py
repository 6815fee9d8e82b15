"""The page of one job: the same facts as the command shows, and nothing that the visitor may not see."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from flask import Flask

from flask_taskworker import current_job
from tests.support.dashboard_lab import Lab


@pytest.fixture
def lab(make_app: Callable[..., Flask]) -> Lab:
    lab = Lab(make_app())

    @lab.task_worker.task(name="pay", sensitive=["card"])
    def pay(amount: int, card: str = "") -> int:
        if amount < 0:
            raise ValueError(f"{amount} is too little")
        return amount

    return lab


def enqueue(lab: Lab, *args: object) -> int:
    with lab.app.app_context():
        return lab.task_worker._registry.find("pay").enqueue(*args).id


def test_it_says_what_the_command_says(lab: Lab) -> None:
    job_id = enqueue(lab, -1)
    lab.drain()
    page = lab.data(f"/jobs/{job_id}")
    words = lab.app.test_cli_runner().invoke(args=["tasks", "job", str(job_id), "--json"]).stdout
    command = json.loads(words)
    same = set(page) & set(command) - {"args", "kwargs", "result", "error", "origin", "tries", "steps"}
    assert same >= {"id", "task", "state", "attempt", "max_attempts", "created_at", "finished_at", "took_ms"}
    assert {name: page[name] for name in same} == {name: command[name] for name in same}
    assert (page["state"], page["error"]["type"]) == ("failed", "ValueError")


def test_sensitive_arguments_are_covered(lab: Lab) -> None:
    html = lab.page(f"/jobs/{enqueue(lab, 7, '4111-1111')}")
    assert "4111" not in html
    assert "•••" in html


def test_arguments_and_results_need_a_permission(lab: Lab) -> None:
    job_id = enqueue(lab, 123_456)
    lab.drain()
    assert "123456" in lab.page(f"/jobs/{job_id}")
    lab.permissions = {"view"}
    assert "123456" not in lab.page(f"/jobs/{job_id}")


def test_steps_are_listed_and_their_results_need_a_permission(lab: Lab) -> None:
    @lab.task_worker.task(name="onboard", sensitive=["token"])
    def onboard() -> None:
        current_job.step("account", lambda: {"user": 987_654, "token": "abc"})
        raise ValueError("not yet")

    with lab.app.app_context():
        job_id = onboard.enqueue().id
    lab.drain()
    html = lab.page(f"/jobs/{job_id}")
    assert "account" in html
    assert "987654" in html
    assert "abc" not in html
    words = lab.app.test_cli_runner().invoke(args=["tasks", "job", str(job_id)]).stdout
    assert "step account (execution 1" in words
    lab.permissions = {"view"}
    html = lab.page(f"/jobs/{job_id}")
    assert "account" in html
    assert "987654" not in html


def test_job_that_waits_is_told_with_a_permission_and_a_note(lab: Lab) -> None:
    @lab.task_worker.task(name="onboard")
    def onboard() -> None:
        current_job.wait_for("approval")
        current_job.wait_for("payment")

    with lab.app.app_context():
        job = onboard.enqueue()
    lab.drain()
    assert "Tell…" in lab.page(f"/jobs/{job.id}")
    lab.permissions = {"view"}
    assert "Tell…" not in lab.page(f"/jobs/{job.id}")
    assert lab.post(f"/jobs/{job.id}/tell", name="approval", value="true").status_code == 403
    lab.permissions = {"view", "tell"}
    assert lab.post(f"/jobs/{job.id}/tell", name="approval", value="maybe").status_code == 400
    assert lab.post(f"/jobs/{job.id}/tell", name="approval", value="true").status_code in (302, 303)
    lab.drain()
    run = lab.app.test_cli_runner().invoke
    assert run(args=["tasks", "tell", str(job.id), "payment", "7"]).exit_code == 0
    lab.drain()
    assert job.refresh().state == "succeeded"
    assert run(args=["tasks", "tell", str(job.id), "payment"]).exit_code == 3
    assert run(args=["tasks", "tell", str(job.id), "payment", "{"]).exit_code == 2
    with lab.app.app_context():
        notes = lab.app.extensions["taskworker"].store.driver.read("SELECT action, target FROM taskworker_audit", {})
    assert [note[0] for note in notes] == ["tell", "tell"]
    assert notes[0][1].endswith("(onboard): approval")


def test_fresh_retry_forgets_the_steps(lab: Lab) -> None:
    done: list[int] = []

    @lab.task_worker.task(name="onboard")
    def onboard() -> None:
        current_job.step("account", done.append, 1)
        raise ValueError("not yet")

    with lab.app.app_context():
        job_id = onboard.enqueue().id
    lab.drain()
    for number, options in ((1, ()), (2, ("--fresh",))):
        assert lab.app.test_cli_runner().invoke(args=["tasks", "retry", *options, str(job_id)]).exit_code == 0
        lab.drain()
        assert len(done) == number


def test_a_job_that_does_not_exist_is_not_found(lab: Lab) -> None:
    assert lab.get("/jobs/77").status_code == 404


def test_arguments_that_are_named_like_moments_stay_as_they_are(lab: Lab) -> None:
    @lab.task_worker.task(name="book")
    def book(start_at: str, at: int) -> list[dict[str, int]]:
        return [{"at": at}]

    with lab.app.app_context():
        job = book.enqueue("tomorrow", at=7)
    lab.drain()
    data = lab.data(f"/jobs/{job.id}")
    assert (data["args"], data["result"]) == ({"start_at": "tomorrow", "at": 7}, [{"at": 7}])


def test_its_json_has_the_tries_of_the_command(lab: Lab) -> None:
    job_id = enqueue(lab, 1)
    lab.drain()
    command = json.loads(lab.app.test_cli_runner().invoke(args=["tasks", "job", str(job_id), "--json"]).stdout)
    (on_page,), (printed,) = lab.data(f"/jobs/{job_id}")["tries"], command["tries"]
    assert (printed["outcome"], printed["attempt"]) == ("succeeded", 1)
    assert {name: on_page[name] for name in printed if name != "traceback"} == {
        name: printed[name] for name in printed if name != "traceback"
    }


def test_moments_of_calls_that_one_job_stands_for_are_iso(lab: Lab) -> None:
    job_id = enqueue(lab, 1)
    columns = "key, job_id, until, calls, first_at, last_at"
    lab.rows(f"INSERT INTO taskworker_key ({columns}) VALUES ('k', ?, 'finished', 2, 1000, 2000)", job_id)
    calls = lab.data(f"/jobs/{job_id}")["calls"]
    moments = ("1970-01-01T00:00:01.000+00:00", "1970-01-01T00:00:02.000+00:00")
    assert (calls["calls"], calls["first_at"], calls["last_at"]) == (2, *moments)
