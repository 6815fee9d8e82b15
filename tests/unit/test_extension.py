"""Starting, stopping, starting again, and apps that come later."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from flask import Flask, current_app
from flask.cli import FlaskGroup

from flask_taskworker import BackgroundTaskWorker, BlockingTaskWorker, JobFailed, JobState, LeaseLost, current_job
from flask_taskworker.errors import AppError, StoreError
from flask_taskworker.store.sql import Store
from flask_taskworker.testing.live import LiveWorker
from flask_taskworker.worker.worker import Worker
from tests.support.apps import KINDS
from tests.support.waiting import wait, wait_for, wait_for_collected

pytestmark = pytest.mark.both_databases(slow="postgresql")

MakeApp = Callable[..., Flask]
MakeWorker = Callable[..., BackgroundTaskWorker]


def our_threads() -> set[threading.Thread]:
    """Those of a running worker; one thread watches the main thread for the whole process."""
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("taskworker")]
    return {thread for thread in ours if thread.name != "taskworker-watch"}


def loops() -> set[threading.Thread]:
    return {thread for thread in our_threads() if thread.name == "taskworker-loop"}


def test_start_without_an_app_says_what_to_do() -> None:
    with pytest.raises(AppError, match=r"Call init_app\(app\) first"):
        BackgroundTaskWorker().start()
    with pytest.raises(AppError, match=r"Call init_app\(app\) first"):
        BlockingTaskWorker().start()


@pytest.mark.sqlite_only
def test_blocking_worker_starts_in_the_main_thread_only(app: Flask) -> None:
    raised: list[BaseException] = []

    def start() -> None:
        try:
            BlockingTaskWorker(app).start()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(20)
    assert "must run in the main thread, where signals arrive" in str(raised[0])


@pytest.mark.sqlite_only
def test_starting_again_is_harmless(task_worker: BackgroundTaskWorker) -> None:
    work = task_worker.task(name="work")(lambda: 1)
    for _ in range(3):
        task_worker.start()
    assert work.enqueue().result(timeout=20) == 1
    assert len(task_worker._state().store.workers()) == 1


@pytest.mark.sqlite_only
def test_stopping_what_does_not_run_is_harmless(idle_worker: BackgroundTaskWorker) -> None:
    idle_worker.stop()
    idle_worker.start()
    idle_worker.stop()
    idle_worker.stop()
    BackgroundTaskWorker().stop()


def test_worker_can_be_started_again_and_again(idle_worker: BackgroundTaskWorker) -> None:
    work = idle_worker.task(name="work")(lambda: 1)
    for _ in range(5):
        job = work.enqueue()
        idle_worker.start()
        assert job.result(timeout=20) == 1
        idle_worker.stop()
        assert idle_worker._state().store.workers() == []


def test_stopped_worker_leaves_no_thread(idle_worker: BackgroundTaskWorker) -> None:
    before = our_threads()
    sync = idle_worker.task(name="sync")(lambda: 1)
    for _ in range(3):
        idle_worker.start()
        for job in sync.enqueue_many([()] * 20):
            job.result(timeout=20)
        idle_worker.stop()
    # What enqueues, with a worker or without, may have a thread for its notifications.
    idle_worker._state().client.close()
    # Those of the test before may be about to end.
    wait_for(lambda: our_threads() <= before)


def test_collected_app_leaves_no_thread(make_app: MakeApp) -> None:
    before = our_threads()

    def use() -> None:
        app = make_app()
        task_worker = BackgroundTaskWorker(app)
        work = task_worker.task(name="work")(lambda: 1)
        task_worker.start()

        async def wait_for_result() -> None:
            await (await work.aenqueue()).aresult(timeout=20)

        asyncio.run(wait_for_result())
        task_worker.stop()

    use()
    wait_for_collected(lambda: our_threads() <= before)


def test_app_that_comes_later_is_served(make_app: MakeApp, make_worker: MakeWorker) -> None:
    first, second = make_app(), make_app()
    task_worker = make_worker(first)
    work = task_worker.task(name="work")(lambda: current_app.import_name)
    task_worker.init_app(second)
    for app in (first, second):
        with app.app_context():
            assert work.enqueue().result(timeout=20) == app.import_name


@pytest.mark.slow
def test_app_that_comes_after_the_last_one_went_is_served(make_app: MakeApp, make_worker: MakeWorker) -> None:
    """As with a factory that is called for each test, after one start()."""
    before = loops()
    task_worker = make_worker(start=False)
    work = task_worker.task(name="work")(lambda: current_app.import_name)
    first = make_app()
    task_worker.init_app(first)
    task_worker.start()
    assert work.enqueue().result(timeout=20) == first.import_name
    del first
    wait_for_collected(lambda: loops() <= before)
    second = make_app()
    task_worker.init_app(second)
    task_worker.start()
    assert work.enqueue().result(timeout=20) == second.import_name


def test_job_that_runs_may_end_before_the_worker_stops(task_worker: BackgroundTaskWorker) -> None:
    started, release = threading.Event(), threading.Event()

    @task_worker.task
    def work() -> str:
        started.set()
        wait(release)
        return "done"

    job, later = work.enqueue(), work.using(delay=3600).enqueue()
    wait(started)
    stopper = threading.Thread(target=task_worker.stop)
    stopper.start()
    store = task_worker._state().store
    wait_for(lambda: [worker.state for worker in store.workers()] == ["draining"])
    waiting = work.enqueue()
    release.set()
    stopper.join(20)
    assert job.result(timeout=1) == "done"
    assert (waiting.refresh().state, later.refresh().state) == (JobState.READY, JobState.SCHEDULED)


def test_job_that_does_not_end_in_time_is_handed_back(task_worker: BackgroundTaskWorker) -> None:
    started = threading.Event()
    cleaned: list[int] = []

    @task_worker.task
    async def work() -> None:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.append(1)

    job = work.enqueue()
    wait(started)
    task_worker.stop(timeout=0)
    assert cleaned == [1]
    job.refresh()
    assert (job.state, job.attempt, job._record.crashes) == (JobState.READY, 1, 0)


def test_sync_job_that_does_not_end_in_time_keeps_its_claim(task_worker: BackgroundTaskWorker) -> None:
    """Its thread runs on: another worker must not run it beside that."""
    started, release = threading.Event(), threading.Event()

    @task_worker.task
    def work() -> None:
        started.set()
        wait(release)

    job = work.enqueue()
    wait(started)
    task_worker.stop(timeout=0)
    assert job.refresh().state is JobState.RUNNING
    task_worker.start()
    assert task_worker.task(name="other")(lambda: 1).enqueue().result(timeout=20) == 1
    assert job.refresh().state is JobState.RUNNING
    release.set()


@pytest.mark.timing(cancel_grace=20.0)
def test_sync_job_that_ends_while_it_is_handed_back_has_ended(app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    begun, both, released = (threading.Event() for _ in range(3))
    workers: list[Worker] = []

    @idle_worker.task(name="late")
    def late() -> int:
        begun.set()
        wait(released)
        return 7

    @idle_worker.task(name="tidies_up")
    async def tidies_up() -> None:
        both.set()
        try:
            await asyncio.sleep(60)
        finally:
            released.set()
            # Until only this one is left.
            while len(workers[0].running_jobs()) > 1:
                await asyncio.sleep(0.001)

    tidies_up.enqueue()
    job = late.enqueue()
    with LiveWorker(app, process=False) as live:
        wait(begun)
        wait(both)
        assert live._runner is not None
        workers += live._runner._workers
        live.stop(timeout=0)
    assert job.refresh().state is JobState.SUCCEEDED
    assert job.result(timeout=1) == 7


def test_sync_jobs_that_still_run_when_their_process_ends_are_handed_back(
    app: Flask, idle_worker: BackgroundTaskWorker
) -> None:
    begun, both, released = (threading.Event() for _ in range(3))

    @idle_worker.task(name="hangs")
    def hangs() -> None:
        begun.set()
        wait(released)

    @idle_worker.task(name="once", at_most_once=True)
    def once() -> None:
        both.set()
        wait(released)

    jobs = hangs.enqueue(), once.enqueue()
    with LiveWorker(app, process=False) as live:
        wait(begun)
        wait(both)
        # In a thread it does all that a process does but end.
        live.stop(timeout=0)
    store = app.extensions["taskworker"].store
    assert [job.refresh().state for job in jobs] == [JobState.READY, JobState.FAILED]
    assert [record.failure_kind for record in map(store.record, [job.id for job in jobs])] == [None, "interrupted"]
    assert store.workers() == []
    released.set()


@pytest.mark.timing(cleaning_interval=0.05)
def test_claim_of_which_its_worker_knows_nothing_is_handed_back(make_app: MakeApp, make_worker: MakeWorker) -> None:
    app = make_app(TASKER_LOOP_INTERVAL=0.05)
    task_worker = make_worker(app)
    task = task_worker.task(name="work")(lambda: 7)
    store = app.extensions["taskworker"].store
    (row,) = wait_for(store.workers)
    job = task.using(delay=3600).enqueue()
    late = "UPDATE taskworker_job SET state = 'running', claim = 1, worker_id = :worker WHERE id = :id"
    store.driver.write(late, {"worker": row.id, "id": job.id})
    assert job.result(timeout=20) == 7


def test_async_job_may_stop_its_worker(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    async def work() -> str:
        task_worker.stop()
        return "stopping"

    job = work.enqueue()
    store = task_worker._state().store
    wait_for(lambda: job.refresh().state.finished)
    assert job.result(timeout=1) == "stopping"
    wait_for(lambda: not store.workers())
    task_worker.start()
    assert task_worker.task(name="other")(lambda: 1).enqueue().result(timeout=20) == 1


@pytest.mark.timing(beat=0.02)
@pytest.mark.parametrize("kind", KINDS)
def test_worker_that_was_declared_dead_comes_back_under_a_new_id(
    idle_worker: BackgroundTaskWorker, rows: Callable[..., Any], kind: str
) -> None:
    """It was frozen, perhaps. Whatever it runs belongs to another worker now."""
    seen: list[Any] = []

    def look() -> str:
        if current_job.claim > 1:
            return "again"
        while True:
            current_job.check()

    def work() -> str:
        try:
            return look()
        except LeaseLost:
            seen.append("lost")
            raise

    async def work_async() -> str:
        if current_job.claim > 1:
            return "again"
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            seen.append("lost")
        return "never"

    idle_worker.start()
    job = idle_worker.task(name="work")(work if kind == "sync" else work_async).enqueue()
    wait_for(lambda: job.refresh().state is JobState.RUNNING)
    store = idle_worker._state().store
    (before,) = store.workers()
    rows("UPDATE taskworker_worker SET state = 'dead'")
    assert job.result(timeout=20) == "again"
    wait_for(lambda: seen == ["lost"])
    alive = [worker.id for worker in store.workers() if worker.state == "alive"]
    assert len(alive) == 1
    assert alive != [before.id]
    job.refresh()
    assert (job._record.claim, job._record.crashes, job.attempt) == (2, 1, 1)


@pytest.mark.timing(beat=0.02)
def test_at_most_once_job_of_a_worker_that_was_declared_dead_does_not_run_again(
    idle_worker: BackgroundTaskWorker, rows: Callable[..., Any]
) -> None:
    """Not even where the worker that declared it dead has died before it could sweep."""
    runs: list[int] = []

    @idle_worker.task(at_most_once=True)
    async def pay() -> None:
        runs.append(current_job.claim)
        await asyncio.get_running_loop().create_future()

    idle_worker.start()
    job = pay.enqueue()
    wait_for(lambda: runs)
    rows("UPDATE taskworker_worker SET state = 'dead'")
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=20)
    assert caught.value.kind == "interrupted"
    assert idle_worker.task(name="next")(lambda: 1).enqueue().result(timeout=20) == 1
    assert runs == [1]


@pytest.mark.timing(beat=0.01)
def test_worker_that_does_not_beat_is_given_up_after_its_lease(
    idle_worker: BackgroundTaskWorker, rows: Callable[..., Any]
) -> None:
    job = idle_worker.task(name="work")(lambda: "rescued").enqueue()
    columns = "(id, host, pid, started_at, beat, beat_at, state, info)"
    rows(f"INSERT INTO taskworker_worker {columns} VALUES ('0f0e', 'h', 1, 1, 7, 1, 'alive', '{{}}')")
    rows("UPDATE taskworker_job SET state = 'running', claim = 1, worker_id = '0f0e'")
    idle_worker.start()
    assert job.result(timeout=20) == "rescued"
    assert {worker.id: worker.state for worker in idle_worker._state().store.workers()}["0f0e"] == "dead"


@pytest.mark.timing(beat=0.01)
@pytest.mark.parametrize(
    ("state", "info", "words"),
    [
        ("alive", '{"name": "mail-1"}', "worker 0f0e (mail-1, pid 4711 on farm-7) is dead"),
        ("alive", '{"name": ""}', "worker 0f0e (pid 4711 on farm-7) is dead"),
        ("draining", "{}", "worker 0f0e (pid 4711 on farm-7) has left"),
        ("alive", "[damaged", "worker 0f0e (pid 4711 on farm-7) is dead"),
        ("alive", '{"name": "a\\nb"}', "worker 0f0e (a\\nb, pid 4711 on farm-7) is dead"),
    ],
)
@pytest.mark.sqlite_only
def test_log_tells_where_the_worker_ran_that_is_dead(
    idle_worker: BackgroundTaskWorker,
    store: Store,
    rows: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    state: str,
    info: str,
    words: str,
) -> None:
    store.driver.prepare()
    columns = "(id, host, pid, started_at, beat, beat_at, state, info)"
    rows(f"INSERT INTO taskworker_worker {columns} VALUES ('0f0e', 'farm-7', 4711, 1, 7, 1, ?, ?)", state, info)
    idle_worker.start()
    wait_for(lambda: words in caplog.messages, words)


@pytest.mark.sqlite_only
def test_start_tells_its_caller_that_the_database_cannot_be_opened(make_app: MakeApp, tmp_path: Any) -> None:
    app = make_app(TASKER_DATABASE_URI=f"sqlite:///{tmp_path}")
    before = loops()
    task_worker = BackgroundTaskWorker(app)
    with pytest.raises(StoreError, match="TASKER_DATABASE_URI"):
        task_worker.start()
    task_worker.stop()
    assert loops() <= before


def test_worker_row_tells_about_the_worker(make_app: MakeApp, make_worker: MakeWorker) -> None:
    import importlib.metadata
    import json
    import os
    import socket

    app = make_app(TASKER_QUEUES=["a", "b"], TASKER_CONCURRENCY=7, TASKER_THREADS=3)
    task_worker = make_worker(app)
    (row,) = wait_for(lambda: app.extensions["taskworker"].store.workers())
    assert (row.host, row.pid, row.state) == (socket.gethostname(), os.getpid(), "alive")
    info = json.loads(row.info)
    assert (info["queues"], info["concurrency"], info["threads"]) == (["a", "b"], 7, 3)
    assert info["version"] == importlib.metadata.version("Flask-TaskWorker")
    task_worker.stop()


@pytest.mark.sqlite_only
def test_mistyped_key_is_warned_of_with_the_right_one(make_app: MakeApp, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(TASKER_THREAD=2)
    BackgroundTaskWorker(app)
    assert "has TASKER_THREAD, which means nothing. Did you mean TASKER_THREADS?" in caplog.text


TOLD = "start() does nothing under flask {}, so no job runs in it. Use: flask tasks run"


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        (BackgroundTaskWorker, "routes", None),
        (BackgroundTaskWorker, "greet", None),
        (BackgroundTaskWorker, "tasks list", None),
        (BlockingTaskWorker, "tasks list", None),
        (BlockingTaskWorker, "run", TOLD.format("run")),
        (BackgroundTaskWorker, "work", TOLD.format("work")),
        (BlockingTaskWorker, "work", TOLD.format("work")),
    ],
)
@pytest.mark.sqlite_only
def test_start_that_does_nothing_is_reported_where_it_may_surprise(
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: Any,
    arguments: str,
    told: str | None,
) -> None:
    """Not where a command only imports a module that calls it."""
    monkeypatch.setattr("flask.cli.run_simple", lambda *args, **options: None)
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")  # the command sets it, for good

    def create_app() -> Flask:
        task_worker = kind(app := make_app())
        app.cli.command("greet")(lambda: None)
        app.cli.command("work")(lambda: task_worker.start())
        task_worker.start()
        return app

    with caplog.at_level(logging.DEBUG, "flask_taskworker.worker"):
        cli = FlaskGroup(create_app=create_app, load_dotenv=False)
        result = CliRunner().invoke(cli, arguments.split(), prog_name="flask")
    assert result.exit_code == 0, result.output
    records = [record for record in caplog.records if record.name == "flask_taskworker.worker"]
    assert {record.message for record in records if record.levelno > logging.DEBUG} == ({told} if told else set())
    assert {record.message for record in records} != set(), "at DEBUG each is logged"


@pytest.mark.sqlite_only
def test_stopping_worker_tells_what_it_waits_for(
    task_worker: BackgroundTaskWorker, caplog: pytest.LogCaptureFixture
) -> None:
    begun, release = threading.Event(), threading.Event()
    job = task_worker.task(name="work")(lambda: begun.set() or wait(release)).enqueue()
    wait(begun)
    with caplog.at_level(logging.INFO):
        stopping = threading.Thread(target=task_worker.stop, args=(20,))
        stopping.start()
        wait_for(lambda: "waits for running jobs (1)" in caplog.text, "the log names the job")
        release.set()
        stopping.join(20)
    assert job.refresh().state == "succeeded"
    caplog.clear()
    task_worker.start()
    task_worker.stop(20)
    assert "waits for" not in caplog.text


@pytest.mark.timing(beat=0.02)
def test_job_of_a_worker_without_a_row_is_rescued(idle_worker: BackgroundTaskWorker, rows: Callable[..., Any]) -> None:
    job = idle_worker.task(name="work")(lambda: "rescued").enqueue()
    rows("UPDATE taskworker_job SET state = 'running', claim = 1, worker_id = '0f0e'")
    idle_worker.start()
    assert job.result(timeout=20) == "rescued"


@pytest.mark.sqlite_only
def test_jobs_that_are_due_together_begin_in_the_order_of_their_priorities(
    idle_worker: BackgroundTaskWorker, rows: Callable[..., Any]
) -> None:
    ran: list[int] = []

    @idle_worker.task
    async def work(number: int) -> None:
        ran.append(number)

    work.using(delay=3600, priority=1).enqueue_many([(1,)] * 600)
    work.using(delay=3600, priority=9).enqueue(9)
    rows("UPDATE taskworker_job SET run_at = 1 + id")
    idle_worker.start()
    wait_for(lambda: 9 in ran)
    assert ran.index(9) == 0
