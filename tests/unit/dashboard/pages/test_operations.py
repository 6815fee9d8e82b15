"""The pages Failures, Queues, Schedules, Workers and System: what they show, and what their buttons do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import Cron, Every
from flask_taskworker.core.filters import JobFilter
from flask_taskworker.core.triggers import trigger_to_text
from flask_taskworker.ops.access import PERMISSIONS
from flask_taskworker.ops.views import iso
from tests.support.dashboard_lab import XSS, Lab, assert_harmless, tags

PAGES = ("/failures", "/queues", "/schedules", "/workers", "/mail", "/system")
HOUR = 3_600_000

MakeLab = Callable[..., Lab]


@pytest.fixture
def make_lab(make_app: Callable[..., Flask]) -> MakeLab:
    def make(*permissions: str, **config: Any) -> Lab:
        app = make_app(**{"TASKER_DURABILITY": "normal", "MAIL_DEFAULT_SENDER": "us@x.org"} | config)
        return Lab(app, permissions) if permissions else Lab(app)

    return make


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab()


def add_job(lab: Lab, **values: Any) -> int:
    """A row as it lies in the table."""
    now = lab.store.clock()
    row = {"task": "t", "queue": "default", "kind": "sync", "state": "ready", "args": "[[],{}]", "created_at": now}
    row |= values
    number = lab.rows("SELECT count(*) FROM taskworker_job")[0][0]
    row.setdefault("uid", f"u{number}")
    columns = ", ".join(row)
    marks = ", ".join("?" * len(row))
    return int(lab.rows(f"INSERT INTO taskworker_job ({columns}) VALUES ({marks}) RETURNING id", *row.values())[0][0])


def add_failed(lab: Lab, *, group: str = "g1", age: int = 0, message: str = "no total", **values: Any) -> int:
    ended = lab.store.clock() - age
    error = {"type": "KeyError", "message": message, "traceback": _TRACEBACK}
    times = {"created_at": ended - 1, "started_at": ended - 1, "finished_at": ended, "expires_at": ended + 99 * HOUR}
    values = {"failure_group": group, "error": json.dumps(error), "failure_kind": "exception", **times, **values}
    return add_job(lab, state="failed", **values)


_TRACEBACK = (
    'Traceback (most recent call last):\n  File "/srv/app/reports.py", line 88, in build\n    total = rows["total"]\n'
    '  File "/srv/lib/python3.11/json/decoder.py", line 3, in decode\n    raise\nKeyError: no total\n'
)


def add_worker(lab: Lab, worker_id: str = "w1", *, beat_age: int = 0, state: str = "alive", **info: Any) -> None:
    now = lab.store.clock()
    lab.rows(
        "INSERT INTO taskworker_worker (id, host, pid, started_at, beat, beat_at, state, info) "
        "VALUES (?, 'web1', 4312, ?, 1, ?, ?, ?)",
        *(worker_id, now - HOUR, now - beat_age, state, json.dumps(info)),
    )


INFO = {
    "queues": None,
    "concurrency": 10,
    "threads": 4,
    "running": {"async": 3, "sync": 1},
    "resident_mb": 141.2,
    "loop_lag_ms": 2,
}


# -- all pages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_empty_page_says_what_to_do(lab: Lab, path: str) -> None:
    words = {
        "/failures": "No job has failed in the last 24h",
        "/workers": "No worker has ever checked in. Start one: <code>flask tasks run</code>",
        "/schedules": "@task_worker.task(schedule=Cron(",
        "/mail": "<code>mail.send_later(message)</code>",
        "/system": "No action yet.",
        "/queues": "mail",
    }
    assert words[path] in lab.page(path)
    assert isinstance(lab.data(path), dict)


@pytest.mark.parametrize("path", PAGES)
def test_page_needs_at_most_four_statements(lab: Lab, path: str) -> None:
    fill(lab)
    lab.page(path)
    with lab.statements() as seen:
        html = lab.page(path)
    assert len(seen) <= 4, seen
    assert "Unhandled" not in html


def fill(lab: Lab, name: str = "name", worker: str = "w") -> None:
    """Something for each page, with *name* in all places where a foreign text may stand."""
    now = lab.store.clock()
    add_failed(lab, task=name, queue=name, message=name, group=name, started_at=now)
    add_job(lab, state="running", worker_id=worker, task=name, queue=name, started_at=now, claim=1)
    add_job(lab, task=name, queue=name)
    add_worker(lab, worker, **{**INFO, "queues": [name], "version": name})
    add_worker(lab, name, state="dead")
    lab.rows("UPDATE taskworker_worker SET host = ? WHERE id = ?", name, worker)
    lab.rows("INSERT INTO taskworker_queue VALUES (?, 1, ?, ?, NULL)", name, now, name)
    lab.rows(
        "INSERT INTO taskworker_schedule VALUES (?, ?, ?, '[[],{}]', ?, ?, 0, 'runtime', ?)",
        *(name, name, trigger_to_text(Every(hours=1)), now + HOUR, now - 5, now),
    )
    run = {"schedule": name, "fire_at": now - 5, "started_at": now, "finished_at": now + 1, "expires_at": now + HOUR}
    add_job(lab, state="succeeded", task=name, **run)
    lab.rows(
        "INSERT INTO taskworker_audit (at, who, action, target, number) VALUES (?, ?, 'retry', ?, 3)", now, name, name
    )


def test_foreign_text_is_never_markup(lab: Lab) -> None:
    for number, text in enumerate(XSS):
        fill(lab, text, str(number))
    pages = [lab.page(path) for path in PAGES] + [lab.page("/schedule", name=text) for text in XSS[:4]]
    for html in pages:
        assert_harmless(html)
        assert "49" not in re.findall(r"<bdi>(.*?)</bdi>", html)
    assert {queue["name"] for queue in lab.data("/queues")["queues"]} >= set(XSS)
    assert {schedule["name"] for schedule in lab.data("/schedules")["schedules"]} >= set(XSS)


WRONG = (
    ("/failures", {"window": "1y"}, 400),
    ("/failures", {"sort": "__class__"}, 400),
    ("/system", {"before": "-1"}, 400),
    ("/system", {"before": "1e9"}, 400),
    ("/schedule", {"name": "gone"}, 404),
    ("/schedule", {}, 404),
    ("/workers", {"page": "-1"}, 400),
    ("/queues", {"x": "a\0b"}, 400),
    ("/mail", {"before": "\0"}, 400),
)


def test_wrong_argument_is_refused_in_words(lab: Lab) -> None:
    for path, arguments, status in WRONG:
        response = lab.get(path, **arguments)
        assert (path, arguments, response.status_code) == (path, arguments, status)
        assert "<p" in response.text


ACTS = (
    ("/queues/pause", "mail", "pause"),
    ("/queues/resume", "mail", "pause"),
    ("/schedules/run", "hourly", "run"),
    ("/schedules/pause", "hourly", "pause"),
    ("/schedules/resume", "hourly", "pause"),
    ("/schedules/skip", "hourly", "pause"),
    ("/workers/quiet", "web1:4312", "workers"),
    ("/workers/stop", "web1:4312", "workers"),
)


def test_act_needs_its_permission(lab: Lab) -> None:
    with_schedule(lab)
    for path, name, permission in ACTS:
        lab.permissions = set(PERMISSIONS) - {permission}
        assert lab.post(path, name=name).status_code == 403, path
    assert lab.audit() == []


def test_act_from_another_site_is_refused(lab: Lab) -> None:
    with_schedule(lab)
    for path, name, _ in ACTS:
        for headers in ({}, {"Origin": "https://evil.org"}, {"Sec-Fetch-Site": "cross-site"}):
            assert lab.client.post(f"/tasks{path}", data={"name": name}, headers=headers).status_code == 403
        assert lab.get(path).status_code == 404
    assert lab.audit() == []


def test_act_on_what_is_not_there_is_404(lab: Lab) -> None:
    for path, _, _ in ACTS:
        assert lab.post(path, name="gone").status_code == 404
        assert lab.post(path).status_code == 404
    assert lab.audit() == []


def test_one_worker_is_asked_to_be_quiet_and_to_stop(lab: Lab) -> None:
    lab.store.driver.prepare()
    lab.rows(
        "INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) "
        "VALUES ('w1', 'web1', 4312, 1, ?, 'alive', '{}'), ('w2', 'web1', 4313, 1, ?, 'alive', '{}')",
        *[lab.store.clock()] * 2,
    )
    assert "Have the worker web1:4312 take no more jobs" in lab.page("/workers")
    for wish, words in (
        ("quiet", "takes no more jobs"),
        ("stop", "is asked to stop"),
        ("stop", "asked for that before"),
    ):
        response = lab.post(f"/workers/{wish}", name="web1:4312")
        assert response.status_code == 303
        assert words in lab.client.get(response.location).text
    assert lab.rows("SELECT id, state, wish FROM taskworker_worker ORDER BY id") == [
        ("w1", "draining", "stop"),
        ("w2", "alive", None),
    ]
    assert [note.action for note in lab.audit()] == ["stop", "quiet"]


# -- failures ----------------------------------------------------------------------------------------------------------


def test_failures_of_one_cause_are_one_line(lab: Lab) -> None:
    for number in range(3):
        last = add_failed(lab, task="report.build", message=f"no row {number}")
    add_failed(lab, group="g2", age=2 * HOUR, task="mail.send")
    data = lab.data("/failures")
    groups = [(g["group"], g["count"], g["task"], g["error"]["type"], g["newest"]) for g in data["groups"]]
    assert groups == [("g1", 3, "report.build", "KeyError", last), ("g2", 1, "mail.send", "KeyError", last + 1)]
    assert data["groups"][0]["place"] == "/srv/app/reports.py:88 build"
    assert sum(data["groups"][0]["by_slice"]) == 3
    html = lab.page("/failures")
    assert "no row 2" in html
    assert "/srv/app/reports.py:88 build" in html
    assert html.count('class="spark"') == 2


def test_window_says_which_failures_count(lab: Lab) -> None:
    add_failed(lab)
    add_failed(lab, age=5 * HOUR)
    add_failed(lab, group="old", age=3 * 24 * HOUR)
    seen = {
        window: [(g["group"], g["count"], g["older"]) for g in lab.data("/failures", window=window)["groups"]]
        for window in ("1h", "24h", "7d")
    }
    assert seen == {
        "1h": [("g1", 1, 1)],
        "24h": [("g1", 2, 0)],
        "7d": [("g1", 2, 0), ("old", 1, 0)],
    }


def test_group_is_new_while_its_first_failure_is(lab: Lab) -> None:
    add_failed(lab, group="new")
    add_failed(lab, group="known")
    add_failed(lab, group="known", age=2 * HOUR)
    assert {g["group"]: g["is_new"] for g in lab.data("/failures")["groups"]} == {"new": True, "known": False}


def test_failure_with_a_long_error_is_read_from_its_ends(lab: Lab) -> None:
    add_failed(lab, message="x" * 50_000)
    (group,) = lab.data("/failures")["groups"]
    assert group["error"]["message"] == "x" * 300 + "…"
    assert group["place"] == "/srv/app/reports.py:88 build"


def test_all_jobs_of_one_cause_are_retried(lab: Lab) -> None:
    for _ in range(3):
        add_failed(lab)
    add_failed(lab, age=48 * HOUR)
    add_failed(lab, group="other")
    assert "Retry 4</button>" in lab.page("/failures")
    asked = lab.post("/jobs/confirm", **button(lab.page("/failures"), "Retry 4"))
    assert asked.status_code == 200
    assert count(lab, "state:failed") == 5
    assert lab.post("/jobs/bulk", **button(asked.text, "Retry")).status_code == 303
    assert (count(lab, "state:ready"), count(lab, "state:failed group:other")) == (4, 1)
    assert [(a.who, a.action, a.target, a.number) for a in lab.audit()] == [("ana", "retry", "group:g1", 4)]


def test_all_jobs_of_one_cause_are_discarded(lab: Lab) -> None:
    add_failed(lab, group="other", age=1000)
    add_failed(lab)
    asked = lab.post("/jobs/confirm", **button(lab.page("/failures"), "Discard 1"))
    lab.post("/jobs/bulk", **button(asked.text, "Discard"))
    assert (count(lab, "discarded:yes"), count(lab, "state:failed")) == (1, 1)
    assert [group["group"] for group in lab.data("/failures")["groups"]] == ["other"]


def count(lab: Lab, text: str) -> int:
    return lab.browser.count_all(JobFilter.parse(text, lab.store.clock()))


def button(html: str, word: str) -> dict[str, str]:
    """The fields of the first form whose button begins with *word*."""
    for form in html.split("<form ")[1:]:
        inside = form.partition("</form>")[0]
        if re.search(rf"<button[^>]*>{word}", inside):
            fields = [attributes for tag, attributes in tags("<form " + inside) if tag == "input"]
            return {str(field["name"]): str(field["value"]) for field in fields}
    raise AssertionError(f"no button {word!r}")


# -- queues ------------------------------------------------------------------------------------------------------------


def test_queue_shows_what_waits_and_runs(lab: Lab) -> None:
    now = lab.store.clock()
    add_worker(lab, **INFO)
    add_worker(lab, "w2", **{**INFO, "queues": ["slow"]})
    add_worker(lab, "w3", beat_age=60_000, **INFO)
    for _ in range(3):
        add_job(lab, queue="slow", created_at=now - 2000)
    add_job(lab, queue="slow", state="running", worker_id="w2", started_at=now, claim=1)
    queues = {queue["name"]: queue for queue in lab.data("/queues")["queues"]}
    slow = queues["slow"]
    assert (slow["ready"], slow["running"], slow["slots"], slow["state"]) == (3, 1, 28, "ok")
    assert slow["oldest_at"] == iso(now - 2000)
    assert queues["mail"]["slots"] == 14  # w2 does not work on it, and w3 is silent


def test_queue_that_a_worker_leaves_out_is_not_served_by_it(lab: Lab) -> None:
    add_worker(lab, **{**INFO, "exclude": ["q"]})
    add_job(lab, queue="q")
    (queue,) = (q for q in lab.data("/queues")["queues"] if q["name"] == "q")
    assert (queue["state"], queue["slots"]) == ("no worker", 0)


@pytest.mark.parametrize(
    ("queues", "age", "state"), [(["other"], 0, "no worker"), (None, 0, "ok"), (None, 400_000, "slow")]
)
def test_queue_whose_jobs_are_stuck_says_so(lab: Lab, queues: list[str] | None, age: int, state: str) -> None:
    add_worker(lab, **{**INFO, "queues": queues})
    add_job(lab, queue="q", created_at=lab.store.clock() - age)
    assert next(q["state"] for q in lab.data("/queues")["queues"] if q["name"] == "q") == state


def test_figures_of_the_last_hour_come_from_what_has_run(lab: Lab) -> None:
    @lab.task_worker.task(queue="figures")
    def fail_sometimes(n: int) -> None:
        if n % 2:
            raise ValueError(n)

    fail_sometimes.enqueue_many([(n,) for n in range(4)])
    lab.drain()
    (queue,) = (q for q in lab.data("/queues")["queues"] if q["name"] == "figures")
    assert (queue["done_last_hour"], queue["failed_last_hour"]) == (4, 2)
    assert queue["p95_wait"]["ms"] > 0


def test_queue_is_paused_and_resumed(lab: Lab) -> None:
    html = lab.act("/queues/pause", name="mail")
    assert "Queue mail is paused" in html
    assert "by <bdi>ana</bdi>" in html
    assert next(q for q in lab.browser.queues() if q.name == "mail").paused
    assert "Queue mail goes on." in lab.act("/queues/resume", name="mail")
    assert [(a.who, a.action, a.target) for a in lab.audit()] == [
        ("ana", "resume", "queue mail"),
        ("ana", "pause", "queue mail"),
    ]
    assert "Queue mail was not paused." in lab.act("/queues/resume", name="mail")


def test_buttons_are_only_for_those_who_may(make_lab: MakeLab) -> None:
    lab = make_lab("view")
    with_schedule(lab)
    for path in PAGES:
        assert '<form class="act"' not in lab.page(path), path


# -- schedules ---------------------------------------------------------------------------------------------------------


def with_schedule(lab: Lab, name: str = "hourly", trigger: Any = None) -> None:
    @lab.task_worker.task(name=f"task.of.{name}")
    def tick() -> int:
        return 1

    with lab.app.app_context():
        tick.schedule(trigger or Every(hours=1), name=name)


def state_of(lab: Lab, name: str = "hourly") -> str:
    states = {schedule["name"]: schedule["state"] for schedule in lab.data("/schedules")["schedules"]}
    return str(states[name])


def add_run(lab: Lab, ago: int, state: str, took: int = 100) -> None:
    now = lab.store.clock()
    times: dict[str, Any] = {"started_at": now - ago}
    if state in ("succeeded", "failed"):
        times |= {"finished_at": now - ago + took, "expires_at": now + HOUR}
    if state == "running":
        times["worker_id"] = "w"
    add_job(lab, schedule="hourly", fire_at=now - ago, state=state, **times)


def test_schedule_says_how_it_goes(lab: Lab) -> None:
    with_schedule(lab)
    seen = [state_of(lab)]
    add_run(lab, 9000, "succeeded")
    seen.append(state_of(lab))
    add_run(lab, 8000, "failed")
    seen.append(state_of(lab))
    add_run(lab, 7000, "running")
    seen.append(state_of(lab))
    lab.rows("UPDATE taskworker_schedule SET next_at = ?", lab.store.clock() - 120_000)
    seen.append(state_of(lab))
    lab.rows("UPDATE taskworker_schedule SET paused = 1")
    seen.append(state_of(lab))
    assert seen == ["new", "up", "failing", "running", "late", "paused"]


def test_last_runs_are_bars_and_a_table(lab: Lab) -> None:
    with_schedule(lab)
    for n in range(35):
        add_run(lab, 1000 * (n + 1), "failed" if n == 3 else "succeeded", took=n * 10)
    html = lab.page("/schedules")
    (bars,) = re.findall(r'<path class="ok" d="([^"]+)"/><path class="failed" d="([^"]+)"/>', html)
    assert [path.count("M") for path in bars] == [29, 1]
    assert len(lab.data("/schedules")["schedules"][0]["runs"]) == 30
    assert lab.page("/schedule", name="hourly").count("<tr><td><time") >= 30


def test_schedule_of_the_code_is_shown_before_a_worker_has_stored_it(lab: Lab) -> None:
    @lab.task_worker.task(name="nightly", schedule=Cron("0 3 * * *"))
    def nightly() -> None: ...

    assert "once a worker has started" in lab.page("/schedules")
    assert state_of(lab, "nightly") == "new"


def test_cron_is_explained_and_its_next_times_are_reported_with_the_changes_of_the_clock(lab: Lab) -> None:
    with_schedule(lab, "night", Cron("30 2 * * *", timezone="Europe/Berlin"))
    lab.rows(
        "UPDATE taskworker_schedule SET next_at = ?", int(datetime(2026, 3, 28, 1, 30, tzinfo=UTC).timestamp() * 1000)
    )
    data = lab.data("/schedule", name="night")
    assert data["explained"] == "At 02:30 every day"
    assert [fire["local"] for fire in data["fires"]][:2] == [
        "Sat 2026-03-28 02:30:00 +0100",
        "Sun 2026-03-29 03:00:00 +0200",
    ]
    assert len(data["fires"]) == 10
    html = lab.page("/schedule", name="night")
    assert "UTC+01:00 becomes UTC+02:00" in html
    assert "02:30 is left out by the clock on that day" in html


def test_schedule_is_run_now(lab: Lab) -> None:
    with_schedule(lab)
    assert "Schedule hourly runs now, as job 1." in lab.act("/schedules/run", name="hourly")
    assert lab.browser.jobs().rows[0].record.task == "task.of.hourly"
    assert [(a.action, a.target) for a in lab.audit()] == [("run", "schedule hourly")]


def test_schedule_is_paused_and_resumed(lab: Lab) -> None:
    with_schedule(lab)
    assert "Schedule hourly is paused." in lab.act("/schedules/pause", name="hourly")
    assert state_of(lab) == "paused"
    assert "None of them fires until" in lab.page("/schedule", name="hourly")
    assert "goes on with its next time" in lab.act("/schedules/resume", name="hourly")
    assert state_of(lab) == "new"
    assert [a.action for a in lab.audit()] == ["resume", "pause"]


def test_next_time_of_a_schedule_is_skipped(lab: Lab) -> None:
    with_schedule(lab)
    (before,) = lab.store.schedules()
    assert "leaves its next time out; then it fires at" in lab.act("/schedules/skip", name="hourly")
    (after,) = lab.store.schedules()
    assert (after.next_at or 0) - (before.next_at or 0) == HOUR
    assert [a.action for a in lab.audit()] == ["skip"]


def test_schedule_that_cannot_be_read_is_shown_and_refused(lab: Lab) -> None:
    with_schedule(lab)
    lab.rows("UPDATE taskworker_schedule SET trigger = '{}'")
    assert "cannot be read by this version" in lab.page("/schedules")
    assert "There is none left." in lab.page("/schedule", name="hourly")
    assert lab.post("/schedules/skip", name="hourly").status_code == 400


def test_schedule_of_a_task_that_is_gone_cannot_be_run(lab: Lab) -> None:
    with_schedule(lab)
    lab.rows("UPDATE taskworker_schedule SET task = 'gone'")
    assert "this code does not declare the task" in lab.page("/schedules")
    assert lab.post("/schedules/run", name="hourly").status_code == 404


# -- workers -----------------------------------------------------------------------------------------------------------


def test_worker_is_shown_with_what_it_runs(lab: Lab) -> None:
    add_worker(lab, **INFO, version="5f2c")
    ids = [add_job(lab, state="running", worker_id="w1", started_at=1, claim=1, task=f"t{n}") for n in range(12)]
    (worker,) = lab.data("/workers")["workers"]
    assert (worker["name"], worker["version"], worker["state"], worker["running"]) == ("web1:4312", "5f2c", "up", 12)
    assert (worker["async_busy"], worker["async_slots"]) == (3, 10)
    assert [job["id"] for job in worker["jobs"]] == ids[:10]
    html = lab.page("/workers")
    assert "141 MB" in html
    assert "all 12</a>" in html


@pytest.mark.parametrize(
    ("state", "age", "word"),
    [
        ("alive", 0, "up"),
        ("alive", 60_000, "silent"),
        ("draining", 0, "draining"),
        ("dead", 0, "LOST"),
        ("left", 0, "left"),
    ],
)
def test_worker_that_is_gone_is_marked(lab: Lab, state: str, age: int, word: str) -> None:
    add_worker(lab, state=state, beat_age=age, **INFO)
    assert f"</span> {word}</span>" in lab.page("/workers")


# -- system ------------------------------------------------------------------------------------------------------------


def test_settings_are_shown_without_secrets(make_lab: MakeLab) -> None:
    lab = make_lab(MAIL_PASSWORD="hunter2", MAIL_USERNAME="ana", MAIL_SERVER="relay.example")
    html = lab.page("/system")
    assert "relay.example" in html
    assert "•••" in html
    assert "hunter2" not in html
    assert "hunter2" not in lab.get("/system", format="json").text
    assert lab.data("/system")["settings"]["TASKER_LOOP_INTERVAL"] == "5.0"


def test_checks_say_what_is_wrong_and_what_to_do(make_lab: MakeLab) -> None:
    # Nothing listens there: asking the mail server shows that.
    lab = make_lab(MAIL_PORT=1, MAIL_TIMEOUT=1)
    add_job(lab, task="old.<b>cleanup")
    found = lab.data("/system/checks")
    assert not found["asked_mail_server"]
    texts = {finding["text"]: finding for finding in found["findings"]}
    unknown = next(finding for text, finding in texts.items() if "old.<b>cleanup" in text)
    assert (unknown["level"], "discard" in unknown["fix"]) == ("warning", True)
    html = lab.page("/system/checks")
    assert_harmless(html)
    assert "Ask it, too" in html
    assert "mail server 127.0.0.1" not in html
    asked = lab.post("/system/checks").text
    assert "cannot be used" in asked
    assert lab.client.post("/tasks/system/checks").status_code == 403
    lab.permissions = {"view", "payload", "retry", "pause"}
    assert "Ask it, too" not in lab.page("/system/checks")
    refused = lab.post("/system/checks")
    assert refused.status_code == 403
    assert "it needs the permission &#39;run&#39;" in refused.text


def test_audit_log_is_paged(lab: Lab) -> None:
    for n in range(60):
        lab.rows(
            "INSERT INTO taskworker_audit (at, who, action, target, number) VALUES (1, 'ana', 'retry', ?, 1)",
            f"job {n}",
        )
    first = lab.data("/system")
    assert [entry["target"] for entry in first["audit"]] == [f"job {n}" for n in range(59, 9, -1)]
    second = lab.data("/system", before=str(first["older"]))
    assert [entry["target"] for entry in second["audit"]] == [f"job {n}" for n in range(9, -1, -1)]
    assert second["older"] is None


def test_tasks_that_no_code_declares_are_reported(lab: Lab) -> None:
    for task in ("old.cleanup", "old.cleanup", "odd*name", 'odd"name'):
        add_job(lab, task=task)
    assert lab.data("/system")["unknown_tasks"] == {"old.cleanup": 2, "odd*name": 1, 'odd"name': 1}
    # A filter would mean other tasks, too, or ends at the quotation mark.
    assert lab.page("/system").count("a filter cannot name it") == 2
    asked = lab.post("/jobs/confirm", **button(lab.page("/system"), "Discard 2"))
    lab.post("/jobs/bulk", **button(asked.text, "Discard"))
    assert count(lab, "discarded:yes task:old.cleanup") == 2
