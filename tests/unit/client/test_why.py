"""Why a job waits: what one statement reads, what follows from it, and the same words in all places."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, JobNotFound
from flask_taskworker.client.why import NO_SPACE, Facts, Place, look, reasons
from flask_taskworker.core.clock import from_ms
from flask_taskworker.core.limits import LaneFacts, Numbers
from flask_taskworker.core.rows import JobRecord
from flask_taskworker.ops.operations import Operations
from flask_taskworker.store.sql import Store, WorkerRow
from tests.support.dashboard_lab import Lab
from tests.support.stored import Rows, store_jobs

NOW = 1_800_000_000_000


def worker(name: str = "w1", *, age: int = 0, state: str = "alive", **info: Any) -> WorkerRow:
    told = {"queues": None, "concurrency": 100, "threads": 6, "running": {"sync": 0, "async": 0}, **info}
    return WorkerRow(name, name, 7, 0, 1, NOW - age, state, json.dumps(told), 0)


def job(state: str = "ready", **columns: Any) -> JobRecord:
    given = {"id": 42, "uid": "u", "task": "add", "queue": "web", "kind": "sync", "priority": 0, "state": state}
    return JobRecord(**{**given, "run_at": 0, "max_attempts": 5, "timeout": None, **columns})


def held(phase: int = 0, **facts: Any) -> dict[str, Any]:
    place = {"lane": "shop:7", "phase": phase, "ahead": 0, "let_in": (), "limit": None, **facts}
    return {"job": job("held"), "place": Place(**place)}


FREE = Facts(
    now=NOW,
    job=job(),
    solo=False,
    ahead=0,
    paused=None,
    ready=frozenset({"web"}),
    workers=(worker(),),
    alone=frozenset(),
    is_known=True,
    free_bytes=None,
)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({}, "next", "Nothing stands in its way. A worker takes it next."),
        ({"ahead": 1}, "in line", "1 job goes first. Those have begun."),
        ({"ahead": 12}, "in line", "12 jobs go first."),
        (
            {"paused": (NOW, "ana", None)},
            "paused",
            "Queue 'web' is paused since 2027-01-15 08:00:00 UTC by ana. Resume it: ",
        ),
        ({"workers": ()}, "no worker", "No living worker takes jobs. Start one: flask tasks run"),
        ({"workers": (worker(age=40_000), worker(state="draining"))}, "no worker", "No living worker takes jobs."),
        ({"workers": (worker(queues=["mail"]),)}, "no worker", "No living worker takes jobs of queue 'web'."),
        ({"workers": (worker(exclude=["web"]),)}, "no worker", "Start one: flask tasks run web"),
        ({"workers": (worker(running={"sync": 6}),), "ahead": 3}, "slots", "All 6 sync slots"),
        ({"workers": (worker(running={"sync": 6}), worker("w2"))}, "next", "A worker takes it next."),
        ({"job": job(kind="async"), "workers": (worker(running={"async": 100}),)}, "slots", "All 100 async slots"),
        ({"workers": (worker(loop_lag_ms=9_000),)}, "blocked", "The event loop of worker w1:7, which takes its queue"),
        ({"alone": frozenset({"w1"})}, "alone", "A job runs alone in worker w1:7"),
        ({"solo": True, "job": job(crashes=2)}, "alone", "2 processes died while it ran, so it runs alone."),
        (
            {"workers": (worker(queues=["urgent", "web"]),), "ready": frozenset({"urgent", "web"})},
            "queue order",
            "Its workers take the jobs of queue 'urgent' first.",
        ),
        (held(), "in line", "It belongs to the limit 'shop', key '7'. A worker looks whether there is room."),
        (held(phase=1, ahead=3), "in line", "It is 4th in line of the limit 'shop', key '7'. A worker admits it."),
        (
            held(phase=1, let_in=(12, 13), limit=Numbers(running=2)),
            "in line",
            "It is 1st in line of the limit 'shop', key '7' (2 running: jobs 12, 13). One of these jobs ends.",
        ),
        (
            held(phase=1, ahead=3, let_in=(12,), limit=Numbers(running=1)),
            "in line",
            "It is 4th in line of the limit 'shop', key '7' (1 running: job 12). That job ends.",
        ),
        (
            held(phase=1, ahead=1, tat=NOW * 1000 + 3_000_000, limit=Numbers(amount=1, per_us=5_000_000, burst=1)),
            "rate",
            "It is 2nd in line of the limit 'shop', key '7', which has a rate of 1/5s. The next may start in 3 s: at",
        ),
        (held(phase=1, closed_until=NOW + 60_000), "closed", "which a job has closed. The next may start in 1 min: at"),
        (
            {"queue_limit": (Numbers(running=2), LaneFacts(2, 0))},
            "queue limit",
            "Queue 'web' has a limit: it runs 2 of at most 2 at once. A running job of the queue ends.",
        ),
        (
            {"queue_limit": (Numbers(amount=1, per_us=5_000_000, burst=1), LaneFacts(0, 0, NOW * 1000 + 3_000_000))},
            "rate",
            "Queue 'web' has a rate of 1/5s. The next may start in 3 s: at 2027-01-15 08:00:03 UTC.",
        ),
        (
            {"queue_limit": (Numbers(running=2), LaneFacts(0, 0, 0, NOW + 60_000))},
            "closed",
            "A job has closed queue 'web'. The next may start in 1 min: at",
        ),
        ({"queue_limit": (Numbers(running=2), LaneFacts(1, 0))}, "next", "A worker takes it next."),
        (held(phase=4) | {"paused": (NOW, "ana", None)}, "paused", "Queue 'web' is paused"),
        ({"is_known": False}, "unknown task", "This code does not declare the task 'add'."),
        ({"free_bytes": NO_SPACE - 1}, "disk full", "The disk of the database is full: 10.0 MB are left."),
        (
            {"job": job("scheduled", run_at=NOW - 1)},
            "due",
            "It is due. A worker makes it ready; it was due at 2027-01-15",
        ),
        ({"job": job("scheduled", run_at=NOW + 90_000)}, "due", "It is not due yet. It is due in 1 min: at 2027-01-15"),
        ({"job": job("scheduled", run_at=NOW - 5, failures=2)}, "retry", "Try 2 of 5 failed, and it waits for the"),
        ({"job": job("scheduled", run_at=NOW + 5, claim=1)}, "put off", "It was put off: it snoozed, or a worker"),
    ],
)
def test_every_reason_says_what_would_end_it(changes: dict[str, Any], kind: str, words: str) -> None:
    found = reasons(replace(FREE, **changes))[0]
    assert found.kind == kind
    assert words in f"{found.text} {found.ends}"
    if kind in ("due", "retry", "put off"):
        assert found.at == from_ms(changes["job"].run_at)


@pytest.mark.parametrize("state", ["running", "succeeded", "failed", "cancelled"])
def test_a_job_that_does_not_wait_has_no_reasons(state: str) -> None:
    assert reasons(replace(FREE, job=job(state), paused=(None, None, None), workers=())) == []


def test_reasons_add_up() -> None:
    facts = replace(FREE, job=job("scheduled", run_at=NOW + 5), paused=(None, None, None), workers=(), is_known=False)
    assert [reason.kind for reason in reasons(facts)] == ["due", "paused", "unknown task", "no worker"]


# -- from the rows -----------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_one_statement_reads_all_that_bears_on_it(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows, app: Flask
) -> None:
    store.driver.prepare()
    store_jobs(
        rows,
        *({"id": 1, "queue": "a"}, {"id": 2, "queue": "a", "priority": 5}, {"id": 3, "queue": "a", "kind": "async"}),
        *({"id": 4, "queue": "a", "priority": -1}, {"id": 5, "queue": "b"}, {"id": 6, "queue": "a"}),
        *({"id": 7, "queue": "a", "solo": 1}, {"id": 8, "queue": "c", "solo": 1}, {"id": 9, "state": "running"}),
    )
    rows("UPDATE taskworker_job SET solo = 1, worker_id = 'w9' WHERE id = 9")
    Operations(app, idle_worker._state().client, idle_worker._registry, who="ana").pause_queue("a")
    facts = look(store, idle_worker._registry, 6)
    assert (facts.job, facts.ahead, facts.solo) == (store.record(6), 2, False)
    assert facts.ready == {"a", "b"}
    assert facts.paused is not None
    assert facts.paused[1] == "ana"
    assert facts.alone == {"w9"}
    assert [look(store, idle_worker._registry, number).ahead for number in (1, 2, 3, 4, 5, 7, 8)] == [
        1,
        0,
        0,
        3,
        0,
        0,
        1,
    ]
    assert look(store, idle_worker._registry, 8).paused is None


@pytest.mark.both_databases
def test_job_knows_why_it_waits(idle_worker: BackgroundTaskWorker) -> None:
    add = idle_worker.task(name="add")(lambda x: x)
    assert [reason.kind for reason in add.enqueue(1).why()] == ["no worker"]
    later = add.using(delay=60).enqueue(1)
    due, _ = later.why()
    assert (due.kind, due.at) == ("due", later.run_at)
    idle_worker.start()
    job = add.enqueue(1)
    assert job.result(timeout=20) == 1
    assert job.why() == []
    with pytest.raises(JobNotFound):
        idle_worker._state().client.why(10**9)


def test_page_and_command_say_the_same_words(make_app: Callable[..., Flask]) -> None:
    lab = Lab(make_app())
    task = lab.task_worker.task(name="add")(lambda x: x)
    with lab.app.app_context():
        job = task.using(delay=3600).enqueue(1)
        Operations(lab.app, task._client(), lab.task_worker._registry, who="ana").pause_queue("default")
        said = [f"{reason.text} {reason.ends}" for reason in job.why()]
    answer = lab.app.test_cli_runner().invoke(args=["tasks", "why", str(job.id)])
    assert answer.stderr == f"Job {job.id} add is scheduled.\n"
    # The seconds that are left pass meanwhile.
    assert [line.split(" in ")[0] for line in answer.stdout.splitlines()] == [line.split(" in ")[0] for line in said]
    assert "is paused since" in said[1]
    in_json = lab.app.test_cli_runner().invoke(args=["tasks", "why", str(job.id), "--json"]).stdout.splitlines()
    page = lab.data(f"/jobs/{job.id}")["why"]
    assert [line["text"] for line in map(json.loads, in_json)] == [reason["text"] for reason in page]
    html = unescape(lab.page(f"/jobs/{job.id}"))
    assert "Why it waits" in html
    assert all(reason["text"] in html and reason["kind"] != "next" for reason in page)


@pytest.mark.both_databases
def test_limited_job_knows_its_place_and_who_has_the_room(
    idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    store.driver.prepare()
    store_jobs(
        rows,
        *({"id": 1, "marks": 1}, {"id": 2, "state": "held", "marks": 1}, {"id": 3, "state": "held", "marks": 1}),
        *({"id": 4, "state": "held", "marks": 1, "priority": 5}, {"id": 5, "marks": 1, "state": "succeeded"}),
    )
    for job_id, phase, priority in ((1, 2, 0), (2, 1, 0), (3, 1, 0), (4, 1, 5), (5, 2, 0)):
        rows(
            "INSERT INTO taskworker_permit (job_id, lane, queue, priority, phase) "
            "VALUES (?, 'shop:7', 'default', ?, ?) RETURNING lane",
            *(job_id, priority, phase),
        )
    rows(
        "INSERT INTO taskworker_limit (name, running, source, set_at, seen_at) VALUES ('shop', 1, 'code', 1, 1) "
        "RETURNING name"
    )
    place = look(store, idle_worker._registry, 3).place
    assert place is not None
    assert (place.lane, place.phase, place.ahead, place.let_in, place.limit) == (
        "shop:7",
        1,
        2,
        (1,),
        Numbers(running=1),
    )
    line = idle_worker._state().client.why(3)[-1]
    assert line.text == "It is 3rd in line of the limit 'shop', key '7' (1 running: job 1)."


@pytest.mark.both_databases
def test_ready_job_knows_the_limit_of_its_queue(idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    store.driver.prepare()
    # The clock of the tests' server runs a little beside this one.
    store.clock = lambda: NOW
    store_jobs(rows, {"id": 1, "state": "running"}, {"id": 2}, {"id": 3, "queue": "b"})
    rows(
        "INSERT INTO taskworker_limit (name, running, source, set_at, seen_at) "
        "VALUES ('queue:default', 1, 'code', 1, 1) RETURNING name"
    )
    assert look(store, idle_worker._registry, 2).queue_limit == (Numbers(running=1), LaneFacts(1, 0))
    rows("INSERT INTO taskworker_lane (lane, tat, closed_until) VALUES ('queue:default', 5, 6) RETURNING lane")
    assert look(store, idle_worker._registry, 2).queue_limit == (Numbers(running=1), LaneFacts(1, 0, 5, 6))
    assert look(store, idle_worker._registry, 3).queue_limit is None
