"""Sentry: one event for each job that fails for good, and nothing of one job in the event of another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

APPLICATION = """
import json, sys, threading

import sentry_sdk
from flask import Flask
from sentry_sdk.transport import Transport

from flask_taskworker import BackgroundTaskWorker, Retry
from flask_taskworker.errors import JobFailed
from flask_taskworker.sentry import instrument

events = []


class Kept(Transport):
    def capture_envelope(self, envelope):
        if event := envelope.get_event():
            events.append(event)


sentry_sdk.init(dsn="https://key@localhost/1", transport=Kept)
app = Flask("shop", instance_path=sys.argv[1])
task_worker = BackgroundTaskWorker(app)
if sys.argv[2] == "instrumented":
    instrument(task_worker)
meeting = threading.Barrier(2)


def fail(number):
    if number == 0:
        raise ValueError("broken")


@task_worker.task(retry=Retry(2, base=0))
def sync_work(number: int) -> None:
    sentry_sdk.set_tag("number", number)
    sentry_sdk.add_breadcrumb(message=f"sync {number}")
    meeting.wait(20)
    fail(number)


@task_worker.task(retry=Retry(2, base=0))
async def async_work(number: int) -> None:
    sentry_sdk.set_tag("number", number)
    fail(number)


@task_worker.task
async def reports() -> None:
    sentry_sdk.capture_message("a word from the task")


task_worker.start()
with app.app_context():
    # The two sync tries meet, so that each would see the tag and the breadcrumb of the other.
    failing, going = sync_work.enqueue(0), sync_work.enqueue(1)
    going.result(timeout=20)
    other = sync_work.enqueue(2)
    jobs = [failing, async_work.enqueue(0)]
    other.result(timeout=20)
    for job in jobs:
        try:
            job.result(timeout=20)
        except JobFailed:
            pass
    reports.enqueue().result(timeout=20)
task_worker.stop()
sentry_sdk.flush()
print(json.dumps({"events": events, "jobs": [job.id for job in jobs]}, default=str))
"""


Reported = tuple[list[dict[str, Any]], list[int]]
"""The events, and the numbers of the jobs that fail."""


def run(tmp_path: Path, mode: str) -> Reported:
    script = tmp_path / "shop.py"
    script.write_text(APPLICATION)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "instance", mode],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=tmp_path,
    )
    printed = json.loads(done.stdout.splitlines()[-1])
    return printed["events"], printed["jobs"]


@pytest.fixture(scope="module")
def instrumented(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """What is reported where each try has a scope of its own."""
    return run(tmp_path_factory.mktemp("sentry"), "instrumented")


def failures(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The events with an exception, by transaction."""
    found = {event["transaction"]: event for event in events if "exception" in event}
    assert len(found) == sum("exception" in event for event in events)
    return found


def test_job_that_fails_for_good_is_one_event_with_its_task_its_id_and_the_frames_of_the_application(
    instrumented: Reported,
) -> None:
    events, ids = instrumented
    found = failures(events)
    assert len(found) == 2
    for name, job_id in zip(["sync_work", "async_work"], ids, strict=True):
        event = next(event for transaction, event in found.items() if transaction.endswith(f".{name}"))
        assert event["contexts"]["job"]["id"] == job_id
        assert event["contexts"]["job"]["attempt"] == 2
        assert event["tags"]["taskworker.task"] == event["transaction"]
        assert event["tags"]["taskworker.queue"] == "default"
        frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
        assert [frame["function"] for frame in frames][-2:] == [name, "fail"]
        assert len(event["fingerprint"]) == 1


def test_tags_and_breadcrumbs_of_one_job_are_not_in_the_event_of_another(instrumented: Reported) -> None:
    events, _ = instrumented
    found = failures(events)
    event = next(event for transaction, event in found.items() if transaction.endswith(".sync_work"))
    assert event["tags"]["number"] == 0
    crumbs = [crumb["message"] for crumb in event["breadcrumbs"]["values"]]
    assert [crumb for crumb in crumbs if crumb.startswith("sync ")] == ["sync 0"]


def test_what_a_task_reports_itself_has_the_job_and_no_fingerprint(instrumented: Reported) -> None:
    events, _ = instrumented
    event = next(event for event in events if "exception" not in event)
    assert event["transaction"].endswith("reports")
    assert "fingerprint" not in event


@pytest.mark.slow
def test_sentry_with_its_defaults_sees_each_final_failure_once(tmp_path: Path) -> None:
    events, _ = run(tmp_path, "plain")
    assert sum("exception" in event for event in events) == 2
