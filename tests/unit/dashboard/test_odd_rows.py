"""Rows with values that nobody but a person at a prompt has written: each is shown, and harms no other.

SQLite keeps a value of any type in any column. For each column there is a row with each odd value, and a good one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import Every, Message, current_job
from flask_taskworker.core.filters import JobFilter
from flask_taskworker.core.triggers import trigger_to_text
from flask_taskworker.dashboard.blueprint import ROUTES
from flask_taskworker.metrics import create_metrics
from flask_taskworker.ops.bulk import enqueue_bulk
from tests.support.dashboard_lab import Lab, assert_harmless
from tests.support.waiting import wait_for


@dataclass(frozen=True)
class Raw:
    """Bytes that stand in the column as text."""

    content: bytes


BLOBS = (b"\xff\x00\xfe", b"<b>", b"7")
NUMBERS: tuple[Any, ...] = (*BLOBS, "soon<b>", "", Raw(b"\x80\xff"), 1.5, -1.5, 1e300, float("inf"))
MOMENTS = (*NUMBERS, 2**63 - 1, -(2**63), 10**15)
TEXTS: tuple[Any, ...] = (*BLOBS, Raw(b"\x80\xff"), "", "<b>\x1b[31m\x07\u202e")
NO_JSON = ("{no json", "[" * 5000, "9" * 5000, "null", "5", '"x"', "[1]", "{}", "[null]", r'["\ud800"]')
INFOS = (
    '{"running": 5, "queues": 5, "exclude": 7, "concurrency": "x", "threads": [], "name": {}, "version": [1]}',
    '{"running": {"async": "x", "sync": null}, "queues": [1, null, {}], "exclude": [[]], "threads": true}',
    '{"loop_lag_ms": 1e999, "resident_mb": NaN, "hung_threads": 1e999, "threads": 1e999, "concurrency": -Infinity}',
    '{"loop_lag_ms": 1e300, "resident_mb": 1e300, "hung_threads": -5, "concurrency": 99999999999999999999999}',
    r'{"name": "\ud800", "version": "\ud800", "queues": ["\ud800"], "\ud800": "\ud800"}',
    '{"name": "<b>", "id": 5, "host": [], "deep": ' + "[" * 300 + "]" * 300 + "}",
)
TRIGGERS = (
    '{"type": "cron"}', '{"type": "every", "seconds": 1e999}', '{"type": 5}', '{"type": "at", "run_at": "then"}',
)  # fmt: skip
LAYOUTS = ('["none such"]', "[-5]", "[1e999]", "[true]", "[[]]", "[9999999999999999999999]", '{"a": 1}')
OPTIONS = ("[[], [], []]", "[5, 6]", '[["\\ud800"], []]', "[[[]], [{}]]", '{"a": 1}')

COLUMNS: dict[str, dict[str, tuple[Any, ...]]] = {
    "worker": {
        "id": tuple(value for value in TEXTS if value != ""),
        "host": TEXTS,
        "pid": (*NUMBERS, 2**63 - 1),
        "started_at": MOMENTS,
        "server_started_at": MOMENTS,
        "beat": NUMBERS,
        "beat_at": MOMENTS,
        "info": (*TEXTS, *NO_JSON, *INFOS),
    },
    "queue": {"name": TEXTS, "paused": NUMBERS, "paused_at": MOMENTS, "paused_by": TEXTS},
    "schedule": {
        "name": TEXTS,
        "task": TEXTS,
        "trigger": (*TEXTS, *NO_JSON, *TRIGGERS),
        "args": (*TEXTS, *NO_JSON),
        "next_at": MOMENTS,
        "last_at": MOMENTS,
        "paused": NUMBERS,
        "seen_at": MOMENTS,
    },
    "mail": {
        "message_id": TEXTS,
        "sender": TEXTS,
        "options": (*TEXTS, *NO_JSON, *OPTIONS),
        "once": NUMBERS,
        "phase": TEXTS,
        "tries": NUMBERS,
        "size": NUMBERS,
        "layout": (*TEXTS, *NO_JSON, *LAYOUTS),
        "created_at": MOMENTS,
        "give_up_at": MOMENTS,
        "finished_at": MOMENTS,
        "expires_at": MOMENTS,
    },
    "recipient": {"address": TEXTS, "position": NUMBERS, "code": NUMBERS, "text": TEXTS, "next_try": MOMENTS},
    "mail_body": {"body": ("", "no bytes", Raw(b"\x80\xff"), 5, 2**62, 1.5, b"", b"\xff\x00")},
}
CASES = [(table, column) for table, columns in COLUMNS.items() for column in columns]


@pytest.fixture
def lab(make_app: Callable[..., Flask]) -> Iterator[Lab]:
    lab = Lab(make_app(TASKER_DURABILITY="normal", MAIL_DEFAULT_SENDER="us@x.org", MAIL_BACKEND="memory"))
    lab.app.register_blueprint(create_metrics(lab.task_worker, access=lambda: True))
    lab.task_worker.task(name="good")(lambda: current_job.id)
    yield lab
    lab.task_worker.stop(timeout=20)
    lab.app.extensions["taskworker"].client.close()


# -- writing them ------------------------------------------------------------------------------------------------------


def write(lab: Lab, table: str, column: str) -> int:
    """A good row, and one for each odd value; how many there are."""
    values = COLUMNS[table][column]
    if table in ("mail", "recipient", "mail_body"):
        _mails(lab, table, column, values)
    else:
        for number, value in enumerate((None, *values)):
            row = _row(lab, table, f"{column}{number}" if number else f"good{column}")
            _insert(lab, table, row | ({column: value} if number else {}))
    return len(values) + 1


def _row(lab: Lab, table: str, name: str) -> dict[str, Any]:
    now = lab.store.clock()
    info = json.dumps({"queues": None, "concurrency": 10, "threads": 2, "running": {"async": 1, "sync": 0}})
    worker = {"id": name, "host": f"{name}host", "pid": 4, "started_at": now, "beat_at": now, "info": info}
    schedule = {"name": f"{name}schedule", "task": "good", "trigger": trigger_to_text(Every(hours=1))}
    rows: dict[str, dict[str, Any]] = {
        "worker": worker | {"state": "alive"},
        "queue": {"name": f"{name}queue", "paused": 1, "paused_at": now, "paused_by": "bob"},
        "schedule": schedule | {"args": "[[], {}]", "next_at": now + 60_000, "source": "runtime", "seen_at": now},
    }
    return rows[table]


def _insert(lab: Lab, table: str, row: dict[str, Any]) -> None:
    marks = ", ".join(map(_mark, row.values()))
    sql = f"INSERT INTO taskworker_{table} ({', '.join(row)}) VALUES ({marks})"
    lab.rows(sql, *map(_bound, row.values()))


def _mails(lab: Lab, table: str, column: str, values: tuple[Any, ...]) -> None:
    assert lab.mail is not None
    with lab.app.app_context():
        messages = [Message(f"Mail {i}", recipients=[f"to{i}@x.org"], body="Hi") for i in range(len(values) + 1)]
        jobs = lab.mail.send_later_many(messages)
    key = "id" if table == "mail" else "mail_id"
    for job, value in zip(jobs[1:], values, strict=True):
        sql = f"UPDATE taskworker_{table} SET {column} = {_mark(value)} WHERE {key} = ?"
        lab.rows(sql, _bound(value), job.uid)


def _mark(value: object) -> str:
    return "CAST(? AS text)" if isinstance(value, Raw) else "?"


def _bound(value: object) -> object:
    return value.content if isinstance(value, Raw) else value


# -- pages -------------------------------------------------------------------------------------------------------------


def addresses(lab: Lab) -> Iterator[tuple[str, dict[str, str]]]:
    """Every page there is, and those of all schedules and mails."""
    mails = [{"id": mail_id} for (mail_id,) in lab.rows("SELECT id FROM taskworker_mail")]
    schedules = [{"name": row.name} for row in lab.browser.schedules()]
    jobs = lab.rows("SELECT id FROM taskworker_job LIMIT 2")
    for route in ROUTES:
        if "GET" not in route.methods:
            continue
        if route.endpoint == "schedule" or route.rule.startswith("/mail/"):
            yield from ((route.rule, arguments) for arguments in (schedules if route.endpoint == "schedule" else mails))
        elif "<int:job_id>" in route.rule:
            yield from ((route.rule.replace("<int:job_id>", str(job_id)), {}) for (job_id,) in jobs)
        else:
            yield route.rule, {}


PARTS = ("/mail/html", "/mail/text", "/mail/source", "/all")
"""What is no page, and is not there of each mail and job."""


LISTS = {"worker": ("/workers", "workers"), "queue": ("/queues", "queues"), "schedule": ("/schedules", "schedules")}
MAILS = ("/mail", "mails")
NEVER_SHOWN = {"seen_at", "server_started_at", "expires_at", "position", "beat"}


@pytest.mark.slow
@pytest.mark.parametrize(("table", "column"), CASES)
def test_odd_values_take_no_page_with_them_and_hide_no_row(lab: Lab, table: str, column: str) -> None:
    number = write(lab, table, column)
    for path, arguments in addresses(lab):
        is_part = path.endswith(PARTS)
        for form in ({},) if is_part else ({}, {"format": "json"}):
            response = lab.get(path, **arguments, **form)
            assert response.status_code in ((200, 400, 404) if is_part else (200,)), (path, arguments, response.text)
            if response.is_json:
                json.loads(response.text, parse_constant=pytest.fail)
            elif response.mimetype == "text/html" and path != "/mail/html":
                assert_harmless(response.text)
    assert lab.client.get("/metrics").status_code == 200
    path, name = LISTS.get(table, MAILS)
    rows = lab.data(path)[name]
    if (table, column) != ("queue", "paused"):  # a queue is listed while it is paused, or has jobs
        # The task, and mails, have queues of their own.
        assert len(rows) == number + {"queue": 2}.get(table, 0)
    assert table not in LISTS or any("good" in row["name"] for row in rows)


@pytest.mark.parametrize(
    ("table", "column"),
    [(t, c) for t, c in CASES if COLUMNS[t][c] in (NUMBERS, MOMENTS) and c not in {*NEVER_SHOWN, "paused", "next_try"}],
)
def test_odd_number_is_shown_as_it_is(lab: Lab, table: str, column: str) -> None:
    write(lab, table, column)
    path, name = LISTS.get(table, MAILS)
    rows = lab.data(path)[name]
    if table == "recipient":
        rows = [recipient for mail in rows for recipient in mail["recipients"]]
    told = {row["odd"][column] for row in rows if row["odd"]}
    assert told == {as_told(value) for value in COLUMNS[table][column] if is_odd(value, column)}
    assert f"{column} is <bdi>soon&lt;b&gt;</bdi>, which cannot be read" in lab.page(path)


def is_odd(value: object, column: str) -> bool:
    return value != b"" and not (isinstance(value, int) and not column.endswith("_at"))


def as_told(value: object) -> str:
    content = value.content if isinstance(value, Raw) else value
    return (
        content.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
        if isinstance(content, bytes)
        else str(content)
    )


# -- acts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["name", "task", "trigger", "args", "next_at", "paused"])
def test_acts_on_odd_schedules_are_done_or_refused(lab: Lab, column: str) -> None:
    write(lab, "schedule", column)
    for schedule in lab.browser.schedules():
        for act in ("run", "skip", "pause", "resume"):
            response = lab.post(f"/schedules/{act}", name=schedule.name)
            assert response.status_code in (303, 400, 404), (schedule, act, response.text)


# -- commands ----------------------------------------------------------------------------------------------------------


COMMANDS = (
    *(("tasks", "status"), ("tasks", "doctor", "--no-smtp"), ("tasks", "schedule", "list"), ("mail", "list")),
    *(("tasks", "jobs"), ("tasks", "failures"), ("tasks", "list")),
)


def commands(lab: Lab) -> Iterator[tuple[str, ...]]:
    """Those that look at something."""
    for words in COMMANDS:
        yield words
        yield (*words, "--json")
    for (uid,) in lab.rows("SELECT id FROM taskworker_mail"):
        yield ("mail", "show", uid)
        yield ("mail", "show", uid, "--json")
        yield ("mail", "show", uid, "--eml")
    for schedule in lab.browser.schedules():
        if schedule.name:
            yield ("tasks", "schedule", "next", "--", schedule.name)


@pytest.mark.parametrize(("table", "column"), CASES)
def test_odd_values_end_no_command(lab: Lab, table: str, column: str) -> None:
    write(lab, table, column)
    runner = lab.app.test_cli_runner()
    for words in commands(lab):
        result = runner.invoke(args=list(words))
        assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
        fails = {"--eml": (0, 1), "next": (0, 1), "status": (0, 4), "doctor": (0, 4)}
        allowed = next((codes for word, codes in fails.items() if word in words), (0,))
        assert result.exit_code in allowed, (words, result.output)
        if "--json" in words:
            for line in result.stdout.splitlines():
                json.loads(line, parse_constant=pytest.fail)
        elif "--eml" not in words:
            assert "\x1b" not in result.stdout
            assert "\x07" not in result.stdout


@pytest.mark.parametrize(
    ("words", "table", "column", "told"),
    [
        (("tasks", "status"), "worker", "pid", "pid4host:?"),
        (("tasks", "schedule", "list"), "schedule", "next_at", "never  ?"),
        (
            ("tasks", "doctor", "--no-smtp"),
            "schedule",
            "next_at",
            "has values that cannot be read: next_at is 'soon<b>'.",
        ),
        (("mail", "list"), "mail", "size", "?"),
        (
            ("tasks", "status"),
            "worker",
            "beat_at",
            "beat_at4host:4 has not checked in since 'soon<b>', which is no moment",
        ),
    ],
)
def test_commands_tell_odd_values(lab: Lab, words: tuple[str, ...], table: str, column: str, told: str) -> None:
    write(lab, table, column)
    assert told in lab.app.test_cli_runner().invoke(args=list(words)).output


def test_mail_that_cannot_be_read_is_shown_with_the_reason(lab: Lab) -> None:
    write(lab, "mail", "options")
    lab.rows("UPDATE taskworker_recipient SET code = 'soon', next_try = 'then'")
    runner = lab.app.test_cli_runner()
    uids = [uid for (uid,) in lab.rows("SELECT uid FROM taskworker_job ORDER BY id")]
    assert "not sent" not in runner.invoke(args=["mail", "show", uids[0]]).output
    words = runner.invoke(args=["mail", "show", uids[1]]).output
    assert r"The mail cannot be read: its options is '\\xff\\x00\\xfe'." in words
    assert "Mail 1" in words
    assert "to1@x.org  waiting, code is soon, which cannot be read, next_try is then, which cannot be read" in words
    fields = json.loads(runner.invoke(args=["mail", "show", uids[1], "--json"]).output)
    assert fields["recipients"][0]["odd"] == {"code": "soon", "next_try": "then"}
    assert fields["header"]["Subject"] == "Mail 1"


def test_mended_mail_goes_out_when_it_is_retried(lab: Lab) -> None:
    write(lab, "mail_body", "body")
    ((job_id, uid),) = lab.rows(
        "SELECT j.id, uid FROM taskworker_job AS j JOIN taskworker_mail_body ON mail_id = uid WHERE body = 1.5"
    )
    lab.task_worker.start()
    wait_for(lambda: lab.rows("SELECT 1 FROM taskworker_job WHERE id = ? AND state = 'failed'", job_id))
    assert "the bytes are &#39;1.5&#39;" in lab.page(f"/jobs/{job_id}")
    lab.rows("UPDATE taskworker_mail_body SET body = ? WHERE mail_id = ?", b"Subject: mended\r\n\r\nHi", uid)
    assert lab.app.test_cli_runner().invoke(args=["tasks", "retry", str(job_id)]).exit_code == 0
    wait_for(lambda: lab.rows("SELECT 1 FROM taskworker_job WHERE id = ? AND state = 'succeeded'", job_id))


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", COLUMNS)
def test_workers_go_on_beside_odd_rows(
    lab: Lab, table: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They beat, look, fire the other schedules and deliver the other mails; of odd ones each ends by itself."""
    monkeypatch.setattr("flask_taskworker.worker.liveness.BEAT", 0.01)
    monkeypatch.setattr("flask_taskworker.worker.liveness.LEASE_BEATS", 3)
    for column in COLUMNS[table]:
        write(lab, table, column)
    with lab.app.app_context():
        assert lab.mail is not None
        mail = lab.mail.send_later(Message("Good", recipients=["good@x.org"], body="Hi"))
    good = _row(lab, "schedule", "due") | {"next_at": lab.store.clock() - 1_000}
    _insert(lab, "schedule", good)
    lab.task_worker.start()
    with lab.app.app_context():
        jobs = lab.task_worker.registry.find("good").enqueue_many([()] * 3)
    assert all(job.result(timeout=20) for job in jobs)
    assert mail.result(timeout=20) == {}
    wait_for(lambda: lab.rows("SELECT 1 FROM taskworker_job WHERE schedule = 'dueschedule' AND state = 'succeeded'"))
    unfinished = "state IN ('ready', 'running', 'scheduled') AND task = ? AND schedule IS NULL"
    wait_for(lambda: not lab.rows(f"SELECT 1 FROM taskworker_job WHERE {unfinished}", "flask_taskworker.mail.deliver"))
    (mine,) = [row for row in lab.store.workers() if re.fullmatch("[0-9a-f]{12}", row.id)]
    wait_for(lambda: any(row.beat > mine.beat + 6 for row in lab.store.workers() if row.id == mine.id))
    assert (
        enqueue_bulk(
            lab.task_worker.registry,
            lab.app.extensions["taskworker"].client,
            "cancel",
            JobFilter(task="none"),
            "ana",
            1,
        ).result(timeout=20)
        == 0
    )
    errors = lab.rows("SELECT error FROM taskworker_job WHERE state = 'failed'")
    assert all("errors.NotDecodable" in error or "RecipientsRefused" in error for (error,) in errors)
    assert "should not happen" not in caplog.text
    assert "could not go on" not in caplog.text


@pytest.mark.parametrize("value", ["soon", b"\xff", float("inf")], ids=repr)
def test_worker_goes_on_where_the_only_schedule_has_no_readable_time(lab: Lab, value: object) -> None:
    _insert(lab, "schedule", _row(lab, "schedule", "only") | {"next_at": value})
    lab.task_worker.start()
    with lab.app.app_context():
        assert lab.task_worker.registry.find("good").enqueue().result(timeout=20)


def test_mails_whose_layout_cannot_be_read_are_deleted_in_time(lab: Lab) -> None:
    write(lab, "mail", "layout")
    lab.rows("UPDATE taskworker_job SET state = 'cancelled', finished_at = 1, expires_at = 1")
    lab.rows("UPDATE taskworker_mail SET expires_at = 1")
    lab.task_worker.start()
    wait_for(lambda: not lab.rows("SELECT 1 FROM taskworker_mail"))
