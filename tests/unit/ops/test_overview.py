"""What the overview reads in one statement each, and every page of the dashboard, on each database."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Every, Limit, Mail
from flask_taskworker.dashboard import create_dashboard
from flask_taskworker.dashboard.blueprint import ROUTES
from flask_taskworker.errors import StoreError
from flask_taskworker.ops import overview as module
from flask_taskworker.ops.browse import Browser
from flask_taskworker.ops.operations import Operations
from flask_taskworker.ops.overview import Overview, ended, latest_failures
from flask_taskworker.ops.rows import QueueRow, add_up
from flask_taskworker.ops.status import take_status
from flask_taskworker.store.sql import MAX_ID, Store
from flask_taskworker.store.statements import workers as worker_statements
from tests.support.stored import Rows, counts_of, store_jobs
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.both_databases, pytest.mark.usefixtures("idle_worker")]


def test_an_overview_sees_what_the_store_has(idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    @idle_worker.task
    def tick() -> None: ...

    store.driver.prepare()
    nothing = Overview.take(store)
    assert (nothing.workers, nothing.queues, nothing.schedules, nothing.next_due, nothing.has_jobs) == (
        (),
        (),
        (),
        None,
        False,
    )
    tick.schedule(Every(hours=1), name='the "hour"')
    store_jobs(
        rows,
        *({"queue": "a", "created_at": 300}, {"queue": "b\\'", "created_at": 200}, {"solo": 1}),
        *({"state": "scheduled", "run_at": 70}, {"state": "running"}, {"state": "failed"}),
    )
    rows("INSERT INTO taskworker_queue (name, paused) VALUES ('a', 1), ('b', 0)")
    seen, counts = Overview.take(store), counts_of(store)
    assert seen.workers == tuple(store.workers())
    assert seen.queues == (QueueRow("a", 1, 300), QueueRow("b\\'", 1, 200))
    assert seen.schedules == tuple(store.schedules())
    assert seen.next_due == 70
    assert (seen.ready, seen.scheduled) == (counts["ready"], counts["scheduled"]) == (3, 1)
    assert (seen.has_jobs, seen.paused) == (True, {"a"})


def test_an_overview_sees_workers(idle_worker: BackgroundTaskWorker, store: Store) -> None:
    idle_worker.start()
    (worker,) = wait_for(lambda: Overview.take(store).workers)
    assert worker.state == "alive"
    assert json.loads(worker.info)


def test_the_latest_failures_come_by_cause(store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    store.driver.prepare()

    def failed(group: str | None, at: int, **more: Any) -> dict[str, Any]:
        return {"state": "failed", "failure_group": group, "finished_at": at, "error": "e" * 3_000, **more}

    ids = store_jobs(
        rows,
        failed("a", 10),
        failed("a", 60),
        failed("b", 70),
        failed(None, 55),
        failed("c", 20),
        failed("b", 90, discarded=1),
    )
    lines = latest_failures(store, 50, 10)
    assert [(line.group, line.count, line.is_new, line.last_at, line.newest) for line in lines] == [
        ("b", 1, True, 70, ids[2]),
        ("a", 1, False, 60, ids[1]),
        (None, 1, True, 55, ids[3]),
    ]
    assert lines[0].error is not None
    assert len(lines[0].error.message) == 2_000
    assert len(latest_failures(store, 50, 2)) == 2
    monkeypatch.setattr(module, "FAILURES", 3)
    assert [line.group for line in latest_failures(store, 0, 10)] == ["b", None, "c"]


def test_what_ended_is_added_up_by_slice(idle_worker: BackgroundTaskWorker, store: Store) -> None:
    @idle_worker.task
    def add() -> None: ...

    jobs = add.enqueue_many([()] * 3)
    idle_worker.start()
    wait_for(lambda: all(job.refresh().state.finished for job in jobs))
    idle_worker.stop(timeout=5)
    (slice_,) = ended(store, 0, step=MAX_ID, span=60)
    assert (slice_.succeeded, slice_.failed, slice_.cancelled) == (3, 0, 0)
    assert ended(store, store.clock() + 1, step=60_000, span=3600) == []
    figures = Browser(store).figures(0, step=MAX_ID)
    total = add_up([*figures, *figures])
    assert total is not None
    assert (total.succeeded, sum(total.run), total.longest_ms) == (6, 6, figures[0].longest_ms)
    assert add_up([]) is None


def test_some_jobs_are_acted_on_and_noted(
    app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    store.driver.prepare()
    ids = store_jobs(rows, {"state": "failed"}, {"state": "failed"}, {})
    operations = Operations(app, app.extensions["taskworker"].client, idle_worker._registry, who="ana")
    assert operations.act_on_some("retry", ids) == 2
    assert operations.act_on_some("cancel", ids[:1], "state:failed") == 1
    notes = Browser(store).audit()
    assert [(n.action, n.target, n.number) for n in notes] == [
        ("cancel", "state:failed", 1),
        ("retry", f"jobs {', '.join(map(str, ids))}", 2),
    ]


def test_every_page_is_there_on_each_database(app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows) -> None:
    @idle_worker.task(schedule=Every(hours=1), queue="work")
    def tick() -> None:
        raise ValueError("no")

    app.config["MAIL_DEFAULT_SENDER"] = "us@x.org"
    Mail(app)
    app.register_blueprint(create_dashboard(idle_worker, access=lambda: True), url_prefix="/tasks")
    with idle_worker.batch("ticks") as batch:
        job = tick.using(batch=batch).enqueue()
    idle_worker.start()
    wait_for(lambda: job.refresh().state.finished)
    idle_worker.stop(timeout=5)
    client = app.test_client()
    for route in ROUTES:
        if "GET" in route.methods and not route.endpoint.startswith(("mail_", "schedule")):
            rule = route.rule.replace("<int:job_id>", str(job.id)).replace("<int:batch_id>", str(batch.id))
            address = f"/tasks{rule}"
            assert client.get(address).status_code == 200, address
    for text in (
        "state:failed",
        "state:ready",
        "state:waiting",
        "batch:1",
        "follows:1",
        "task:*tick args.x:1",
        "after:-1h",
        "discarded:yes",
        "group:x",
    ):
        assert client.get("/tasks/jobs", query_string={"filter": text}).status_code == 200
    own = {"Origin": "http://localhost"}
    form = {"action": "retry", "scope": "all", "filter": "state:failed"}
    assert client.post("/tasks/jobs/confirm", data=form, headers=own).status_code == 200
    assert client.post("/tasks/jobs/bulk", data=form, headers=own).status_code == 303
    assert job.refresh().state == "ready"


def test_held_jobs_that_no_worker_takes_are_a_problem(idle_worker: BackgroundTaskWorker, store: Store) -> None:
    task = idle_worker.task(name="label", queue="web", limit=Limit("carrier", running=1))(lambda: None)
    task.enqueue_many([()] * 2)
    assert Overview.take(store).held == {"web": 2}
    assert Overview.take(store).problems() == [
        "2 jobs wait and no living worker takes them. Start one: flask tasks run"
    ]
    add_worker(store, queues=["mail"])
    assert Overview.take(store).problems() == [
        "Queue 'web' has held jobs (2) and no living worker takes them. Start one: flask tasks run web"
    ]
    add_worker(store, queues=["web"])
    assert Overview.take(store).problems() == []


def test_job_that_waits_long_for_the_limit_of_its_queue_is_no_problem(store: Store, rows: Rows) -> None:
    store.driver.prepare()
    store_jobs(rows, {"queue": "a", "created_at": 1})
    add_worker(store, queues=None)
    assert Overview.take(store).problems()[0].startswith("A job in queue 'a' has been ready for ")
    rows(
        "INSERT INTO taskworker_limit (name, running, source, set_at, seen_at) VALUES ('queue:a', 1, 'code', 1, 1) "
        "RETURNING name"
    )
    assert Overview.take(store).problems() == []


def add_worker(store: Store, *, queues: list[str] | None) -> None:
    info = json.dumps({"queues": queues, "concurrency": 1, "threads": 1})
    values = {"host": "h", "pid": 7, "now": store.clock(), "server_started_at": None, "info": info}
    store.driver.write(worker_statements.ADD_WORKER, {"id": f"w{queues}", **values})


def test_finished_jobs_that_no_worker_deletes_are_a_problem(store: Store, rows: Rows) -> None:
    store.driver.prepare()
    now = store.clock()
    store_jobs(rows, {"state": "succeeded", "expires_at": now - 2 * 3_600_000})
    assert Overview.take(store).problems() == []
    rows(
        "INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) "
        "VALUES ('w', '', 1, 1, ?, 'alive', '{}')",
        now,
    )
    (problem,) = Overview.take(store).problems()
    assert problem.startswith("Finished jobs should have been deleted an hour ago")


@pytest.mark.no_tables_yet
def test_a_look_at_the_health_creates_nothing(store: Store) -> None:
    with pytest.raises(StoreError, match="No tables found"):
        take_status(store)
    assert store.driver.schema_version() is None
