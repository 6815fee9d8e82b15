"""Lists, groups and figures for pages and commands: right, whatever the filter, and no further than the window."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Every, Mail, Message
from flask_taskworker.core.filters import JobFilter
from flask_taskworker.errors import JobNotFound
from flask_taskworker.ops import browse, rows
from flask_taskworker.ops.browse import WINDOW, Browser
from flask_taskworker.ops.operations import Operations
from flask_taskworker.ops.rows import LogLine
from flask_taskworker.store.rollups import Percentile
from flask_taskworker.store.sql import MAX_ID, Store
from tests.support.stored import Rows, store_jobs, store_many
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.both_databases, pytest.mark.usefixtures("idle_worker")]

NOW = 10_000_000


@pytest.fixture
def browser(store: Store) -> Browser:
    store.driver.prepare()
    return Browser(store)


def chosen(text: str) -> JobFilter:
    return JobFilter.parse(text, NOW)


def found(browser: Browser, text: str = "", **options: Any) -> list[int]:
    return [row.record.id for row in browser.jobs(chosen(text), **options).rows]


def all_ids(browser: Browser, text: str, **options: Any) -> list[int]:
    return list(chain.from_iterable(browser.ids(chosen(text), **options)))


def test_task_pattern_means_the_same_on_every_database(browser: Browser, rows: Rows) -> None:
    names = ("mail.send", "Mail.send", "mail_send", "m?[a]%_\\x", "m1a")
    ids = dict(zip(names, store_jobs(rows, *({"task": name} for name in names)), strict=True))
    patterns = {"mail.*": {"mail.send"}, "*.send": {"mail.send", "Mail.send"}, "*[a]%_\\*": {"m?[a]%_\\x"}}
    patterns["m?*"] = {"m?[a]%_\\x"}
    for pattern, fitting in patterns.items():
        assert set(found(browser, f"task:{pattern}")) == {ids[name] for name in fitting}, pattern


def test_jobs_that_are_pruned_meanwhile_hide_none_from_acts(
    browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "WINDOW", 5)
    ids = store_jobs(rows, *[{"task": "old"}] * 5, *[{}] * 10)
    read = browser._store.driver.read

    def prune(sql: str, parameters: dict[str, Any]) -> list[Any]:
        found = read(sql, parameters)
        if "args" in sql:
            # After the first window was looked at, and before its end is asked for.
            rows("DELETE FROM taskworker_job WHERE id BETWEEN ? AND ?", ids[7], ids[12])
        return found

    monkeypatch.setattr(browser._store.driver, "read", prune)
    assert all_ids(browser, "task:old") == ids[4::-1]


# -- pages -------------------------------------------------------------------------------------------------------------


def test_pages_follow_each_other_without_gap_or_overlap(browser: Browser, rows: Rows) -> None:
    ids = store_jobs(rows, *[{}] * 7)
    seen: list[list[int]] = []
    before = None
    while True:
        page = browser.jobs(limit=3, before=before)
        seen.append([row.record.id for row in page.rows])
        assert not page.searched_out
        store_jobs(rows, {})  # what is new comes before the first page, and disturbs none
        if page.older is None:
            break
        before = page.older
    assert seen == [[*ids[6:3:-1]], [*ids[3:0:-1]], [ids[0]]]


def test_jobs_that_are_pruned_while_a_page_is_made_hide_none_and_double_none(
    browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "WINDOW", 5)
    ids = store_jobs(rows, *[{"task": "old", "args": '[[1], {"x": 1}]'}] * 5, *[{}] * 10)
    read = browser._store.driver.read

    def prune(sql: str, parameters: dict[str, Any]) -> list[Any]:
        found = read(sql, parameters)
        rows("DELETE FROM taskworker_job WHERE id BETWEEN ? AND ?", ids[7], ids[12])
        return found

    monkeypatch.setattr(browser._store.driver, "read", prune)
    for text in ("task:old", "task:old args.x:1"):
        seen: list[int] = []
        page = browser.jobs(chosen(text), limit=2)
        seen += [row.record.id for row in page.rows]
        while page.older is not None:
            page = browser.jobs(chosen(text), limit=2, before=page.older)
            seen += [row.record.id for row in page.rows]
        assert seen == ids[4::-1], text
        store_jobs(rows, *({"id": job_id} for job_id in ids[7:13]))


def test_jobs_that_move_between_two_pages_come_at_most_once(browser: Browser, rows: Rows) -> None:
    ids = store_jobs(rows, *[{"state": "failed"}] * 6)
    first = browser.jobs(chosen("state:failed"), limit=2)
    # One that was on it begins again; one that is still to come ends otherwise; new ones are above all pages.
    rows("UPDATE taskworker_job SET state = 'ready', finished_at = NULL WHERE id = ?", ids[5])
    rows("UPDATE taskworker_job SET state = 'cancelled' WHERE id = ?", ids[2])
    rows("DELETE FROM taskworker_job WHERE id = ?", ids[4])
    store_jobs(rows, {"state": "failed"})
    second = browser.jobs(chosen("state:failed"), limit=2, before=first.older)
    third = browser.jobs(chosen("state:failed"), limit=2, before=second.older)
    pages = [[row.record.id for row in page.rows] for page in (first, second, third)]
    assert pages == [[ids[5], ids[4]], [ids[3], ids[1]], [ids[0]]]


def test_a_full_last_page_has_none_after_it(browser: Browser, rows: Rows) -> None:
    store_jobs(rows, *[{}] * 3)
    assert browser.jobs(limit=3).older is None
    assert browser.jobs(limit=2).older is not None


def test_a_row_tells_what_a_list_needs_and_no_more(browser: Browser, rows: Rows) -> None:
    (job_id,) = store_jobs(rows, {"state": "failed", "args": "[" * 5000, "error": "x" * 5000, "failure_group": "g"})
    (row,) = browser.jobs().rows
    assert (row.record.id, row.record.task, row.discarded, row.failure_group) == (job_id, "app.add", 0, "g")
    assert len(row.args) == len(row.error or "") == 2000


def test_a_page_looks_at_no_more_than_the_window(browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "WINDOW", 5)
    rare = store_jobs(rows, {"task": "rare"}, *[{}] * 13)[0]
    page = browser.jobs(chosen("rare"))
    assert (page.rows, page.searched_out) == ([], True)
    page = browser.jobs(chosen("rare"), before=page.older)
    assert (page.rows, page.searched_out) == ([], True)
    page = browser.jobs(chosen("rare"), before=page.older)
    assert [row.record.id for row in page.rows] == [rare]
    assert (page.older, page.searched_out) == (None, False)
    assert list(browser.ids(chosen("rare"))) == [[rare]]


# -- filters -----------------------------------------------------------------------------------------------------------

JOBS = {
    "plain": {},
    "mail": {"task": "mail.send", "queue": "mail"},
    "mails": {"task": "mail_send", "queue": "mail", "state": "succeeded"},
    "scheduled": {"state": "scheduled", "run_at": 5},
    "retrying": {"state": "scheduled", "run_at": 6, "failures": 2},
    "suspect": {"solo": 1},
    "running": {"state": "running", "worker_id": "w1"},
    "elsewhere": {"state": "running", "worker_id": "w2", "queue": "slow"},
    "failed": {"state": "failed", "failure_group": "g1", "failures": 3},
    "broken": {"state": "failed", "failure_group": "crashed:app.add"},
    "cancelled": {"state": "cancelled"},
    "nightly": {"schedule": "nightly", "fire_at": 60, "state": "succeeded"},
    "nightly2": {"schedule": "nightly", "fire_at": 120, "created_at": NOW - 3_600_000},
    "unique": {"unique_key": "app.add:user-7", "created_at": NOW},
    "named": {"uid": "by me"},
    "discarded": {"state": "succeeded", "discarded": 1},
    "discarded waiting": {"state": "cancelled", "discarded": 2},
    "discarded failed": {"state": "failed", "discarded": 1, "failure_group": "g1"},
}
HIDDEN = {"discarded", "discarded waiting", "discarded failed"}

FITTING = {
    "": set(JOBS) - HIDDEN,
    "state:ready": {"plain", "mail", "suspect", "nightly2", "unique", "named"},
    "state:scheduled": {"scheduled", "retrying"},
    "state:retrying": {"retrying"},
    "state:running": {"running", "elsewhere"},
    "state:succeeded": {"mails", "nightly"},
    "state:failed": {"failed", "broken"},
    "state:cancelled": {"cancelled"},
    "state:failed,cancelled": {"failed", "broken", "cancelled"},
    "state:retrying,running": {"retrying", "running", "elsewhere"},
    "mail.send": {"mail"},
    "mail.*": {"mail"},
    "mail_*": {"mails"},
    "*send": {"mail", "mails"},
    "queue:mail": {"mail", "mails"},
    "queue:mail state:ready": {"mail"},
    "worker:w1": {"running"},
    "worker:w1 state:ready": set(),
    "group:g1": {"failed"},
    "group:crashed:app.add": {"broken"},
    "group:g1 state:cancelled": set(),
    "attempts:2": {"retrying", "failed"},
    "schedule:nightly": {"nightly", "nightly2"},
    "schedule:nightly state:succeeded": {"nightly"},
    "schedule:nightly state:ready": {"nightly2"},
    "unique:user-7": {"unique"},
    'uid:"by me"': {"named"},
    'uid:"by me" state:failed': set(),
    "after:-1h": {"nightly2", "unique"},
    "after:-1h before:-1m": {"nightly2"},
    "before:-1h state:failed": {"failed", "broken"},
    "discarded:yes": HIDDEN,
    "discarded:yes state:failed": {"discarded failed"},
    "discarded:yes group:g1": {"discarded failed"},
}


@pytest.mark.parametrize("everywhere", [False, True], ids=["page", "ids"])
def test_each_filter_finds_what_fits_and_nothing_else(browser: Browser, rows: Rows, everywhere: bool) -> None:
    names = dict(zip(store_jobs(rows, *JOBS.values()), JOBS, strict=True))
    for text, fitting in FITTING.items():
        ids = all_ids(browser, text) if everywhere else found(browser, text)
        assert {names[job_id] for job_id in ids} == fitting, text
        assert ids == sorted(ids, reverse=True), text
        assert browser.count_all(chosen(text)) == len(fitting), text


def test_a_job_is_found_by_its_names_however_old_it_is(
    browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "WINDOW", 2)
    old = store_jobs(rows, {"uid": "old one"}, *[{}] * 9)[0]
    assert found(browser, f"{old}") == found(browser, 'uid:"old one"') == [old]


SPITEFUL = ["x' OR '1'='1", "'; DROP TABLE taskworker_job; --", '1" OR 1=1', "%", "_", "\\", "%s", ":limit", "{}", "ü"]


def test_values_are_never_words_of_sql(browser: Browser, rows: Rows) -> None:
    store_jobs(rows, {"schedule": "s", "fire_at": 1, "unique_key": "app.add:k"}, {"state": "failed"})
    for value in SPITEFUL:
        for name in ("task", "queue", "schedule", "worker", "group", "unique", "uid"):
            some = JobFilter(**{name: value})  # type: ignore[arg-type]
            assert browser.jobs(some).rows == [], (name, value)
            assert browser.count_all(some) == 0
        assert browser.jobs(JobFilter(task=f"{value}*")).rows == [], value
        assert browser.jobs(JobFilter(args=((value, value),))).rows == []
    assert len(found(browser)) == 2


# -- more ready and scheduled jobs than a page begins with ------------------------------------------------------------


@pytest.mark.parametrize("text", ["state:ready", "state:scheduled", "state:retrying", "schedule:s"])
def test_all_jobs_are_found_where_the_list_shows_only_the_next(
    browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(browse, "FEW", 5)
    state = "ready" if text in ("state:ready", "schedule:s") else "scheduled"
    ids = store_jobs(
        rows, *({"state": state, "failures": 1, "run_at": 9, "schedule": "s", "fire_at": i} for i in range(12))
    )
    page = browser.jobs(chosen(text))
    assert len(page.rows) == 5
    assert all_ids(browser, text) == ids[::-1]


def test_ids_come_in_batches_window_by_window(browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "WINDOW", 700)
    store_many(rows, 2500)
    batches = list(browser.ids(chosen("")))
    ids = list(chain.from_iterable(batches))
    assert len(ids) == len(set(ids)) == 2500
    assert max(map(len, batches)) <= 1000


def test_jobs_that_change_meanwhile_do_not_disturb_the_ids(
    browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "WINDOW", 4)
    ids = store_jobs(rows, *[{"state": "failed"}] * 10)
    seen: list[int] = []
    for batch in browser.ids(chosen("state:failed")):
        seen += batch
        marks = ", ".join("?" * len(batch))
        rows(f"UPDATE taskworker_job SET state = 'ready', finished_at = NULL WHERE id IN ({marks})", *batch)
        store_jobs(rows, {"state": "failed"})
    assert seen == ids[::-1]


# -- arguments ---------------------------------------------------------------------------------------------------------

ARGS = {
    "[[1, 2], {}]": "args.x:1",
    '[[1], {"y": 3}]': "args.x:1 args.y:3",
    '[[], {"x": "ana@x.org"}]': "args.x:ana@x.org",
    '[["two words"], {}]': 'args.x:"two words"',
    "[[true, null], {}]": "args.x:true args.y:null",
    "[[[1, 2]], {}]": 'args.x:"[1, 2]"',
    '[["7"], {}]': "args.x:7",
    '[[0], {"note": "' + "n" * 5000 + '"}]': "args.x:0",
}


def test_jobs_are_found_by_positional_and_keyword_arguments(browser: Browser, rows: Rows) -> None:
    ids = dict(zip(ARGS, store_jobs(rows, *({"args": args} for args in ARGS)), strict=True))
    for args, text in ARGS.items():
        assert found(browser, text, names=lambda _: ("x", "y", "note")) == [ids[args]] or text == "args.x:1", text
    assert found(browser, "args.x:1", names=lambda _: ("x", "y")) == [ids['[[1], {"y": 3}]'], ids["[[1, 2], {}]"]]
    assert found(browser, "args.x:1") == []  # the names of positional arguments are not known
    assert found(browser, "args.x:ana@x.org") == [ids['[[], {"x": "ana@x.org"}]']]
    assert browser.count_all(chosen("args.x:1"), names=lambda _: ("x", "y")) == 2
    assert len(browser.jobs(chosen("args.x:0"), names=lambda _: ("x",)).rows[0].args) == 2000


def test_damaged_arguments_fit_nothing(browser: Browser, rows: Rows) -> None:
    store_jobs(rows, *({"args": args} for args in ("", "{", "7", "[1]", "[1, 2]", "[[], []]", "null", '"x"')))
    assert found(browser, "args.x:1", names=lambda _: ("x",)) == []


def test_pages_by_arguments_follow_each_other(browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "WINDOW", 8)
    monkeypatch.setattr(browse, "ARGS_WINDOW", 5)
    monkeypatch.setattr(browse, "_CHUNK", 2)
    ids = store_jobs(rows, *({"args": f"[[{int(i in (0, 3, 17, 18))}], {{}}]"} for i in range(20)))
    wanted = [ids[i] for i in (18, 17, 3, 0)]
    seen: list[int] = []
    before: int | None = None
    pages = 0
    while pages == 0 or before is not None:
        page = browser.jobs(chosen("args.x:1"), limit=1, before=before, names=lambda _: ("x",))
        seen += [row.record.id for row in page.rows]
        assert page.searched_out == (not page.rows and page.older is not None)
        before, pages = page.older, pages + 1
    assert seen == wanted
    assert all_ids(browser, "args.x:1", names=lambda _: ("x",)) == wanted


def test_rare_jobs_are_looked_for_beyond_the_window_by_arguments_too(
    browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "WINDOW", 4)
    rare = store_jobs(rows, {"task": "rare", "args": "[[1], {}]"}, *[{}] * 11)[0]
    page = browser.jobs(chosen("rare args.x:1"), names=lambda _: ("x",))
    assert page.searched_out
    assert page.older is not None
    assert list(browser.ids(chosen("rare args.x:1"), names=lambda _: ("x",))) == [[rare]]


def test_the_names_of_arguments_come_from_the_task(
    app: Flask, idle_worker: BackgroundTaskWorker, browser: Browser
) -> None:
    @idle_worker.task
    def add(x: int, y: int = 1) -> int:
        return x + y

    jobs = [add.enqueue(1, 2), add.enqueue(3), add.enqueue(x=4, y=5)]
    names = idle_worker._registry.parameters_of
    assert found(browser, "args.x:3", names=names) == [jobs[1].id]
    assert found(browser, "args.y:5 args.x:4", names=names) == [jobs[2].id]
    assert names("not.known") == ()


# -- one job -----------------------------------------------------------------------------------------------------------


def test_a_job_comes_with_all_that_is_stored_of_it(browser: Browser, rows: Rows) -> None:
    args = json.dumps([["x" * 5000], {}])
    values = {
        "state": "failed",
        "args": args,
        "error": "e",
        "result": "r",
        "origin": '{"job": 7}',
        "failure_group": "g",
    }
    (job_id,) = store_jobs(rows, values)
    rows(
        "INSERT INTO taskworker_attempt (job_id, claim, attempt, worker_id, started_at, finished_at, outcome) "
        "VALUES (?, 2, 2, 'w', 10, 20, 'failed'), (?, 1, 1, 'w', 1, 2, 'retrying')",
        *(job_id, job_id),
    )
    lines = json.dumps([[5, "INFO", "app", "hello"]])
    rows("INSERT INTO taskworker_log VALUES (?, 1, ?)", job_id, lines)
    job = browser.job(job_id)
    assert (job.record.id, job.args, job.error, job.result) == (job_id, args, "e", "r")
    assert (job.origin, job.failure_group, job.discarded) == ('{"job": 7}', "g", 0)
    assert [(a.claim, a.outcome) for a in job.attempts] == [(1, "retrying"), (2, "failed")]
    assert job.lines == {1: [LogLine(5, "INFO", "app", "hello")]}


def test_children_are_those_that_were_enqueued_inside(
    browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "WINDOW", 500)
    store_many(rows, 3_000, created_at="i * 1000")
    rows("UPDATE taskworker_job SET claim = 2, started_at = 2000500, finished_at = 2005000 WHERE id = 7")
    rows("UPDATE taskworker_job SET origin = ? WHERE id IN (9, 2003, 2990)", '{"job": 7}')
    rows("UPDATE taskworker_job SET origin = ? WHERE id = 2004", '{"job": 7, "traceparent": "00-1"}')
    rows("UPDATE taskworker_job SET origin = ? WHERE id = 2002", '{"job": 77}')

    def children(limit: int = 10) -> list[int]:
        return [row.record.id for row in browser.children(browser.job(7), limit=limit)]

    assert children() == [2003, 2004]
    assert children(1) == [2003]
    # An earlier try, long before; then it runs again.
    rows(
        "INSERT INTO taskworker_attempt (job_id, claim, attempt, started_at, finished_at, outcome) "
        "VALUES (7, 1, 1, 8000, 9000, 'retrying')"
    )
    assert children() == [9]
    rows("UPDATE taskworker_job SET claim = 0 WHERE id = 7")
    assert children() == []
    assert list(chain.from_iterable(browser.ids(chosen("parent:7")))) == [2990, 2004, 2003, 9]
    assert browser.count_all(chosen("parent:7")) == 4


def test_a_job_that_is_not_there_is_named(browser: Browser) -> None:
    for job_id in [0, -1, 1, MAX_ID, MAX_ID + 1, 10**30]:
        with pytest.raises(JobNotFound, match=f"Job {job_id} never existed, or it was pruned"):
            browser.job(job_id)


def test_jobs_by_id_leaves_out_those_that_are_gone(browser: Browser, rows: Rows) -> None:
    one, two = store_jobs(rows, {}, {})
    assert set(browser.jobs_by_id([two, 99_999, one])) == {one, two}
    assert browser.jobs_by_id([]) == {}


def test_running_jobs_come_longest_first(browser: Browser, rows: Rows) -> None:
    late, early = store_jobs(rows, {"state": "running", "started_at": 9}, {"state": "running", "started_at": 5})
    assert [row.record.id for row in browser.running()] == [early, late]
    assert [row.record.id for row in browser.running(limit=1)] == [early]


# -- counts ------------------------------------------------------------------------------------------------------------


def test_state_counts_are_those_of_the_rows(browser: Browser, rows: Rows) -> None:
    store_jobs(rows, *JOBS.values())
    counts = browser.state_counts()
    assert (counts.scheduled, counts.retrying, counts.ready, counts.running) == (2, 1, 6, 2)
    assert (counts.failed, counts.cancelled) == (2, 1)
    # The discarded ones count nowhere.
    assert counts.succeeded == 2


def test_counts_stop_at_the_most(browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "MOST", 3)
    many = ("ready", "scheduled", "running", "succeeded")
    store_jobs(rows, *({"state": state, "failures": 1} for state in many for _ in range(5)), {"state": "failed"})
    counts = browser.state_counts()
    assert (counts.scheduled, counts.retrying, counts.ready, counts.running, counts.succeeded) == (3, 3, 3, 3, 3)
    assert counts.failed == 1
    assert counts.at_least == {*many, "retrying"}


def test_a_count_that_may_be_greater_says_so(browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "MOST", 4)
    due = [{"state": "scheduled", "run_at": at, "failures": at % 2} for at in range(1, 8)]
    store_jobs(rows, *due, *({"state": "failed"} for _ in range(3)))
    counts = browser.state_counts()
    # Three of seven retry, and two of them are among the four that were looked at.
    assert (counts.scheduled, counts.retrying, counts.failed) == (4, 2, 3)
    assert counts.at_least == {"scheduled", "retrying"}


@pytest.mark.parametrize("text", ["state:ready", "app.add", "queue:slow", "args.x:1", "state:ready args.x:1", ""])
def test_what_fits_is_counted_exactly_however_many_jobs_there_are(
    browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for bound in ("WINDOW", "FEW", "ARGS_WINDOW", "MOST", "_CHUNK"):
        monkeypatch.setattr(browse, bound, 2)
    jobs = [{"task": "app.add", "queue": "slow", "args": '[[], {"x": 1}]'}] * 7
    others = [{"task": "app.other", "state": "succeeded", "args": '[[], {"x": 2}]'}] * 5
    store_jobs(rows, *jobs, *others)
    end = browser.end()
    store_jobs(rows, *jobs)
    assert browser.count_all(chosen(text), before=end) == (7 if text else 12)
    assert browser.count_all(chosen(text)) == (14 if text else 19)


def test_the_succeeded_are_unknown_where_the_failed_fill_the_count(
    browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "MOST", 3)
    store_jobs(rows, *({"state": "failed"} for _ in range(5)), {"state": "succeeded"})
    counts = browser.state_counts()
    assert (counts.failed, counts.succeeded) == (3, None)


def test_waiting_jobs_are_counted_by_task(browser: Browser, rows: Rows) -> None:
    store_jobs(rows, {}, {}, {"task": "b", "state": "scheduled"}, {"task": "b"}, {"task": "c", "state": "failed"})
    assert browser.tasks_waiting() == {"app.add": 2, "b": 2}


# -- failures ----------------------------------------------------------------------------------------------------------

HOUR = 3_600_000


def test_failures_are_grouped_latest_first(browser: Browser, rows: Rows) -> None:
    def failed(group: str | None, at: int, **more: Any) -> dict[str, Any]:
        return {"state": "failed", "failure_group": group, "finished_at": at, **more}

    ids = store_jobs(
        rows,
        *(failed("a", HOUR + 1), failed("b", 3 * HOUR), failed("a", 2 * HOUR + 5), failed("a", 2 * HOUR + 7)),
        *(failed("a", 9 * HOUR, discarded=1), failed(None, 2 * HOUR), failed("old", 5)),
        {"state": "cancelled", "failure_group": "a", "finished_at": 8 * HOUR},
    )
    groups = browser.failures(HOUR)
    assert [(group.group, group.count) for group, _ in groups] == [("b", 1), ("a", 3), ("", 1)]
    a, by_slice = groups[1]
    assert (a.first_at, a.last_at, a.newest) == (HOUR + 1, 2 * HOUR + 7, ids[3])
    assert by_slice == {HOUR: 1, 2 * HOUR: 2}
    assert browser.failures(10 * HOUR) == []


def test_only_the_newest_failures_are_grouped(browser: Browser, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "GROUPED", 2)
    store_jobs(rows, *({"state": "failed", "failure_group": "g", "finished_at": 5 + i} for i in range(4)))
    assert [group.count for group, _ in browser.failures(0)] == [2]


def test_one_cause_is_one_group(idle_worker: BackgroundTaskWorker, browser: Browser) -> None:
    @idle_worker.task
    def look_up(number: int) -> None:
        raise KeyError(f"no row {number}")

    @idle_worker.task
    def divide(number: int) -> float:
        return number / 0

    jobs = [*look_up.enqueue_many([(1,), (2,), (30,)]), *divide.enqueue_many([(1,), (2,)])]
    idle_worker.start()
    wait_for(lambda: all(job.refresh().state.finished for job in jobs))
    groups = [group for group, _ in browser.failures(0)]
    assert sorted((group.count, group.task.rpartition(".")[2]) for group in groups) == [(2, "divide"), (3, "look_up")]
    group = next(g for g in groups if g.count == 3)
    assert found(browser, f"group:{group.group}") == [job.id for job in jobs[2::-1]]


# -- queues and schedules ----------------------------------------------------------------------------------------------


def test_a_queue_tells_its_state(
    app: Flask, idle_worker: BackgroundTaskWorker, browser: Browser, store: Store, rows: Rows
) -> None:
    store_jobs(
        rows,
        *({"queue": "a", "created_at": 300}, {"queue": "a", "created_at": 200}, {"queue": "a", "state": "running"}),
        *({"queue": "b", "state": "running"}, {"queue": "c", "state": "succeeded"}, {"queue": "d", "solo": 1}),
    )
    steer = Operations(app, app.extensions["taskworker"].client, idle_worker._registry, who="ana")
    steer.pause_queue("z")
    queues = {queue.name: queue for queue in browser.queues(also=["known"])}
    assert list(queues) == ["a", "b", "known", "z"]
    assert (queues["a"].ready, queues["a"].running, queues["a"].oldest_at) == (2, 1, 200)
    assert (queues["b"].ready, queues["b"].running, queues["b"].oldest_at) == (0, 1, None)
    paused = queues["z"]
    assert (paused.paused, paused.paused_by) == (True, "ana")
    assert abs((paused.paused_at or 0) - store.clock()) < 60_000
    assert not queues["a"].paused
    assert queues["known"].figures is None


def test_the_last_runs_of_each_schedule_are_reported(
    idle_worker: BackgroundTaskWorker, browser: Browser, rows: Rows
) -> None:
    @idle_worker.task
    def tick() -> None: ...

    for name in ("one", "two"):
        tick.schedule(Every(hours=1), name=name)
    runs = ({"schedule": name, "fire_at": i, "state": "succeeded"} for i in range(4) for name in ("one", "two", "gone"))
    store_jobs(rows, *runs, {"schedule": "one", "fire_at": 99, "started_at": 100})
    found = browser.schedule_runs(["one", "two"], 3)
    assert [run.fire_at for run in found["one"]] == [99, 3, 2]
    assert (found["one"][0].state, found["one"][0].started_at) == ("ready", 100)
    assert [run.fire_at for run in found["two"]] == [3, 2, 1]
    assert set(found) == {"one", "two"}


# -- mails and the audit log -------------------------------------------------------------------------------------------


@pytest.fixture
def mail(app: Flask, idle_worker: BackgroundTaskWorker) -> Mail:
    app.config["MAIL_DEFAULT_SENDER"] = "from@example.com"
    return Mail(app)


def test_mails_come_newest_first_in_pages(app: Flask, mail: Mail, browser: Browser) -> None:
    with app.app_context():
        jobs = [
            mail.send_later(Message(f"Number {i}", recipients=["ana@x.org"], body="Hi"), uid=uid)
            for i, uid in enumerate(["a1", "a2", "~3", "Z4", "ä5"])
        ]
    uids = {job.uid for job in jobs}
    seen: list[str] = []
    before = None
    while page := browser.mails(limit=2, before=before):
        seen += [row.id for row in page.rows]
        if (before := page.older) is None:
            break
    assert set(seen) == uids
    assert len(seen) == len(uids)
    first = browser.mails().rows[0]
    assert (first.sender, first.state, first.tries, first.finished_at) == ("from@example.com", "ready", 0, None)
    assert bytes(first.head).startswith(b"From:") or b"Subject: Number" in bytes(first.head)
    assert {row.job_id for row in browser.mails().rows} == {job.id for job in jobs}


def test_mails_are_found_by_a_part_of_an_address(
    app: Flask, mail: Mail, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = ["ana@x.org", "bo_y@x.org", "boxy@y.org", "c%d@y.org"]
    with app.app_context():
        uids = {a: mail.send_later(Message("Hi", recipients=[a, "all@z.org"], body="Hi")).uid for a in addresses}

    def sent_to(address: str) -> set[str]:
        return {row.id for row in browser.mails(address=address).rows}

    assert sent_to("ana@") == sent_to("ANA@X") == {uids["ana@x.org"]}
    assert sent_to("o_y") == {uids["bo_y@x.org"]}
    assert sent_to("%") == {uids["c%d@y.org"]}
    assert sent_to("all@z.org") == set(uids.values())
    assert sent_to("'; --") == sent_to("zed") == set()
    monkeypatch.setattr(browse, "WINDOW", 2)
    assert uids["ana@x.org"] not in sent_to("@")
    page = browser.mails(address="ana@")
    assert (page.rows, page.searched_out) == ([], True)
    page = browser.mails(address="ana@", before=page.older)
    assert [row.id for row in page.rows] == [uids["ana@x.org"]]
    assert (page.older, page.searched_out) == (None, False)


def test_the_audit_log_comes_newest_first_in_pages(
    app: Flask, idle_worker: BackgroundTaskWorker, browser: Browser, rows: Rows
) -> None:
    steer = Operations(app, app.extensions["taskworker"].client, idle_worker._registry, who="ana")
    for number in range(3):
        steer.act_on_some("cancel", store_jobs(rows, *[{}] * (number + 1)), f"job {number}")
    newest, middle = browser.audit(limit=2)
    assert (newest.who, newest.action, newest.target, newest.number) == ("ana", "cancel", "job 2", 3)
    assert [row.target for row in browser.audit(before=middle.id)] == ["job 0"]


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_are_added_up_by_slice_task_and_queue(browser: Browser, store: Store, rows: Rows) -> None:
    minute = 60_000
    names = "span, start, task, queue, succeeded, failed, retried, cancelled, run_ms, longest_ms, wait_ms"
    buckets = ", ".join(f"{what}_{i}" for what in ("run", "wait") for i in range(11))
    for start, task, queue, done, longest in (
        (0, "a", "q", 2, 7),
        (minute, "a", "q", 3, 9),
        (minute, "b", "q", 4, 2),
        (5 * minute, "b", "p", 1, 400),
    ):
        values = [60, start, task, queue, done, 1, 0, 0, 10, longest, 5, done, *[0] * 21]
        rows(f"INSERT INTO taskworker_rollup ({names}, {buckets}) VALUES ({', '.join('?' * 33)})", *values)
    by_minute = browser.figures(0, step=minute)
    assert [(f.start, f.succeeded, f.longest_ms) for f in by_minute] == [
        (0, 2, 7),
        (minute, 7, 9),
        (5 * minute, 1, 400),
    ]
    (total,) = browser.figures(0, step=MAX_ID)
    assert (total.succeeded, total.failed, total.ended, total.run[0], total.longest_ms) == (10, 4, 14, 10, 400)
    assert [(f.key, f.succeeded) for f in browser.figures(0, step=MAX_ID, by="task")] == [("a", 5), ("b", 5)]
    assert [(f.key, f.succeeded) for f in browser.figures(0, step=MAX_ID, by="queue")] == [("p", 1), ("q", 9)]
    assert [f.succeeded for f in browser.figures(minute, step=MAX_ID, task="b", queue="q")] == [4]
    assert browser.figures(0, step=minute, span=3600) == []
    assert total.run_percentile(0.5) == Percentile(5.0)
    assert total.wait_percentile(0.5) is None


def test_a_percentile_is_exact_or_a_lower_bound() -> None:
    row = (0, "a", 0, 0, 0, 0, 0, 400_000, 0, *[0] * 10, 9, *[0] * 10, 9)
    figures = rows.figures_of(row)
    # Of nine tries that took longer than five minutes only the longest is known.
    assert figures.run_percentile(0.95) == Percentile(300_000, at_least=True)
    assert figures.wait_percentile(0.95) == Percentile(300_000, at_least=True)
    assert rows.figures_of((0, "a", 0, 0, 0, 0, 0, 7, 0, 9, *[0] * 21)).run_percentile(1) == Percentile(7)


def test_lane_and_limit_find_their_jobs_in_every_state(browser: Browser, rows: Rows) -> None:
    states = ("held", "held", "ready", "succeeded", "held", "held", "held")
    lanes = ("shop:7", "shop:8", "shop:7", "shop:7", "shop", "shopper", "shop:7:eu")
    ids = store_jobs(rows, *({"state": state, "marks": 1} for state in states), {"marks": 0})
    for job_id, lane, state in zip(ids, lanes, states, strict=False):
        phase = {"held": 1, "ready": 2, "succeeded": 5}[state]
        rows(
            "INSERT INTO taskworker_permit (job_id, lane, queue, priority, phase) VALUES (?, ?, 'default', 0, ?) "
            "RETURNING lane",
            *(job_id, lane, phase),
        )
    one, two, three, four, keyless, _, eu, _ = ids
    assert found(browser, "lane:shop:7") == [four, three, one]
    assert found(browser, "lane:shop") == [eu, keyless, four, three, two, one]
    assert found(browser, "state:held lane:shop:7") == all_ids(browser, "state:held lane:shop:7") == [one]
    assert found(browser, "state:held lane:shop") == [eu, keyless, two, one]
    assert browser.count_all(chosen("lane:shop")) == 6
    assert browser.job(one).lane == "shop:7"
    assert browser.job(ids[-1]).lane is None


# -- moments -----------------------------------------------------------------------------------------------------------


def test_a_filter_by_moment_begins_at_its_jobs_however_many_are_newer(browser: Browser, rows: Rows) -> None:
    number = 3 * WINDOW
    store_many(rows, number, state="'succeeded'", created_at="1000000 + i * 1000")
    ids = [row[0] for row in rows("SELECT id FROM taskworker_job ORDER BY id")]
    early = browser.jobs(JobFilter(before=1_000_000 + 3_500), limit=5)
    assert [row.record.id for row in early.rows] == [ids[2], ids[1], ids[0]]
    assert (early.older, early.searched_out) == (None, False)
    late = browser.jobs(JobFilter(after=1_000_000 + (number - 1) * 1000), limit=5)
    assert [row.record.id for row in late.rows] == [ids[-1], ids[-2]]
    assert (late.older, late.searched_out) == (None, False)
    middle = 1_000_000 + WINDOW * 1000
    some = browser.jobs(JobFilter(after=middle, before=middle + 2_000), limit=5)
    assert [row.record.id for row in some.rows] == [ids[WINDOW], ids[WINDOW - 1]]
    assert not browser.jobs(JobFilter(after=1_000_000 + (number + 9) * 1000)).rows
    assert not browser.jobs(JobFilter(before=1_000)).rows
