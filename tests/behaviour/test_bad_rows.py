"""Rows that this version of the code did not write: each harms itself alone, and nothing in it is obeyed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Job, JobFailed, JobState
from flask_taskworker.store.sql import Store
from tests.support.twins import twin_of
from tests.support.waiting import wait_for

MakeApp = Callable[..., Flask]
MakeWorker = Callable[..., BackgroundTaskWorker]
Rows = Callable[..., list[tuple[Any, ...]]]


def tamper(rows: Rows, job: Job[Any], **columns: object) -> None:
    assignments = ", ".join(f"{name} = ?" for name in columns)
    rows(f"UPDATE taskworker_job SET {assignments} WHERE id = ?", *columns.values(), job.id)


def goes_on(task_worker: BackgroundTaskWorker) -> None:
    """The worker still does its work."""
    assert [job.result(timeout=20) for job in task_worker._registry.find("good").enqueue_many([()] * 3)] == ["good"] * 3


@pytest.fixture
def worker(idle_worker: BackgroundTaskWorker) -> BackgroundTaskWorker:
    """Not started; knows a task that is good and one whose jobs are tampered with."""
    idle_worker.task(name="good")(lambda: "good")
    idle_worker.task(name="work", retry=5)(lambda *args, **kwargs: [args, kwargs])
    return idle_worker


# -- tasks that are not known ------------------------------------------------------------------------------------------


def test_job_of_an_unknown_task_goes_back_and_is_reported(
    worker: BackgroundTaskWorker, rows: Rows, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Another version of the code may know it, as during a rolling deploy."""
    job = worker._registry.find("work").enqueue()
    tamper(rows, job, task="of.another.version")
    before = store.clock()
    worker.start()
    wait_for(lambda: job.refresh().state is JobState.SCHEDULED)
    goes_on(worker)
    record = store.record(job.id)
    assert (record.failures, record.crashes, record.worker_id) == (0, 0, None)
    assert before + 2000 <= record.run_at <= store.clock() + 2000
    assert store.attempts(job.id) == []
    assert f"job {job.id} (of.another.version) goes back to its queue: this worker has no task of that name" in (
        caplog.text
    )
    assert "import the module that declares it" in caplog.text


def test_older_job_of_an_unknown_task_waits_longer(worker: BackgroundTaskWorker, rows: Rows, store: Store) -> None:
    jobs = {age: worker._registry.find("work").enqueue() for age in (0, 600_000, 36_000_000)}
    now = store.clock()
    for age, job in jobs.items():
        tamper(rows, job, task="unknown", created_at=now - age)
    worker.start()
    waits = {}
    for age, job in jobs.items():
        wait_for(lambda job=job: job.refresh().state is JobState.SCHEDULED)
        waits[age] = store.record(job.id).run_at - now
    assert 2000 <= waits[0] < 30_000 <= waits[600_000] < 120_000
    assert 600_000 <= waits[36_000_000] < 660_000


@pytest.mark.timing(shortest_release=0.005)
def test_job_runs_where_its_task_is_known(app: Flask, make_worker: MakeWorker, rows: Rows) -> None:
    """An old and a new worker at once."""
    old = make_worker(app)
    old.task(name="old")(lambda: "old").enqueue().result(timeout=20)
    new = make_worker(twin_of(app))
    fresh = new.task(name="new")(lambda: "new")
    assert [job.result(timeout=20) for job in fresh.enqueue_many([()] * 10)] == ["new"] * 10


BAD_NAMES = [
    "os.system", "__import__", "builtins.eval", "tasks.ok.__globals__", "work.__class__", "good ", "GOOD", "", " ",
    "flask_taskworker.extension.TaskWorker", "../../etc/passwd", "a\nCRITICAL forged", "\x1b[31m",
    "'; DROP TABLE taskworker_job; --", "x" * 100_000,
]  # fmt: skip


