"""The log lines of a job: those of each try, the last ones, while it runs and afterwards."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, cast

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Job, JobState, RetryJob, SnoozeJob, current_job
from flask_taskworker.core.config import TaskWorkerConfig
from flask_taskworker.core.current_job import RunningJob
from flask_taskworker.core.rows import Claim
from flask_taskworker.errors import ConfigError
from flask_taskworker.ops.browse import Browser
from flask_taskworker.ops.rows import LogLine
from flask_taskworker.store import work
from flask_taskworker.store.sql import Store
from flask_taskworker.worker.job_log import LONGEST_PAUSE, MAX_LINES, MAX_TEXT, LoggingJobs, keep_line, lines_of
from tests.support.apps import KINDS
from tests.support.stored import Rows, store_jobs
from tests.support.waiting import wait, wait_for

pytestmark = pytest.mark.both_databases(slow="postgresql")

MakeApp = Callable[..., Flask]
MakeWorker = Callable[..., BackgroundTaskWorker]


@pytest.fixture(autouse=True)
def log() -> Iterator[logging.Logger]:
    """A logger that logs everything, without a handler to say it."""
    logger = logging.getLogger("shop")
    logger.setLevel(1)
    logger.propagate = False
    yield logger
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def lines(store: Store, job: Job[Any]) -> dict[int, list[LogLine]]:
    return Browser(store).job(job.id).lines


def texts(store: Store, job: Job[Any], claim: int = 1) -> list[str]:
    return [line.text for line in lines(store, job).get(claim, [])]


@pytest.mark.sqlite_only
def test_a_line_is_kept_with_its_moment_level_and_logger(
    task_worker: BackgroundTaskWorker, store: Store, log: logging.Logger
) -> None:
    @task_worker.task
    def report(name: str) -> None:
        log.info("writing %s", name)
        log.getChild("db").warning("slow")

    before = store.clock()
    job = report.enqueue("sales")
    # They may be written while the job runs, one by one.
    found = wait_for(lambda: (f := lines(store, job)) and len(f[1]) > 1 and f)
    assert [(line.level, line.logger, line.text) for line in found[1]] == [
        ("INFO", "shop", "writing sales"),
        ("WARNING", "shop.db", "slow"),
    ]
    assert all(before - 1 <= line.at <= store.clock() for line in found[1])


def test_each_try_has_its_lines_however_it_ended(
    task_worker: BackgroundTaskWorker, store: Store, log: logging.Logger
) -> None:
    @task_worker.task
    async def work() -> int:
        log.info("try %s", current_job.claim)
        match current_job.claim:
            case 1:
                raise SnoozeJob(0)
            case 2:
                raise RetryJob(delay=0)
            case _:
                return 7

    @task_worker.task
    def fail() -> None:
        log.info("about to fail")
        raise ValueError("no")

    jobs = work.enqueue(), fail.enqueue()
    wait_for(lambda: 3 in lines(store, jobs[0]) and 1 in lines(store, jobs[1]))
    assert {claim: [line.text for line in found] for claim, found in lines(store, jobs[0]).items()} == {
        1: ["try 1"],
        2: ["try 2"],
        3: ["try 3"],
    }
    # How it ended is stored already: what the worker says of it is not among the lines.
    assert texts(store, jobs[1]) == ["about to fail"]


@pytest.mark.parametrize("kind", KINDS)
def test_lines_can_be_followed_while_the_job_runs(
    task_worker: BackgroundTaskWorker, store: Store, log: logging.Logger, kind: str
) -> None:
    go_on, both = threading.Event(), threading.Event()

    def wait_twice() -> None:
        log.info("one")
        wait(go_on)
        log.info("two")
        wait(both)
        log.info("three")

    @task_worker.task(name="sync")
    def sync() -> None:
        wait_twice()

    @task_worker.task(name="async")
    async def asynchronous() -> None:
        await asyncio.to_thread(wait_twice)

    job = (sync if kind == "sync" else asynchronous).enqueue()
    wait_for(lambda: texts(store, job) == ["one"])
    assert job.refresh().state is JobState.RUNNING
    go_on.set()
    wait_for(lambda: texts(store, job) == ["one", "two"])
    assert job.refresh().state is JobState.RUNNING
    both.set()
    wait_for(lambda: texts(store, job) == ["one", "two", "three"])


@pytest.mark.sqlite_only
def test_lines_of_jobs_that_run_at_once_are_not_mixed(
    task_worker: BackgroundTaskWorker, store: Store, log: logging.Logger
) -> None:
    ran: list[str] = []

    @task_worker.task
    async def chat(name: str) -> None:
        for number in range(5):
            log.info("%s %s", name, number)
            await asyncio.sleep(0)
        thread = threading.Thread(target=log.info, args=("of a thread of its own",))
        thread.start()
        await asyncio.to_thread(thread.join)
        ran.append(name)

    jobs = {name: chat.enqueue(name) for name in "abc"}
    log.info("outside")
    wait_for(lambda: all(lines(store, job) for job in jobs.values()) and len(ran) == 3)
    for name, job in jobs.items():
        wait_for(lambda job=job, name=name: texts(store, job) == [f"{name} {number}" for number in range(5)])


def test_the_last_lines_are_kept_each_of_bounded_size(
    task_worker: BackgroundTaskWorker, store: Store, log: logging.Logger
) -> None:
    @task_worker.task
    def chatter() -> None:
        for number in range(300):
            log.info("line %s", number)
        log.info("x" * 5_000)

    job = chatter.enqueue()
    wait_for(lambda: job.refresh().state.finished and len(texts(store, job)) == 200)
    found = wait_for(lambda: (t := texts(store, job))[-1].startswith("x") and t)
    assert found[:-1] == [f"line {number}" for number in range(101, 300)]
    assert found[-1] == "x" * 1_999 + "…"


@pytest.mark.sqlite_only
def test_an_exception_is_kept_by_its_end(task_worker: BackgroundTaskWorker, store: Store, log: logging.Logger) -> None:
    @task_worker.task
    def careful() -> None:
        for words in ("short", "l" * 3_000):
            try:
                raise ValueError(words)
            except ValueError:
                log.exception("m" * len(words))

    job = careful.enqueue()
    short, long = wait_for(lambda: len(t := texts(store, job)) > 1 and t)
    assert short.startswith("mmmmm\nTraceback (most recent call last):")
    assert short.endswith("ValueError: short")
    assert len(long) == 2_000
    assert long.startswith("m" * 999 + "…\n…\n")
    assert long.endswith("lll")


class Spiteful:
    def __str__(self) -> str:
        raise RuntimeError("I have no words")


@pytest.mark.sqlite_only
def test_no_line_harms_its_job(task_worker: BackgroundTaskWorker, store: Store, log: logging.Logger) -> None:
    @task_worker.task
    def spite() -> None:
        # What the application's handlers make of these is theirs; pytest's raises.
        with suppress(RuntimeError):
            log.info("%s", Spiteful())
        with suppress(TypeError):
            log.info("%d", "x")
        log.info("\0 and \ud800 and ü")

    job = spite.enqueue()
    found = wait_for(lambda: len(t := texts(store, job)) > 2 and t)
    job.result(timeout=20)
    assert found[0] == "%s (RuntimeError when its text was asked for)"
    assert found[1].startswith("%d (TypeError")
    assert found[2] == "\\0 and \\ud800 and ü"


@pytest.mark.parametrize(("level", "kept"), [("WARNING", ["three"]), (15, ["two", "three"]), ("off", [])])
@pytest.mark.sqlite_only
def test_the_level_says_which_lines_are_kept(
    make_app: MakeApp, make_worker: MakeWorker, log: logging.Logger, level: str | int, kept: list[str]
) -> None:
    app = make_app(TASKER_JOB_LOG_LEVEL=level)
    task_worker = make_worker(app)

    @task_worker.task
    def speak() -> None:
        log.log(10, "one")
        log.log(20, "two")
        log.log(30, "three")

    job = speak.enqueue()
    job.result(timeout=20)
    task_worker.stop(timeout=20)
    assert texts(app.extensions["taskworker"].store, job) == kept


def test_the_last_words_of_a_job_are_stored_when_its_worker_ends(
    task_worker: BackgroundTaskWorker, store: Store, log: logging.Logger
) -> None:
    go_on = threading.Event()

    @task_worker.task
    def speak() -> None:
        wait(go_on)
        log.info("last words")

    job = speak.enqueue()
    wait_for(lambda: job.refresh().state is JobState.RUNNING)
    ending = threading.Thread(target=task_worker.stop, args=(20,))
    ending.start()
    wait_for(lambda: [worker.state for worker in store.workers()] == ["draining"])
    go_on.set()
    ending.join()
    assert texts(store, job) == ["last words"]


def running(number: int, on_line: Callable[[RunningJob], None] | None = None) -> RunningJob:
    claim = Claim(number, "u", "t", "q", "sync", 0, "[[],{}]", 1, 0, 0, 1, None, 0, 0, None, None)
    return RunningJob(claim, lambda *_: None, log_level=0, on_line=on_line)


def say(job: RunningJob, words: str, times: int = 1) -> None:
    for _ in range(times):
        keep_line(job, logging.LogRecord("shop", 20, "x.py", 1, words, (), None))


@pytest.fixture
def chat() -> tuple[LoggingJobs, list[RunningJob]]:
    """Three jobs that run, and those of them that have logged."""
    noted = LoggingJobs()
    return noted, [running(number, lambda job: noted.update({job: True})) for number in range(3)]


def taken(noted: LoggingJobs, now: float) -> list[int]:
    return [claim.id for claim, _ in noted.take(now)]


def test_long_logs_are_rewritten_the_more_seldom_the_longer_they_are(
    chat: tuple[LoggingJobs, list[RunningJob]],
) -> None:
    noted, jobs = chat
    pauses = []
    now = 100.0
    for words, times in (("short", 1), ("long", MAX_LINES), ("x" * 500, MAX_LINES), ("x" * MAX_TEXT, MAX_LINES)):
        say(jobs[0], words, times)
        assert taken(noted, now) == [0]
        say(jobs[0], "more")
        later = next(later for later in range(1, 1000) if taken(noted, now + later / 10))
        pauses.append(later / 10)
        now += LONGEST_PAUSE + later
    assert pauses == sorted(pauses)
    assert pauses[0] <= 0.5 < pauses[-2] < pauses[-1] <= LONGEST_PAUSE


def test_no_pause_is_longer_than_ten_seconds(chat: tuple[LoggingJobs, list[RunningJob]]) -> None:
    noted, jobs = chat
    for job in jobs:
        say(job, "x" * MAX_TEXT, MAX_LINES)
    assert taken(noted, 0.0) == [0, 1, 2]
    for job in jobs:
        say(job, "more")
    assert taken(noted, LONGEST_PAUSE - 0.1) == []
    assert taken(noted, LONGEST_PAUSE) == [0, 1, 2]


def test_first_lines_wait_for_no_other_jobs(chat: tuple[LoggingJobs, list[RunningJob]]) -> None:
    noted, (chatty, other, ended) = chat
    say(chatty, "x" * MAX_TEXT, MAX_LINES)
    assert taken(noted, 0.0) == [0]
    for job in (chatty, other, ended):
        say(job, "hello")
    ended.ended = True
    assert taken(noted, 0.1) == [1]
    say(other, "again")
    assert taken(noted, 0.2) == []
    assert taken(noted, LONGEST_PAUSE) == [0, 1]
    assert not noted


def test_what_is_logged_after_the_end_is_not_kept() -> None:
    job = running(1)
    record = logging.LogRecord("shop", 20, "x.py", 1, "too late", (), None)
    keep_line(job, record)
    job.ended = True
    keep_line(job, record)
    assert len(job.lines or ()) == 1


def test_lines_of_a_job_that_is_gone_are_not_kept(
    task_worker: BackgroundTaskWorker, store: Store, log: logging.Logger, rows: Rows
) -> None:
    go_on = threading.Event()

    @task_worker.task
    def speak() -> None:
        log.info("to no job")
        wait(go_on)

    job = speak.enqueue()
    wait_for(lambda: job.refresh().state is JobState.RUNNING)
    rows("DELETE FROM taskworker_job")
    rows("DELETE FROM taskworker_log")
    go_on.set()
    task_worker.stop(timeout=20)
    assert rows("SELECT job_id FROM taskworker_log") == []


def test_of_a_job_with_many_tries_the_last_lines_are_kept(
    task_worker: BackgroundTaskWorker, store: Store, log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "KEEP_TRIES", 3)

    @task_worker.task
    async def poll() -> None:
        log.info("look %s", current_job.claim)
        if current_job.claim < 8:
            raise SnoozeJob(0)

    job = poll.enqueue()
    wait_for(lambda: sorted(lines(store, job)) == [6, 7, 8])


def test_lines_are_deleted_with_their_job(idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    store.driver.prepare()
    old, kept = store_jobs(rows, {"state": "succeeded", "expires_at": 5}, {"state": "succeeded"})
    rows("INSERT INTO taskworker_log VALUES (?, 1, '[]'), (?, 2, '[]'), (?, 1, '[]')", old, old, kept)
    idle_worker.start()
    wait_for(lambda: [row[0] for row in rows("SELECT job_id FROM taskworker_log")] == [kept])


@pytest.mark.sqlite_only
def test_logging_is_left_as_the_application_has_it(task_worker: BackgroundTaskWorker) -> None:
    task_worker.task(name="t")(lambda: None).enqueue().result(timeout=20)
    ours = [h for h in logging.getLogger().handlers if type(h).__module__.startswith("flask_taskworker")]
    assert ours == []


@pytest.mark.parametrize("value", ["LOUD", "", None, True, 2.5, ["INFO"]])
def test_a_wrong_level_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"TASKER_JOB_LOG_LEVEL.*a level of logging \(CRITICAL, .*OFF\)"):
        TaskWorkerConfig.from_mapping({"TASKER_JOB_LOG_LEVEL": value}, instance_path="/tmp")


@pytest.mark.parametrize("arguments", [(), (1,)])
def test_an_object_whose_text_cannot_be_had_is_logged_by_its_type(arguments: tuple[object, ...]) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise IndexError("no text")

    job = RunningJob(cast(Any, None), cast(Any, None))
    record = logging.LogRecord("shop", logging.ERROR, __file__, 1, Odd(), arguments, None)
    keep_line(job, record)
    assert "Odd> (IndexError when its text was asked for)" in (lines_of(job) or "")
