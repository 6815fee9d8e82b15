"""One reading of a row: the state's word, which try it is, when it is late, how a mail stands, and its JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from flask_taskworker.core.rows import JobRecord, Progress
from flask_taskworker.core.triggers import Cron, Every, trigger_to_text
from flask_taskworker.ops.rows import JobRow, JobWhole, LogLine, MailRow, QueueState, RecipientRow, ScheduleRun
from flask_taskworker.ops.views import (
    as_json,
    error_view,
    job_view,
    mail_view,
    queue_summary,
    schedule_view,
    try_views,
    worker_view,
)
from flask_taskworker.store.sql import Attempt, ScheduleRow, WorkerRow

NOW = 1_800_000_000_000
MINUTE = 60_000


def job(*, discarded: int = 0, error: str | None = None, **values: Any) -> JobRow:
    fields = {"id": 7, "uid": "u", "task": "shop.add", "queue": "web", "kind": "sync", "priority": 0, "state": "ready"}
    record = JobRecord(**{**fields, "run_at": NOW, "max_attempts": 3, "timeout": None, **values})
    return JobRow(record, discarded, None, "[[],{}]", error)


@pytest.mark.parametrize(
    ("values", "state", "attempt"),
    [
        ({}, "ready", 1),
        ({"state": "scheduled"}, "scheduled", 1),
        ({"state": "scheduled", "failures": 1}, "retrying", 2),
        ({"state": "running", "failures": 1}, "running", 2),
        ({"state": "failed", "failures": 3}, "failed", 3),
        ({"state": "failed", "failures": 0, "failure_kind": "crashed"}, "failed", 1),
        ({"state": "succeeded", "failures": 1}, "succeeded", 2),
    ],
)
def test_a_job_has_the_same_state_and_try_wherever_it_is_shown(values: Any, state: str, attempt: int) -> None:
    view = job_view(job(**values))
    assert (view.state, view.word, view.attempt) == (state, state, attempt)


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ({"run_at": 0, "created_at": 5}, 5),
        ({"run_at": 9, "created_at": 5, "state": "scheduled"}, 9),
        ({"run_at": 9, "started_at": 12, "state": "running"}, 12),
        ({"run_at": 9, "started_at": 12, "finished_at": 15, "state": "failed"}, 15),
    ],
)
def test_the_moment_that_matters_depends_on_the_state(values: Any, at: int) -> None:
    assert job_view(job(**values)).at == at


def test_a_discarded_job_says_so_and_keeps_its_state() -> None:
    view = job_view(job(discarded=1, state="failed", failures=1))
    assert (view.state, view.discarded, view.word) == ("failed", True, "discarded")


def test_json_of_a_view_has_moments_in_iso_and_views_inside() -> None:
    error = json.dumps({"type": "ValueError", "message": "no", "traceback": "…"})
    values = {
        "state": "failed",
        "failures": 1,
        "started_at": NOW,
        "finished_at": NOW + 1_500,
        "progress": "[1, 4, null]",
    }
    found = as_json(job_view(job(error=error, **values)))
    assert found["started_at"] == "2027-01-15T08:00:00.000+00:00"
    assert (found["took_ms"], found["percent"], found["expires_at"]) == (1_500, 25.0, None)
    assert found["error"] == {"kind": "exception", "type": "ValueError", "message": "no"}
    assert json.loads(json.dumps(found)) == found


def test_progress_without_a_total_has_no_percentage() -> None:
    view = job_view(job(progress=Progress(3)._to_text()))
    assert (view.progress, view.percent) == (Progress(3), None)
    assert job_view(job(progress='[9, 4, ""]')).percent == 100.0


def test_an_error_reads_as_type_and_message_or_as_its_kind() -> None:
    assert error_view(None, None) is None
    assert error_view(None, "timeout").text == "timeout"  # type: ignore[union-attr]
    assert error_view('{"type": "E", "message": "m", "trace', None).text == "E: m"  # type: ignore[union-attr]


def whole(attempts: list[Attempt], lines: dict[int, list[LogLine]], **values: Any) -> JobWhole:
    return JobWhole(*job(**values), None, None, attempts, lines, None, None)  # type: ignore[call-arg]


def test_a_try_took_as_long_as_it_ran() -> None:
    attempts = [
        Attempt(1, 1, None, None, NOW, "interrupted", None),
        Attempt(2, 1, "w", NOW, NOW + 40, "retrying", '{"type": "E", "message": "", "traceback": "T"}'),
    ]
    first, second = try_views(job_view(job()), whole(attempts, {}))
    assert (first.took_ms, second.took_ms, second.traceback, second.claim) == (None, 40, "T", 2)


def test_a_try_without_a_row_is_told_by_its_job_and_its_lines() -> None:
    line = LogLine(NOW, "INFO", "app", "done")
    values = {"state": "succeeded", "claim": 2, "started_at": NOW, "finished_at": NOW + 5, "worker_id": "w"}
    first, last = try_views(job_view(job(**values)), whole([], {1: [line]}, **values))
    assert (first.claim, first.outcome, first.attempt, first.lines) == (1, "ended", None, (line,))
    assert (last.claim, last.outcome, last.attempt, last.took_ms, last.worker_id) == (2, "succeeded", 1, 5, "w")
    assert try_views(job_view(job()), whole([], {})) == ()


# -- schedules ---------------------------------------------------------------------------------------------------------


def schedule(
    next_at: int | None = NOW, *, last_at: int | None = None, paused: int = 0, source: str = "code"
) -> ScheduleRow:
    return ScheduleRow("often", "shop.add", trigger_to_text(Every(minutes=1)), "", next_at, last_at, paused, source)


def run(state: str, finished_at: int | None = NOW) -> ScheduleRun:
    return ScheduleRun("often", 1, state, NOW, NOW, finished_at)


@pytest.mark.parametrize(
    ("row", "runs", "state"),
    [
        (schedule(), (), "new"),
        (schedule(last_at=NOW), (), "up"),
        (schedule(NOW - MINUTE), (), "new"),
        (schedule(NOW - MINUTE - 1), (run("succeeded"),), "late"),
        (schedule(NOW - MINUTE - 1, paused=1), (), "paused"),
        (schedule(), (run("running", None), run("failed")), "running"),
        (schedule(), (run("ready", None), run("failed")), "failing"),
        (schedule(), (run("succeeded"), run("failed")), "up"),
        (schedule(None, last_at=NOW), (run("succeeded"),), "ended"),
    ],
)
def test_a_schedule_has_the_same_state_wherever_it_is_shown(row: ScheduleRow, runs: Any, state: str) -> None:
    view = schedule_view(row, NOW, runs)
    assert view.state == state
    assert bool(view.late_ms) == (state == "late")


def test_a_schedule_says_when_it_fires() -> None:
    cron = trigger_to_text(Cron("0 3 * * *", timezone="Europe/Berlin"))
    view = schedule_view(schedule()._replace(trigger=cron), NOW)
    assert (view.when, view.explained, view.zone) == (
        "0 3 * * * (Europe/Berlin)",
        "At 03:00 every day",
        "Europe/Berlin",
    )
    gone = schedule_view(schedule()._replace(trigger='{"type": "moon"}', source=""), NOW)
    assert (gone.state, gone.when, gone.is_stored) == ("unreadable", "cannot be read by this version", False)


# -- workers and queues ------------------------------------------------------------------------------------------------


def worker(state: str = "alive", beat_at: int = NOW, **info: Any) -> WorkerRow:
    return WorkerRow("w1", "web1", 12, NOW - MINUTE, 1, beat_at, state, json.dumps(info), 2)


@pytest.mark.parametrize(
    ("row", "state"),
    [
        (worker(), "up"),
        (worker(beat_at=NOW - 30_000), "up"),
        (worker(beat_at=NOW - 30_001), "silent"),
        (worker("draining"), "draining"),
        (worker("draining", NOW - 30_001), "silent"),
        (worker("dead", NOW - 30_001), "lost"),
        (worker("left", NOW - 30_001), "left"),
    ],
)
def test_a_worker_has_the_same_state_wherever_it_is_shown(row: WorkerRow, state: str) -> None:
    assert worker_view(row, NOW).state == state


def test_a_worker_shows_what_it_said_of_itself() -> None:
    view = worker_view(worker(queues=["a"], running={"async": 3}, concurrency=9, threads=2, name="blue"), NOW)
    assert (view.name, view.queues, view.exclude) == ("blue", ("a",), ())
    assert (view.async_busy, view.async_slots, view.sync_busy, view.sync_slots) == (3, 9, 0, 2)
    assert worker_view(worker(), NOW).name == "web1:12"


@pytest.mark.parametrize(
    ("values", "workers", "state"),
    [
        ({"paused": True, "ready": 3}, [], "paused"),
        ({"ready": 3}, [], "no worker"),
        ({"ready": 3}, [worker(exclude=["q"])], "no worker"),
        ({"ready": 3}, [worker("draining", concurrency=1, threads=1)], "no worker"),
        ({"ready": 3, "oldest_at": NOW - 5 * MINUTE - 1}, [worker(concurrency=1, threads=1)], "slow"),
        ({"ready": 3, "oldest_at": NOW}, [worker(queues=["q"], concurrency=1, threads=1)], "ok"),
        ({}, [], "idle"),
    ],
)
def test_a_queue_has_the_same_state_wherever_it_is_shown(values: Any, workers: list[WorkerRow], state: str) -> None:
    nothing: dict[str, Any] = {"name": "q", "ready": 0, "running": 0, "oldest_at": None, "paused": False}
    rest: dict[str, Any] = {"paused_at": None, "paused_by": None, "paused_until": None, "figures": None}
    view = queue_summary(QueueState(**{**nothing, **rest, **values}), workers, NOW)
    assert view.state == state
    assert view.slots == (2 if state in ("ok", "slow") else 0)


# -- mails -------------------------------------------------------------------------------------------------------------


def mail(state: str | None = "ready", **values: Any) -> MailRow:
    head = b"From: Me <me@example.com>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\r\n"
    fields = {
        "id": "m",
        "message_id": "<x@y>",
        "sender": "me@example.com",
        "once": 0,
        "phase": None,
        "tries": 0,
        "size": 9,
    }
    times = {"created_at": NOW, "give_up_at": NOW + MINUTE, "finished_at": None, "run_at": NOW + 5}
    return MailRow(**{**fields, **times, "head": head, "job_id": 3, "state": state, "failure_kind": None, **values})


@pytest.mark.parametrize(
    ("row", "endings", "state"),
    [
        (mail(), {"waiting": 2}, "ready"),
        (mail("scheduled"), {"waiting": 2}, "scheduled"),
        (mail("scheduled", tries=1), {"deferred": 2}, "retrying"),
        (mail("running"), {"waiting": 2}, "running"),
        (mail("succeeded", finished_at=NOW), {"accepted": 2}, "accepted"),
        (mail("succeeded", finished_at=NOW), {"accepted": 1, "rejected": 1}, "partly refused"),
        (mail("failed", finished_at=NOW), {"rejected": 2}, "failed"),
        (mail("failed", failure_kind="unknown"), {"unknown": 2}, "held"),
        (mail("cancelled", finished_at=NOW), {"waiting": 2}, "cancelled"),
        (mail(None, finished_at=NOW), {"accepted": 2}, "accepted"),
        (mail(None), {"waiting": 2}, "orphaned"),
    ],
)
def test_a_mail_stands_the_same_wherever_it_is_shown(row: MailRow, endings: dict[str, int], state: str) -> None:
    assert mail_view(row, endings, ()).state == state


def test_json_of_a_mail_has_its_recipients() -> None:
    found = as_json(mail_view(mail(), {"waiting": 1}, [RecipientRow("a@b", "waiting", None, None, NOW)]))
    assert (found["subject"], found["author"]) == ("Grüße", "Me <me@example.com>")
    (recipient,) = found["recipients"]
    assert recipient["next_try_at"] == datetime.fromtimestamp(NOW / 1000, UTC).isoformat(timespec="milliseconds")
