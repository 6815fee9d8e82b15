"""What operators read: the job's context in every record, levels, and nothing that would forge a line."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app

from flask_taskworker import BackgroundTaskWorker, Job, JobFailed, JobState, Retry, signals
from flask_taskworker.worker import job_log as job_logs
from tests.support.apps import KINDS
from tests.support.waiting import wait_for

MakeApp = Callable[..., Flask]
MakeWorker = Callable[..., BackgroundTaskWorker]

log = logging.getLogger("the.application")
FORMAT = logging.Formatter("%(taskworker_job)s %(taskworker_task)s %(taskworker_attempt)s: %(message)s")


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, logger: str) -> list[str]:
        return [FORMAT.format(record) for record in self.records if record.name == logger]

    def said(self, words: str) -> list[logging.LogRecord]:
        return [record for record in self.records if words in record.getMessage()]


@pytest.fixture
def records() -> Iterator[Records]:
    handler, root = Records(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(level)
    root.removeHandler(handler)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sqlite_only
def test_records_of_a_job_carry_its_context(task_worker: BackgroundTaskWorker, records: Records, kind: str) -> None:
    def work() -> None:
        log.info("one")
        current_app.logger.warning("of the app")
        if job_logs.running_job().claim.attempt == 1:  # type: ignore[union-attr]
            raise ValueError

    async def work_async() -> None:
        await asyncio.sleep(0)
        work()
        await asyncio.create_task(inner())

    async def inner() -> None:
        log.info("beside")

    task = task_worker.task(name="work", retry=Retry(2, base=0.001))(work if kind == "sync" else work_async)
    job = task.enqueue()
    job.result(timeout=20)
    expected = [f"{job.id} work 1: one", f"{job.id} work 2: one"]
    assert records.of("the.application") == expected + ([f"{job.id} work 2: beside"] if kind == "async" else [])
    assert records.of("app1") == [f"{job.id} work {attempt}: of the app" for attempt in (1, 2)]


@pytest.mark.sqlite_only
def test_records_outside_of_a_job_have_an_empty_context(task_worker: BackgroundTaskWorker, records: Records) -> None:
    task_worker.task(name="work")(lambda: None).enqueue().result(timeout=20)
    log.info("outside")
    assert records.of("the.application") == ["None None None: outside"]


@pytest.mark.sqlite_only
def test_jobs_at_once_keep_their_contexts_apart(task_worker: BackgroundTaskWorker, records: Records) -> None:
    barrier = threading.Barrier(3)
    arrived: list[int] = []

    @task_worker.task
    def sync() -> None:
        barrier.wait(20)
        log.info("from a thread")

    @task_worker.task
    async def on_the_loop() -> None:
        arrived.append(1)
        while len(arrived) < 3:
            await asyncio.sleep(0.001)
        log.info("from the loop")

    jobs = [*sync.enqueue_many([()] * 3), *on_the_loop.enqueue_many([()] * 3)]
    for job in jobs:
        job.result(timeout=20)
    said = records.of("the.application")
    assert sorted(said) == sorted(
        f"{job.id} {job.task} 1: from {'a thread' if job.task == sync.name else 'the loop'}" for job in jobs
    )


@pytest.mark.sqlite_only
def test_context_is_added_to_what_others_have_made_of_records(
    app: Flask, idle_worker: BackgroundTaskWorker, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.request_id = "r1"
        return record

    logging.setLogRecordFactory(factory)
    try:
        for _ in range(2):
            idle_worker.start()
            job = idle_worker.task(name="work")(lambda: log.info("hello")).enqueue()
            job.result(timeout=20)
            idle_worker.stop()
        record = records.said("hello")[-1]
        assert (record.request_id, record.taskworker_job) == ("r1", job.id)  # type: ignore[attr-defined]
        log.info("hello", extra={"job": "mine", "task": "mine"})  # such names stay free
    finally:
        logging.setLogRecordFactory(before)


# -- levels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "app_debug", "level"),
    [
        (None, False, logging.DEBUG),
        (None, True, logging.INFO),
        (True, False, logging.INFO),
        (False, True, logging.DEBUG),
    ],
)
@pytest.mark.sqlite_only
def test_each_job_is_logged_at_a_level_by_the_configuration(
    make_app: MakeApp, make_worker: MakeWorker, records: Records, configured: bool | None, app_debug: bool, level: int
) -> None:
    app = make_app(TASKER_DEBUG=configured)
    task_worker = make_worker(app)
    app.debug = app_debug  # as app.run(debug=True) sets it: late
    job = task_worker.task(name="work")(lambda: None).enqueue()
    job.result(timeout=20)
    (record,) = wait_for(lambda: records.said(f"job {job.id} (work) succeeded after"))
    assert record.levelno == level


@pytest.mark.parametrize(("configured", "debug"), [(None, True), (False, False)])
@pytest.mark.sqlite_only
def test_debug_mode_of_the_loop_follows_an_app_debug_that_is_set_late(
    make_app: MakeApp, make_worker: MakeWorker, configured: bool | None, debug: bool
) -> None:
    app = make_app(TASKER_DEBUG=configured)
    task_worker = make_worker(app)

    @task_worker.task
    async def look() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert look.enqueue().result(timeout=20) is False
    app.debug = True
    # The worker's turn that claims the next one may have begun before that.
    look.enqueue().result(timeout=20)
    assert look.enqueue().result(timeout=20) is debug


@pytest.mark.parametrize("retry", [None, 5])
@pytest.mark.sqlite_only
def test_final_failure_is_an_error_and_a_try_that_is_repeated_a_warning(
    task_worker: BackgroundTaskWorker, records: Records, retry: int | None
) -> None:
    def work() -> None:
        raise ValueError("no luck")

    job = task_worker.task(name="work", retry=Retry(5, base=3600, jitter=0) if retry else None)(work).enqueue()
    wait_for(lambda: job.refresh().state in (JobState.FAILED, JobState.SCHEDULED))
    (record,) = wait_for(lambda: records.said(f"job {job.id} (work) {'retrying' if retry else 'failed'} after"))
    assert record.levelno == (logging.WARNING if retry else logging.ERROR)
    assert record.name == "flask_taskworker.jobs"
    assert "ValueError: no luck" in record.getMessage()
    assert ("again in 3.6e+03 s" in record.getMessage()) == bool(retry)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


@pytest.mark.parametrize("words", ["a\nCRITICAL root: forged", "a\r\nb", "\x1b[31mred", "a\u2028b"])
@pytest.mark.sqlite_only
def test_line_cannot_be_forged_by_the_words_of_an_exception(
    task_worker: BackgroundTaskWorker, records: Records, words: str
) -> None:
    def work() -> None:
        raise ValueError(words)

    job = task_worker.task(name="work")(work).enqueue()
    wait_for(lambda: job.refresh().state is JobState.FAILED)
    (record,) = wait_for(lambda: records.said(f"job {job.id} (work) failed"))
    assert record.getMessage().isprintable()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sqlite_only
def test_logging_that_raises_harms_neither_job_nor_worker(
    task_worker: BackgroundTaskWorker, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no space left")

    broken = Broken()
    ours = logging.getLogger("flask_taskworker")
    ours.addHandler(broken)
    monkeypatch.setattr(ours, "level", logging.DEBUG)

    async def fail_async() -> None:
        raise ValueError("no luck")

    def fail() -> None:
        raise ValueError("no luck")

    try:
        job = task_worker.task(name="fails")(fail if kind == "sync" else fail_async).enqueue()
        with pytest.raises(JobFailed, match="no luck"):
            job.result(timeout=20)
        assert task_worker.task(name="next")(lambda: 1).enqueue().result(timeout=20) == 1
        task_worker.stop()
    finally:
        ours.removeHandler(broken)
    assert "flask_taskworker.jobs: logging" in capsys.readouterr().err


@pytest.mark.sqlite_only
def test_start_and_stop_of_a_worker_are_logged(app: Flask, idle_worker: BackgroundTaskWorker, records: Records) -> None:
    idle_worker.start()
    idle_worker.task(name="work")(lambda: None).enqueue().result(timeout=20)
    idle_worker.stop()
    (started,), (stopped,) = records.said("works on all queues"), records.said("has stopped")
    assert started.levelno == stopped.levelno == logging.INFO


@pytest.mark.sqlite_only
def test_nothing_is_logged_for_jobs_without_debug(task_worker: BackgroundTaskWorker, records: Records) -> None:
    """A line costs as much as the rest of a job."""
    task_worker.task(name="work", retry=2)(lambda: 5).enqueue().result(timeout=20)
    ours = [record for record in records.records if record.name.startswith("flask_taskworker")]
    # That of a busy machine, which stands still.
    ours = [record for record in ours if "event loop" not in record.getMessage()]
    assert not [record for record in ours if record.levelno > logging.DEBUG and "worker" not in record.getMessage()]


@pytest.mark.sqlite_only
def test_receivers_of_signals_log_outside_of_the_job(idle_worker: BackgroundTaskWorker, records: Records) -> None:
    def hear(sender: Flask, job: Job[Any], **_: Any) -> None:
        log.info("heard")

    with signals.job_succeeded.connected_to(hear):
        idle_worker.start()
        idle_worker.task(name="work")(lambda: None).enqueue()
        wait_for(lambda: records.said("heard"))
    assert records.of("the.application") == ["None None None: heard"]


@pytest.mark.parametrize(
    "set_up", ["", pytest.param("logging.basicConfig(level=logging.INFO)", marks=pytest.mark.slow)]
)
def test_debug_mode_shows_what_the_worker_does_once_on_a_terminal_without_logging(tmp_path: Path, set_up: str) -> None:
    script = f"""
import logging, sys
from flask import Flask
from flask_taskworker import BackgroundTaskWorker
{set_up}
app = Flask("shop", instance_path=sys.argv[1])
app.debug = True
task_worker = BackgroundTaskWorker(app)
@task_worker.task
async def work() -> None: ...
task_worker.start()
with app.app_context():
    work.enqueue().result(timeout=30)
task_worker.stop()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "instance"], capture_output=True, text=True, timeout=60, check=True
    )
    assert len(re.findall(r"job 1 \(__main__.work\) succeeded", done.stderr)) == 1
    assert len(re.findall(r"worker \S+ works on", done.stderr)) == 1
