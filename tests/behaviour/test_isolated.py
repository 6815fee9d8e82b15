"""Jobs in processes of their own: they behave as others do, and end when they are to end."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask, g

from flask_taskworker import BackgroundTaskWorker, JobCancelled, JobFailed, JobState, signals
from flask_taskworker.errors import DeclarationError
from flask_taskworker.ops.browse import Browser
from flask_taskworker.testing import Jobs
from flask_taskworker.worker.bounds import resident_mb
from tests.support.apps import task_worker_of
from tests.support.isolated import create_app, engines, is_alive, noted
from tests.support.waiting import wait, wait_for

pytestmark = [
    pytest.mark.both_databases(slow="postgresql"),
    pytest.mark.timing(beat=0.02),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]


@pytest.fixture(autouse=True)
def disposed() -> Iterator[None]:
    yield
    while engines:
        engines.pop().dispose()


@pytest.fixture
def isolated(tmp_path: Path, driver: str, request: pytest.FixtureRequest) -> Iterator[BackgroundTaskWorker]:
    """The worker of an app that its jobs' processes can load, started."""
    with ExitStack() as stack:
        uri = f"sqlite:///{tmp_path}/taskworker.db"
        if driver == "postgresql":
            uri = stack.enter_context(request.getfixturevalue("schema_pool").schema())
        app = create_app(uri, str(tmp_path))
        task_worker = task_worker_of(app)
        task_worker._timing = request.getfixturevalue("timing")
        stack.callback(app.extensions["taskworker"].client.close)
        stack.callback(task_worker.stop, timeout=0)
        task_worker.start()
        yield task_worker


def test_isolated_job_has_a_process_of_its_own(isolated: BackgroundTaskWorker) -> None:
    jobs = isolated.tasks["where"].enqueue_many([(), ()])
    first, second = [job.result(timeout=30) for job in jobs]
    assert len({os.getpid(), first[0], second[0]}) == 3
    assert first[1] == "isolated"
    wait_for(lambda: not is_alive(first[0]), "its process has ended")


def test_isolated_job_sees_and_shows_what_others_do(isolated: BackgroundTaskWorker) -> None:
    app = isolated._state().find_app()
    assert app is not None
    with app.app_context():
        g.tenant = "north"
        job = isolated.tasks["see"].enqueue()
        found = job.result(timeout=30)
    expected = {"id": job.id, "attempt": 1, "tenant": "north", "around": "see", "result": "isolated", "steps": [1, 2]}
    assert found == expected
    progress = job.refresh().progress
    assert progress is not None
    assert (progress.done, progress.total, progress.text) == (3, 4, "nearly")
    assert [line.text for line in Browser(isolated._state().store).job(job.id).lines[1]] == ["a line of the job"]


def test_progress_and_lines_of_an_isolated_job_are_seen_while_it_runs(
    isolated: BackgroundTaskWorker, tmp_path: Path
) -> None:
    job = isolated.tasks["report"].enqueue()
    progress = wait_for(lambda: job.refresh().progress, "there is progress")
    assert (progress.done, progress.total, progress.text) == (1, 2, "half")
    browser = Browser(isolated._state().store)
    wait_for(lambda: [line.text for line in browser.job(job.id).lines.get(1, [])] == ["half of it"], "the line is seen")
    (tmp_path / "go").touch()
    job.result(timeout=30)


def test_isolated_job_fails_with_its_own_traceback_and_is_retried(
    isolated: BackgroundTaskWorker, caplog: pytest.LogCaptureFixture
) -> None:
    heard = []
    failed = threading.Event()

    @signals.job_failed.connect
    def on_failed(app: Flask, exception: BaseException, **_: object) -> None:
        heard.append(exception)
        failed.set()

    job = isolated.tasks["fail"].enqueue()
    with pytest.raises(JobFailed, match="KeyError: 'try 2'") as caught:
        job.result(timeout=30)
    assert caught.value.kind == "exception"
    assert 'raise KeyError(f"try {current_job.attempt}")' in caught.value.traceback
    wait(failed)
    assert [repr(error) for error in heard] == ["KeyError('try 2')"]
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [line.count('raise KeyError(f"try {current_job.attempt}")') for line in lines] == [1]


def test_isolated_atomic_task_commits_with_its_success(isolated: BackgroundTaskWorker) -> None:
    for number in range(3):
        isolated.tasks["keep"].enqueue(f"row {number}").result(timeout=30)
    rows = isolated._state().store.driver.read("SELECT text FROM kept ORDER BY text", {})
    assert [text for (text,) in rows] == ["row 0", "row 1", "row 2"]


def test_timeout_ends_a_loop_in_c(isolated: BackgroundTaskWorker) -> None:
    with pytest.raises(JobFailed, match="TimeoutError: The task did not end within 1 s.") as caught:
        isolated.tasks["count"].enqueue().result(timeout=60)
    assert caught.value.kind == "timeout"
    # The slot is free again, and nothing hangs.
    assert isolated.tasks["where"].enqueue().result(timeout=30)[1] == "isolated"
    assert isolated._workers()[0].work_loop.jobs.counts() == {"async": 0, "sync": 0}