def test_names_in_rows_are_looked_up_and_never_imported(
    worker: BackgroundTaskWorker, rows: Rows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    canary = tmp_path / "canary"
    jobs = []
    for name in BAD_NAMES:
        jobs.append(worker._registry.find("work").enqueue())
        tamper(rows, jobs[-1], task=name, args=f'[["touch {canary}"],{{}}]')
    caplog.set_level(logging.INFO)
    worker.start()
    for job in jobs:
        wait_for(lambda job=job: job.refresh().state is JobState.SCHEDULED)
    goes_on(worker)
    assert not canary.exists()
    # The watchdog has something to say, in several lines, where a busy machine stands still.
    for record in [record for record in caplog.records if "event loop" not in record.getMessage()]:
        assert record.getMessage().isprintable()
        assert len(record.getMessage()) < 2000


# -- payloads ----------------------------------------------------------------------------------------------------------

BAD_PAYLOADS = {
    "empty": "",
    "no json": "{not json",
    "truncated": '[[1,2',
    "null": "null",
    "a number": "5",
    "an object": '{"args":[]}',
    "one list": "[1]",
    "three parts": "[[],{},[]]",
    "wrong parts": "[{},[]]",
    "nan": "[[NaN],{}]",
    "infinity": "[[1e999],{}]",
    "huge number": "[[" + "9" * 5000 + "],{}]",
    "deep": "[" * 5000 + "]" * 5000,
    "surrogate": r'[["\ud800"],{}]',
    "unknown tag": '[[{"$":"pickle","v":"gASVKA=="}],{}]',
    "bad tag": '[[{"$":"timedelta","v":["a",1,1]}],{}]',
    "bad zone": '[[{"$":"datetime","v":"2030-01-01T00:00:00","tz":"../../etc/passwd"}],{}]',
    "key that is not a word": '[[],{"a b":1,"__class__":2,"":3}]',
}  # fmt: skip
HARMLESS = {"key that is not a word"}


def test_payload_that_cannot_be_read_fails_its_job_alone(
    worker: BackgroundTaskWorker, rows: Rows, store: Store
) -> None:
    jobs = {}
    for name, payload in BAD_PAYLOADS.items():
        jobs[name] = worker._registry.find("work").enqueue()
        tamper(rows, jobs[name], args=payload)
    worker.start()
    for name in BAD_PAYLOADS.keys() - HARMLESS:
        with pytest.raises(JobFailed) as caught:
            jobs[name].result(timeout=20)
        assert caught.value.kind == "payload", name
        assert caught.value.exception_type == "flask_taskworker.errors.NotDecodable", name
        assert len(caught.value.exception_message) < 1000, name
        # It would be no better the next time.
        assert jobs[name].refresh().attempt == 1, name
    for name in HARMLESS:
        jobs[name].result(timeout=20)
    goes_on(worker)
    assert len(store.workers()) == 1


@pytest.mark.parametrize(("age", "state"), [(0, "scheduled"), (3_700_000, "failed")], ids=["new", "old"])
def test_job_with_a_type_that_only_newer_code_knows_goes_back_to_its_queue_for_an_hour(
    worker: BackgroundTaskWorker, rows: Rows, age: int, state: str
) -> None:
    job = worker._registry.find("work").enqueue()
    tamper(rows, job, args='[[{"$":"dataclass","t":"os.system","v":{"command":"true"}}],{}]')
    rows("UPDATE taskworker_job SET created_at = created_at - ?", age)
    worker.start()
    wait_for(lambda: job.refresh().state == state)
    goes_on(worker)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "value",
    ["CAST(x'80ff' AS TEXT)", "CAST(x'5b5b22eda080225d2c7b7d5d' AS TEXT)"],
    ids=["no utf-8", "surrogate"],
)
def test_payload_that_is_not_text_fails_its_job_alone(worker: BackgroundTaskWorker, rows: Rows, value: str) -> None:
    """SQLite keeps bytes that are not UTF-8 as text."""
    job = worker._registry.find("work").enqueue()
    rows(f"UPDATE taskworker_job SET args = {value}")
    worker.start()
    wait_for(lambda: rows("SELECT state FROM taskworker_job") == [("failed",)])
    goes_on(worker)
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=20)
    assert caught.value.kind == "payload"


# -- other columns -----------------------------------------------------------------------------------------------------


def test_texts_in_other_columns_are_only_texts(worker: BackgroundTaskWorker, rows: Rows) -> None:
    job = worker._registry.find("work").enqueue()
    tamper(rows, job, progress="no json", error="no json", failure_kind="odd\x1b[31m", queue="q" * 10_000)
    assert job.refresh().progress is None
    tamper(rows, job, progress='{"a":1}')
    assert job.refresh().progress is None
    tamper(rows, job, state="failed", finished_at=1, expires_at=9_999_999_999_999)
    with pytest.raises(JobFailed, match="no json"):
        job.result(timeout=1)
    tamper(rows, job, error='["a list"]')
    with pytest.raises(JobFailed):
        job.result(timeout=1)


def test_result_that_cannot_be_read_is_an_error_for_those_who_ask(worker: BackgroundTaskWorker, rows: Rows) -> None:
    worker.start()
    job = worker._registry.find("good").enqueue()
    job.result(timeout=20)
    for text in ("{", '{"$":"os.system","v":1}', "[" * 100_000):
        tamper(rows, job, result=text)
        with pytest.raises(ValueError, match="stored"):
            job.result(timeout=1)


def test_running_job_without_an_owner_harms_nothing_else(worker: BackgroundTaskWorker, rows: Rows) -> None:
    job = worker._registry.find("work").enqueue()
    tamper(rows, job, state="running", worker_id="0abc")
    worker.start()
    goes_on(worker)
    assert job.refresh().state is JobState.RUNNING


@pytest.mark.timing(beat=0.01)
def test_worker_row_of_another_origin_harms_nothing_else(
    worker: BackgroundTaskWorker, rows: Rows, store: Store
) -> None:
    worker.start()
    goes_on(worker)
    for worker_id in ("living", "../../etc/passwd", "", "a\nb", "0" * 300):
        rows(
            "INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) VALUES (?,?,?,?,?,?,?)",
            worker_id, "h\x1b[31m", 1, 1, 1, "alive", "no json",
        )  # fmt: skip
    mine = next(row for row in store.workers() if len(row.id) == 12)
    wait_for(lambda: next(row.beat for row in store.workers() if row.id == mine.id) > mine.beat + 3)
    goes_on(worker)


@pytest.mark.sqlite_only
@pytest.mark.parametrize("worker_id", ["../victim", "{folder}/victim", "../instance1/../victim", "victim"])
def test_worker_row_leads_to_no_file_outside(
    worker: BackgroundTaskWorker, rows: Rows, store: Store, tmp_path: Path, worker_id: str
) -> None:
    """A dead worker's lock file is removed; its name comes from the row."""
    live = Path(f"{store.driver.key}-live")
    victims = [tmp_path / "victim", live.parent / "victim", live / "victim"]
    store.driver.prepare()
    live.mkdir()
    for victim in victims:
        victim.touch()
    rows(
        "INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) VALUES (?,?,?,?,?,?,?)",
        worker_id.format(folder=tmp_path), "h", 1, 1, 1, "alive", "{}",
    )  # fmt: skip
    worker.start()
    goes_on(worker)
    assert [victim.exists() for victim in victims] == [True, True, worker_id != "victim"]
