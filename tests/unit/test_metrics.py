"""Metrics: what Prometheus reads, from any process, and who may read it."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.error import HTTPError

import pytest
from flask import Flask, abort
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from flask_taskworker import BackgroundTaskWorker, CancelJob, Every, Limit, Retry, SnoozeJob
from flask_taskworker.errors import ArgumentsError, StoreError
from flask_taskworker.metrics import _Collector, create_metrics, serve_metrics
from flask_taskworker.ops.operations import Operations
from flask_taskworker.store.schema import ROLLUP_FIGURES
from flask_taskworker.store.sql import Store
from flask_taskworker.worker.liveness import package_version
from tests.support.stored import Rows, store_jobs
from tests.support.twins import twin_of
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases(slow="postgresql")

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in parse(text) for s in family.samples}


def read(app: Flask) -> Samples:
    registry = CollectorRegistry()
    registry.register(_Collector(app))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in registry.collect() for s in family.samples}


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((f"taskworker_{name}", tuple(sorted(labels.items()))))


def store_totals(rows: Rows, task: str, queue: str, figures: list[int]) -> None:
    marks = ", ".join("?" * len(figures))
    names = f"span, start, task, queue, {', '.join(ROLLUP_FIGURES)}"
    rows(f"INSERT INTO taskworker_rollup ({names}) VALUES (0, 0, ?, ?, {marks})", task, queue, *figures)


@pytest.fixture
def open_app(app: Flask, idle_worker: BackgroundTaskWorker) -> Flask:
    app.register_blueprint(create_metrics(idle_worker, access=lambda: True))
    return app


# -- what is reported --------------------------------------------------------------------------------------------------


def test_tries_are_counted_by_task_queue_and_outcome(open_app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    @idle_worker.task(name="well", queue="q")
    def well() -> None: ...

    @idle_worker.task(name="badly", retry=Retry(max_attempts=3, base=0.001))
    def badly() -> None:
        raise ValueError

    @idle_worker.task(name="not")
    def cancelled() -> None:
        raise CancelJob("no")

    jobs = [*well.enqueue_many([()] * 3), badly.enqueue(), cancelled.enqueue()]
    idle_worker.start()
    wait_for(lambda: all(job.refresh().state.finished for job in jobs))
    idle_worker.stop(timeout=20)
    found = samples(open_app.test_client().get("/metrics").text)

    def count(task: str, queue: str, outcome: str) -> float | None:
        return value(found, "jobs_total", task=task, queue=queue, outcome=outcome)

    assert [count("well", "q", outcome) for outcome in ("succeeded", "failed", "retried", "cancelled")] == [3, 0, 0, 0]
    assert [count("badly", "default", outcome) for outcome in ("succeeded", "failed", "retried")] == [0, 1, 2]
    assert count("not", "default", "cancelled") == 1
    assert value(found, "job_duration_seconds_count", task="well", queue="q") == 3
    assert value(found, "job_duration_seconds_bucket", task="well", queue="q", le="+Inf") == 3
    assert (value(found, "job_duration_seconds_sum", task="badly", queue="default") or 0) < 5


def test_durations_are_a_histogram(app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    store.driver.prepare()
    figures = [6, 0, 0, 0, 612_500, 600_000, 0, 1, 0, 2, *[0] * 7, 3, *[0] * 11]
    store_totals(rows, "t", "q", figures)
    found = read(app)

    def at_most(bound: str) -> float | None:
        return value(found, "job_duration_seconds_bucket", task="t", queue="q", le=bound)

    bounds = ("0.01", "0.03", "0.1", "0.3", "1", "3", "10", "30", "100", "300", "+Inf")
    assert [at_most(bound) for bound in bounds] == [1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 6]
    assert value(found, "job_duration_seconds_sum", task="t", queue="q") == 612.5


def test_counters_only_grow_when_old_figures_are_deleted(
    app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    task = idle_worker.task(name="well")(lambda: None)
    task.enqueue()
    idle_worker.start()
    wait_for(lambda: value(read(app), "jobs_total", task="well", queue="default", outcome="succeeded") == 1)
    idle_worker.stop(timeout=20)
    rows("UPDATE taskworker_rollup SET start = 60000 WHERE span > 0")
    idle_worker.start()
    wait_for(lambda: rows("SELECT span FROM taskworker_rollup") == [(0,)])
    assert value(read(app), "jobs_total", task="well", queue="default", outcome="succeeded") == 1


def test_queues_are_reported_even_while_nothing_is_in_them(
    app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    store.driver.prepare()
    idle_worker.task(name="known", queue="known")(lambda: None)
    now = store.clock()
    ready = ({"queue": "a", "created_at": at} for at in (now - 60_000, now))
    store_jobs(rows, *ready, {"queue": "a", "state": "running"})
    Operations(app, app.extensions["taskworker"].client, idle_worker._registry, who="ana").pause_queue("p")
    found = read(app)
    assert [value(found, f"queue_{what}", queue="a") for what in ("depth", "running", "paused")] == [2, 1, 0]
    assert 60 <= (value(found, "queue_oldest_seconds", queue="a") or 0) < 120
    for what in ("depth", "oldest_seconds", "running", "paused"):
        assert value(found, f"queue_{what}", queue="known") == 0
    assert value(found, "queue_paused", queue="p") == 1


def test_a_late_schedule_is_reported(app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    task = idle_worker.task(name="t")(lambda: None)
    for name in ("late", "paused", "in time"):
        task.schedule(Every(hours=1, start=datetime.now(UTC) - timedelta(minutes=30)), name=name)
    rows("UPDATE taskworker_schedule SET next_at = ? WHERE name <> 'in time'", store.clock() - 240_000)
    rows("UPDATE taskworker_schedule SET paused = 1 WHERE name = 'paused'")
    rows("UPDATE taskworker_schedule SET source = 'code'")
    found = read(app)
    assert 240 <= (value(found, "schedule_late_seconds", schedule="late") or 0) < 300
    assert value(found, "schedule_late_seconds", schedule="in time") == 0
    assert value(found, "schedule_late_seconds", schedule="paused") == 0


def test_schedules_made_at_run_time_share_one_series(
    app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    task = idle_worker.task(name="t")(lambda: None)
    for user in range(5):
        task.schedule(Every(hours=1), name=f"user {user}")
    rows("UPDATE taskworker_schedule SET next_at = ? WHERE name = 'user 3'", store.clock() - 240_000)
    found = read(app)
    assert 240 <= (value(found, "schedule_late_seconds", schedule="(made at run time)") or 0) < 300
    assert value(found, "schedule_late_seconds", schedule="user 3") is None


def test_schedules_in_code_tell_their_next_time_and_last_success(
    app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    idle_worker.task(name="t")(lambda: None).schedule(Every(hours=1), name="hourly")
    rows("UPDATE taskworker_schedule SET source = 'code', next_at = 5000000")
    job = {"schedule": "hourly", "task": "t"}
    store_jobs(
        rows,
        {**job, "state": "succeeded", "finished_at": 2_000_000, "fire_at": 1},
        {**job, "state": "succeeded", "finished_at": 3_000_000, "fire_at": 2},
        {**job, "state": "failed", "finished_at": 4_000_000, "fire_at": 3},
    )
    found = read(app)
    assert value(found, "schedule_next_timestamp_seconds", schedule="hourly") == 5_000
    assert value(found, "schedule_last_success_timestamp_seconds", schedule="hourly") == 3_000


def test_many_queues_that_only_calls_name_share_one_series(
    app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    store.driver.prepare()
    idle_worker.task(name="t", queue="known")(lambda: None)
    for user in range(51):
        store_jobs(rows, {"queue": f"user-{user}"}, {"queue": f"user-{user}", "state": "scheduled", "run_at": 5_000})
        store_totals(rows, "t", f"user-{user}", [2] * len(ROLLUP_FIGURES))
    found = read(app)
    assert value(found, "jobs_total", task="t", queue="(other)", outcome="succeeded") == 102
    assert value(found, "queue_depth", queue="(other)") == value(found, "queue_scheduled", queue="(other)") == 51
    assert {dict(labels)["queue"] for _, labels in found if dict(labels).get("queue")} == {"known", "(other)"}


def test_waits_are_a_histogram(app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    store.driver.prepare()
    idle_worker.task(name="t", queue="q")(lambda: None)
    store_totals(rows, "t", "q", [3, 0, 0, 0, 0, 0, 4_500, *[0] * 11, 2, *[0] * 9, 1])
    found = read(app)
    assert value(found, "job_wait_seconds_bucket", task="t", queue="q", le="0.01") == 2
    assert value(found, "job_wait_seconds_bucket", task="t", queue="q", le="+Inf") == 3
    assert value(found, "job_wait_seconds_sum", task="t", queue="q") == 4.5


def test_what_is_scheduled_and_retried_is_told_by_queue(
    app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    store.driver.prepare()
    idle_worker.task(name="t", queue="q")(lambda: None)
    later = {"queue": "q", "state": "scheduled", "run_at": store.clock() + 60_000}
    store_jobs(rows, later, later, {**later, "failures": 1})
    found = read(app)
    assert value(found, "queue_scheduled", queue="q") == 3
    assert value(found, "queue_retrying", queue="q") == 1


def test_workers_tell_their_slots_memory_lag_and_version(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    wait_for(lambda: value(read(app), "workers", state="alive") == 1)
    found = read(app)
    assert value(found, "slots", kind="sync") == app.extensions["taskworker"].config.threads
    assert value(found, "slots", kind="async") == app.extensions["taskworker"].config.concurrency
    assert value(found, "slots_busy", kind="sync") == value(found, "hung_threads") == 0
    assert (value(found, "resident_memory_bytes") or 0) > 2**20
    assert value(found, "loop_lag_seconds") is not None
    assert value(found, "info", version=package_version()) == 1


@pytest.mark.no_tables_yet
def test_a_scrape_creates_nothing(app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    with pytest.raises(StoreError, match="No tables found"):
        read(app)
    assert app.extensions["taskworker"].store.driver.schema_version() is None


def test_ten_thousand_schedules_of_users_leave_the_metrics_small(
    app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows
) -> None:
    idle_worker.task(name="t")(lambda: None).schedule(Every(hours=1), name="first")
    columns = "task, trigger, args, next_at, last_at, paused, source, seen_at"
    rows(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999) "
        f"INSERT INTO taskworker_schedule (name, {columns}) "
        f"SELECT 'user ' || n.i, {columns} FROM taskworker_schedule, n"
    )
    assert len(read(app)) <= 200


def test_workers_are_reported_by_state(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    wait_for(lambda: value(read(app), "workers", state="alive") == 1)
    assert [value(read(app), "workers", state=state) for state in ("draining", "dead", "left")] == [0, 0, 0]


def test_mails_are_counted(app: Flask, idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    store.driver.prepare()
    assert value(read(app), "mail_total", outcome="succeeded") == 0
    for queue in ("mail", "slow"):
        store_totals(rows, "flask_taskworker.mail.deliver", queue, [2] * len(ROLLUP_FIGURES))
    assert value(read(app), "mail_total", outcome="succeeded") == 4


def test_limits_are_reported_without_their_keys(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    go = threading.Event()

    @task_worker.task(limit=Limit("shop", running=1, key="shop_id"))
    def sync(shop_id: int) -> None:
        go.wait(20)

    @task_worker.task(limit=Limit("api", running=1, key="host"))
    def call(host: str) -> None:
        raise SnoozeJob(60, limit=True)

    jobs = sync.enqueue_many([(7,), (7,), (8,)])
    call.enqueue_many([("a",), ("b",)])
    wait_for(lambda: value(read(app), "limit_closings_total", limit="api") == 2)
    wait_for(lambda: value(read(app), "limit_waiting", limit="shop") == 1)
    found = read(app)
    assert value(found, "limit_open", limit="shop") == 2
    assert {labels for name, labels in found if name.startswith("taskworker_limit")} == {
        *((("limit", "api"),), (("limit", "shop"),))
    }
    go.set()
    for job in jobs:
        job.result(timeout=20)
    assert value(read(app), "limit_open", limit="shop") == 0


def test_nothing_is_asked_of_limits_where_the_code_has_none(app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    driver, seen = app.extensions["taskworker"].store.driver, list[str]()
    real = driver.read
    driver.read = lambda sql, parameters: (seen.append(sql), real(sql, parameters))[1]
    assert not [name for name, _ in read(app) if name.startswith("taskworker_limit")]
    assert seen
    assert not [sql for sql in seen if "taskworker_limit" in sql or "taskworker_permit" in sql]


def test_any_process_reports_all(open_app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    idle_worker.task(name="well")(lambda: None).enqueue()
    idle_worker.start()
    twin = twin_of(open_app)
    web = BackgroundTaskWorker(twin)
    twin.register_blueprint(create_metrics(web, access=lambda: True), url_prefix="/internal")
    client = twin.test_client()

    def count() -> float | None:
        found = samples(client.get("/internal/metrics").text)
        return value(found, "jobs_total", task="well", queue="default", outcome="succeeded")

    wait_for(lambda: count() == 1)


# -- how, and who may read it ------------------------------------------------------------------------------------------


def test_names_with_every_character_are_reported(open_app: Flask, store: Store, rows: Rows) -> None:
    store.driver.prepare()
    name = 'a"b\\c\nd\u2028{}ü'
    store_jobs(rows, {"queue": name})
    client = open_app.test_client()
    assert value(samples(client.get("/metrics").text), "queue_depth", queue=name) == 1
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.content_type.startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(answer.text)} >= {"taskworker_jobs", "taskworker_queue_depth"}


def test_a_database_that_does_not_answer_is_reported(
    open_app: Flask, store: Store, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    store.driver.prepare()
    rows("ALTER TABLE taskworker_rollup RENAME TO away")
    answer = open_app.test_client().get("/metrics")
    assert (answer.status_code, answer.text) == (503, "The database does not answer.\n")
    assert "the metrics could not be read" in caplog.text


@pytest.mark.sqlite_only
def test_without_access_nothing_is_reported(
    app: Flask, idle_worker: BackgroundTaskWorker, caplog: pytest.LogCaptureFixture
) -> None:
    app.register_blueprint(create_metrics(idle_worker))
    answer = app.test_client().get("/metrics")
    assert (answer.status_code, answer.text) == (403, "The metrics are closed to you.\n")
    assert "The metrics are closed: a request from 127.0.0.1 was refused. Open them with create_metrics(" in caplog.text


@pytest.mark.sqlite_only
def test_the_login_of_the_dashboard_opens_them(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    app = make_app(TASKER_DASHBOARD_USER="prometheus", TASKER_DASHBOARD_PASSWORD="secret")
    app.register_blueprint(create_metrics(make_worker(app, start=False)))
    client = app.test_client()
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", auth=("prometheus", "wrong")).status_code == 401
    assert client.get("/metrics", auth=("prometheus", "secret")).status_code == 200


@pytest.mark.sqlite_only
def test_the_callback_decides(app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    answers: dict[str, Any] = {"/yes": lambda: True, "/no": lambda: False, "/log-in": lambda: abort(418)}
    for path, access in answers.items():
        app.register_blueprint(create_metrics(idle_worker, access, name=path[1:]), url_prefix=path)
    client = app.test_client()
    assert [client.get(f"{path}/metrics").status_code for path in answers] == [200, 403, 418]


@pytest.mark.sqlite_only
def test_metrics_of_what_is_not_a_task_worker_are_refused(app: Flask) -> None:
    with pytest.raises(ArgumentsError, match="is not a TaskWorker"):
        create_metrics(app)  # type: ignore[arg-type]
    with pytest.raises(ArgumentsError, match="access is True. Give a function"):
        create_metrics(BackgroundTaskWorker(), access=True)  # type: ignore[arg-type]


@pytest.fixture
def port(app: Flask, idle_worker: BackgroundTaskWorker) -> Iterator[int]:
    server = serve_metrics(app, 0, "127.0.0.1")
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.sqlite_only
def test_a_port_of_its_own_tells_the_same(
    app: Flask, port: int, store: Store, rows: Rows, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=20) as answer:
        found = samples(answer.read().decode())
    assert value(found, "workers", state="alive") == 0
    rows("ALTER TABLE taskworker_rollup RENAME TO away")
    with pytest.raises(HTTPError, match="503"):
        urllib.request.urlopen(url, timeout=20)
    assert capfd.readouterr().err == ""


@pytest.mark.sqlite_only
def test_a_taken_port_is_an_error(app: Flask, port: int) -> None:
    with pytest.raises(OSError, match="in use"):
        serve_metrics(app, port, "127.0.0.1")


@pytest.mark.no_tables_yet
@pytest.mark.sqlite_only
def test_a_registry_takes_the_collector_without_a_look_at_the_database(
    app: Flask, idle_worker: BackgroundTaskWorker
) -> None:
    CollectorRegistry(auto_describe=True).register(_Collector(app))
    assert app.extensions["taskworker"].store.driver.schema_version() is None