@pytest.mark.parametrize(
    ("how", "words"),
    [("exit", "ended with exit code 3"), ("crash", "was killed by SIGSEGV"), ("kill", "was killed by SIGKILL")],
)
def test_death_of_the_process_fails_one_try_and_says_how(isolated: BackgroundTaskWorker, how: str, words: str) -> None:
    worker = isolated._workers()[0]
    job = isolated.tasks["die"].enqueue(how)
    with pytest.raises(JobFailed, match=f"ProcessDied: The process of the job {words}") as caught:
        job.result(timeout=30)
    assert caught.value.kind == "crashed"
    assert isolated.tasks["where"].enqueue().result(timeout=30)[1] == "isolated"
    assert isolated._workers() == [worker]
    assert isolated._state().store.record(job.id).failures == 1


def test_cancelling_ends_an_isolated_job_and_what_it_has_started(
    isolated: BackgroundTaskWorker, tmp_path: Path
) -> None:
    job = isolated.tasks["hold"].enqueue()
    pids = [noted(tmp_path / "job-1"), noted(tmp_path / "child")]
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout=30)
    wait_for(lambda: not any(map(is_alive, pids)), "both processes have ended")
    # It could leave its with and finally blocks.
    assert (tmp_path / "left").exists()


def test_shutdown_ends_an_isolated_job_and_hands_it_back(isolated: BackgroundTaskWorker, tmp_path: Path) -> None:
    job = isolated.tasks["hold"].enqueue()
    pids = [noted(tmp_path / "job-1"), noted(tmp_path / "child")]
    isolated.stop(timeout=0)
    assert job.refresh().state is JobState.READY
    assert isolated._state().store.record(job.id).failures == 0
    wait_for(lambda: not any(map(is_alive, pids)), "both processes have ended")


def test_isolated_job_hands_itself_over_when_its_worker_stops(isolated: BackgroundTaskWorker, tmp_path: Path) -> None:
    job = isolated.tasks["hand_over"].enqueue()
    noted(tmp_path / "job-1")
    isolated.stop(timeout=30)
    assert job.refresh().state is JobState.READY
    isolated.start()
    assert job.result(timeout=30) == "went on"


def test_lost_lease_ends_an_isolated_job(isolated: BackgroundTaskWorker, tmp_path: Path) -> None:
    isolated.tasks["hold"].enqueue()
    pid = noted(tmp_path / "job-1")
    isolated._workers()[0]._call(isolated._workers()[0]._on_lost)
    wait_for(lambda: not is_alive(pid), "its process has ended")


def test_death_of_the_job_server_fails_one_try_and_the_next_job_starts_another(
    isolated: BackgroundTaskWorker, tmp_path: Path
) -> None:
    job = isolated.tasks["hold"].enqueue()
    pid = noted(tmp_path / "job-1")
    server = isolated._workers()[0].work_loop.jobs._executor.server
    assert server._process is not None
    server._process.kill()
    with pytest.raises(JobFailed, match="ProcessDied"):
        job.result(timeout=30)
    wait_for(lambda: not is_alive(pid), "its process has ended")
    assert isolated.tasks["where"].enqueue().result(timeout=30)[1] == "isolated"


@pytest.mark.sqlite_only
def test_memory_of_an_isolated_job_is_not_the_workers(isolated: BackgroundTaskWorker) -> None:
    isolated.tasks["where"].enqueue().result(timeout=30)
    before = resident_mb()
    assert isolated.tasks["leak"].enqueue(200).result(timeout=30) == 200 << 20
    after = resident_mb()
    assert before is not None
    assert after is not None
    assert after - before < 50


# -- where it cannot work ----------------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_app_that_cannot_be_loaded_is_reported_with_the_remedy_and_jobs_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(f"sqlite:///{tmp_path}/taskworker.db", str(tmp_path), TASKER_APP="no_such_module:create_app()")
    task_worker = task_worker_of(app)
    task_worker.start()
    try:
        wait_for(lambda: "Set TASKER_APP to what flask --app takes" in caplog.text, "the worker has said so")
        assert "no_such_module" in caplog.text
        job = task_worker.tasks["where"].enqueue()
        wait_for(lambda: job.refresh().state is JobState.SCHEDULED, f"{job} is back in its queue")
        assert task_worker._state().store.record(job.id).failures == 0
    finally:
        task_worker.stop(timeout=0)


@pytest.mark.sqlite_only
def test_app_with_another_database_runs_no_isolated_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = f"tests.support.isolated:create_app('sqlite:///{tmp_path}/other.db', {str(tmp_path)!r})"
    app = create_app(f"sqlite:///{tmp_path}/taskworker.db", str(tmp_path), TASKER_APP=other)
    task_worker = task_worker_of(app)
    task_worker.start()
    wait_for(lambda: "other.db, not in" in caplog.text, "the worker has said so")
    task_worker.stop(timeout=0)


@pytest.mark.sqlite_only
def test_testing_kit_runs_isolated_jobs_in_this_process(app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    @idle_worker.task(isolate=True)
    def where() -> int:
        return os.getpid()

    job = where.enqueue()
    assert Jobs(app).drain().succeeded == 1
    assert job.result(timeout=1) == os.getpid()


@pytest.mark.sqlite_only
def test_isolate_is_refused_where_it_cannot_work(
    idle_worker: BackgroundTaskWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeclarationError, match="isolate=True takes sync tasks only"):

        @idle_worker.task(isolate=True)
        async def work() -> None: ...

    monkeypatch.delattr(os, "fork")
    with pytest.raises(DeclarationError, match="needs os.fork, which this system does not have"):

        @idle_worker.task(isolate=True)
        def work_too() -> None: ...
