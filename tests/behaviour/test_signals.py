"""Signals: each once, after the commit, off the loop, inside an app context; and no receiver harms anybody."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask, current_app

from flask_taskworker import BackgroundTaskWorker, CancelJob, Every, Job, JobState, Retry, SnoozeJob, signals
from flask_taskworker.core.rows import OutcomeKind
from flask_taskworker.store.sql import Store
from tests.support.waiting import wait, wait_for

pytestmark = pytest.mark.both_databases(slow="postgresql")

Rows = Callable[..., list[tuple[Any, ...]]]

ALL = {
    "enqueued": signals.job_enqueued,
    "started": signals.job_started,
    "succeeded": signals.job_succeeded,
    "retrying": signals.job_retrying,
    "failed": signals.job_failed,
    "cancelled": signals.job_cancelled,
    "rescued": signals.job_rescued,
    "fired": signals.schedule_fired,
    "worker started": signals.worker_started,
    "worker stopped": signals.worker_stopped,
}


class Journal:
    """What was sent, in order."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Any, dict[str, Any]]] = []
        self.places: list[tuple[str, str, str | None]] = []
        """The signal, the thread and the app."""

    def receiver(self, name: str) -> Callable[..., None]:
        def receive(sender: Any, **values: Any) -> None:
            where = current_app.import_name if current_app else None
            self.places.append((name, threading.current_thread().name, where))
            self.entries.append((name, sender, values))

        return receive

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.entries]

    def of(self, job: Job[Any]) -> list[str]:
        names = [name for name, _, values in self.entries if values.get("job") == job]
        return sorted(names, key=is_of_the_worker)

    def last(self, name: str) -> dict[str, Any]:
        return [values for entry, _, values in self.entries if entry == name][-1]


def is_of_the_worker(name: str) -> bool:
    """job_enqueued is sent in the thread that enqueues, the others in the worker's: their order is by chance."""
    return name != "enqueued"


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal = Journal()
    with ExitStack() as stack:
        for name, signal in ALL.items():
            stack.enter_context(signal.connected_to(journal.receiver(name)))
        yield journal


@pytest.fixture
def worker(journal: Journal, idle_worker: BackgroundTaskWorker) -> BackgroundTaskWorker:
    """The app's worker, started while the journal listens."""
    idle_worker.start()
    return idle_worker


quick_beat = pytest.mark.timing(beat=0.02)


def raises(error: type[BaseException], *args: Any) -> Callable[[], None]:
    def work() -> None:
        raise error(*args)

    return work


# -- each once ---------------------------------------------------------------------------------------------------------


def test_signals_of_a_job_that_succeeds(app: Flask, worker: BackgroundTaskWorker, journal: Journal) -> None:
    job = worker.task(name="work")(lambda: 5).enqueue()
    wait_for(lambda: "succeeded" in journal.names)
    worker.stop()
    assert journal.of(job) == ["enqueued", "started", "succeeded"]
    assert {sender for _, sender, _ in journal.entries} == {app}
    values = journal.last("succeeded")
    assert values.keys() == {"job", "outcome"}
    assert (values["outcome"].ending, values["outcome"].result) == (OutcomeKind.SUCCEEDED, "5")
    assert values["job"].state is JobState.SUCCEEDED
    assert journal.last("started").keys() == {"job"}
    assert journal.last("started")["job"].state is JobState.RUNNING


def test_signals_of_a_job_that_is_tried_again_and_fails(worker: BackgroundTaskWorker, journal: Journal) -> None:
    job = worker.task(name="work", retry=Retry(3, base=0.001))(raises(ValueError, "no")).enqueue()
    wait_for(lambda: "failed" in journal.names)
    worker.stop()
    assert journal.of(job) == ["enqueued", "started", "retrying", "started", "retrying", "started", "failed"]
    for name, ending in (("retrying", OutcomeKind.RETRYING), ("failed", OutcomeKind.FAILED)):
        values = journal.last(name)
        assert values.keys() == {"job", "outcome", "exception"}
        assert isinstance(values["exception"], ValueError)
        assert values["outcome"].ending is ending
        assert values["outcome"].failure.message == "no"


def test_job_in_a_signal_counts_as_the_stored_job_does(worker: BackgroundTaskWorker, journal: Journal) -> None:
    stored = worker.task(name="work", retry=Retry(3, base=0.001))(raises(ValueError)).enqueue()
    wait_for(lambda: "failed" in journal.names)
    jobs = [(name, values["job"]) for name, _, values in journal.entries if "job" in values]
    found = [(name, job.attempt, str(job.state)) for name, job in jobs]
    assert sorted(found, key=lambda entry: is_of_the_worker(entry[0])) == [
        ("enqueued", 1, "ready"),
        ("started", 1, "running"),
        ("retrying", 2, "scheduled"),
        ("started", 2, "running"),
        ("retrying", 3, "scheduled"),
        ("started", 3, "running"),
        ("failed", 3, "failed"),
    ]
    assert stored.refresh().attempt == 3


def test_snoozing_sends_no_signal_of_its_own(worker: BackgroundTaskWorker, journal: Journal) -> None:
    errors = [SnoozeJob(0.001)]

    def work() -> None:
        if errors:
            raise errors.pop()

    job = worker.task(name="work")(work).enqueue()
    wait_for(lambda: "succeeded" in journal.names)
    assert journal.of(job) == ["enqueued", "started", "started", "succeeded"]


def test_signal_of_a_waiting_job_that_is_cancelled(app: Flask, worker: BackgroundTaskWorker, journal: Journal) -> None:
    job = worker.task(name="work")(lambda: None).using(delay=3600).enqueue()
    job.cancel()
    assert not job.cancel()
    worker.stop()
    assert journal.of(job) == ["enqueued", "cancelled"]
    values = journal.last("cancelled")
    assert values["job"].state is JobState.CANCELLED
    assert values["outcome"] is None


@quick_beat
def test_signal_of_a_running_job_that_is_cancelled(worker: BackgroundTaskWorker, journal: Journal) -> None:
    @worker.task
    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    job = work.enqueue()
    wait_for(lambda: job.refresh().state is JobState.RUNNING)
    job.cancel()
    wait_for(lambda: "cancelled" in journal.names)
    worker.stop()
    assert journal.of(job) == ["enqueued", "started", "cancelled"]
    assert journal.last("cancelled")["outcome"].ending is OutcomeKind.CANCELLED


def test_signal_of_a_job_that_cancels_itself(worker: BackgroundTaskWorker, journal: Journal) -> None:
    job = worker.task(name="work")(raises(CancelJob, "why not")).enqueue()
    wait_for(lambda: "cancelled" in journal.names)
    worker.stop()
    assert journal.of(job) == ["enqueued", "started", "cancelled"]
    assert journal.last("cancelled")["outcome"].failure.message == "why not"


def test_signals_of_a_rescue(idle_worker: BackgroundTaskWorker, journal: Journal, store: Store, rows: Rows) -> None:
    job = idle_worker.task(name="work")(lambda: None).enqueue()
    rows("UPDATE taskworker_job SET state = 'running', claim = 1, worker_id = 'dead' WHERE id = ?", job.id)
    rows(
        "INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) "
        "VALUES ('dead', 'h', 1, 1, 1, 'dead', '{}')"
    )
    idle_worker.start()
    wait_for(lambda: "succeeded" in journal.names)
    idle_worker.stop()
    assert journal.of(job) == ["enqueued", "rescued", "started", "succeeded"]
    assert journal.last("rescued").keys() == {"job"}
    assert store.record(job.id).crashes == 1


@pytest.mark.parametrize(
    ("mark", "name", "kind"),
    [("at_most_once = 1", "failed", "interrupted"), ("cancel_requested = 1", "cancelled", None)],
)
def test_signals_of_a_job_that_ends_with_its_worker(
    idle_worker: BackgroundTaskWorker, journal: Journal, rows: Rows, mark: str, name: str, kind: str | None
) -> None:
    job = idle_worker.task(name="work")(lambda: None).enqueue()
    rows(f"UPDATE taskworker_job SET state = 'running', claim = 1, worker_id = 'dead', {mark} WHERE id = ?", job.id)
    rows(
        "INSERT INTO taskworker_worker (id, host, pid, started_at, beat_at, state, info) "
        "VALUES ('dead', 'h', 1, 1, 1, 'dead', '{}')"
    )
    idle_worker.start()
    wait_for(lambda: name in journal.names)
    idle_worker.stop()
    assert journal.of(job) == ["enqueued", name]
    outcome = journal.last(name)["outcome"]
    assert outcome.ending == name
    assert (outcome.failure.kind if outcome.failure else None) == kind


def test_signals_of_a_schedule(worker: BackgroundTaskWorker, journal: Journal) -> None:
    worker.task(name="tick", schedule=Every(seconds=0.1))(lambda: None)
    wait_for(lambda: journal.names.count("succeeded") >= 2)
    worker.stop()
    fired = [values for name, _, values in journal.entries if name == "fired"]
    assert all(values.keys() == {"job", "schedule", "fire_at"} for values in fired)
    assert {values["schedule"] for values in fired} == {"tick"}
    assert len({values["fire_at"] for values in fired}) == len(fired)
    assert all(values["fire_at"] == values["job"].fire_at < datetime.now(UTC) for values in fired)
    assert "enqueued" not in journal.names


def test_signals_of_a_worker(app: Flask, worker: BackgroundTaskWorker, journal: Journal) -> None:
    wait_for(lambda: journal.names)
    worker.stop()
    # It waits for the last receiver, but only for a second.
    wait_for(lambda: len(journal.names) > 1)
    assert journal.names == ["worker started", "worker stopped"]
    assert journal.last("worker started").keys() == {"worker"}
    assert journal.last("worker started")["worker"].id == journal.last("worker stopped")["worker"].id


# -- when and where ----------------------------------------------------------------------------------------------------


def test_signals_come_after_the_commit(idle_worker: BackgroundTaskWorker, store: Store) -> None:
    seen = []

    def look(sender: Flask, job: Job[Any], **_: Any) -> None:
        # By another connection than the worker's.
        seen.append((str(job.state), store.record(job.id).state))

    with ExitStack() as stack:
        for name in ("started", "retrying", "failed", "succeeded"):
            stack.enter_context(ALL[name].connected_to(look))
        idle_worker.start()
        idle_worker.task(name="a")(lambda: 5).enqueue().result(timeout=20)
        job = idle_worker.task(name="b", retry=Retry(2, base=3600))(raises(ValueError)).enqueue()
        wait_for(lambda: len(seen) == 4)
    # A start is followed by the end at once, so the row may be further on already.
    assert seen[1] == ("succeeded", "succeeded")
    assert seen[3] == ("scheduled", "scheduled")
    assert job.cancel()


def test_signals_of_the_worker_are_sent_beside_the_loop_inside_a_context(
    worker: BackgroundTaskWorker, journal: Journal
) -> None:
    worker.task(name="work")(lambda: None).enqueue()
    wait_for(lambda: "succeeded" in journal.names)
    worker.stop()
    places = {(thread, app) for name, thread, app in journal.places if is_of_the_worker(name)}
    assert places == {("taskworker-signals", "app1")}


@pytest.mark.sqlite_only
def test_blocked_receiver_delays_no_job(worker: BackgroundTaskWorker) -> None:
    release, blocked = threading.Event(), threading.Event()

    def block(sender: Flask, **_: Any) -> None:
        blocked.set()
        wait(release)

    with signals.job_started.connected_to(block):
        work = worker.task(name="work")(lambda: 5)
        for _ in range(3):
            assert work.enqueue().result(timeout=20) == 5
        wait(blocked)
        release.set()
        worker.stop()


@pytest.mark.sqlite_only
def test_worker_without_a_thread_for_signals_works_on(
    idle_worker: BackgroundTaskWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "taskworker-signals":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    task = idle_worker.task(name="works")(lambda: 7)
    with signals.job_started.connected_to(lambda *_, **__: None):
        idle_worker.start()
        assert [job.result(timeout=20) for job in task.enqueue_many([()] * 20)] == [7] * 20
    assert "no thread for the receivers" in caplog.text


@pytest.mark.sqlite_only
def test_signals_cost_nothing_when_no_one_listens(idle_worker: BackgroundTaskWorker) -> None:
    # A receiver of the test before may still be at it.
    before = set(threading.enumerate())
    idle_worker.start()
    idle_worker.task(name="work", retry=2)(lambda: 5).enqueue().result(timeout=20)
    begun = set(threading.enumerate()) - before
    assert "taskworker-signals" not in {thread.name for thread in begun}


@pytest.mark.sqlite_only
def test_receiver_may_choose_its_app(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    apps = [make_app(), make_app()]
    task_worker = make_worker(*apps)
    work = task_worker.task(name="work")(lambda: current_app.import_name)
    heard = []

    def hear(sender: Flask, **_: Any) -> None:
        heard.append((sender.import_name, current_app.import_name))

    with signals.job_succeeded.connected_to(hear, sender=apps[1]):
        for app in apps:
            with app.app_context():
                work.enqueue().result(timeout=20)
        wait_for(lambda: heard)
        task_worker.stop()
    assert heard == [(apps[1].import_name, apps[1].import_name)]


# -- receivers that misbehave ------------------------------------------------------------------------------------------


async def fail_async(sender: Flask, **_: Any) -> None:
    await asyncio.sleep(0)
    raise ZeroDivisionError("in the coroutine")


async def cancel_async(sender: Flask, **_: Any) -> None:
    raise asyncio.CancelledError


def fail(sender: Flask, **_: Any) -> None:
    raise ZeroDivisionError("in the receiver")


def leave(sender: Flask, **_: Any) -> None:
    raise SystemExit(3)


def interrupt(sender: Flask, **_: Any) -> None:
    raise KeyboardInterrupt


def misunderstand(sender: Flask) -> None: ...


@pytest.mark.parametrize("receiver", [fail, leave, interrupt, misunderstand, fail_async, cancel_async])
@pytest.mark.sqlite_only
def test_receiver_that_raises_is_logged_and_harms_nothing_else(
    idle_worker: BackgroundTaskWorker, receiver: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    heard = []

    def hear(sender: Flask, job: Job[Any], **_: Any) -> None:
        heard.append(job.id)

    caplog.set_level(logging.ERROR)
    with signals.job_succeeded.connected_to(receiver), signals.job_succeeded.connected_to(hear):
        idle_worker.start()
        work = idle_worker.task(name="work")(lambda: 5)
        jobs = [work.enqueue() for _ in range(3)]
        assert [job.result(timeout=20) for job in jobs] == [5] * 3
        wait_for(lambda: len(heard) == 3, "the other receiver hears of every job")
        wait_for(lambda: caplog.text.count("a receiver of") == 3, "each time it raised is logged")
        idle_worker.stop()
    assert sorted(heard) == [job.id for job in jobs]
    assert caplog.text.count("a receiver of") == 3
    assert receiver.__name__ in caplog.text


@pytest.mark.sqlite_only
def test_coroutine_receivers_are_awaited(idle_worker: BackgroundTaskWorker) -> None:
    heard = []

    async def hear(sender: Flask, job: Job[Any], **_: Any) -> None:
        await asyncio.sleep(0)
        heard.append((job.id, current_app.import_name))

    with signals.job_succeeded.connected_to(hear):
        idle_worker.start()
        job = idle_worker.task(name="work")(lambda: 5).enqueue()
        wait_for(lambda: heard)
    assert heard == [(job.id, "app1")]


@pytest.mark.sqlite_only
def test_teardown_that_raises_ends_no_signals(
    app: Flask, idle_worker: BackgroundTaskWorker, caplog: pytest.LogCaptureFixture
) -> None:
    heard = []

    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        raise ZeroDivisionError("in the teardown")

    def hear(sender: Flask, job: Job[Any], **_: Any) -> None:
        heard.append(job.id)

    with signals.job_succeeded.connected_to(hear):
        idle_worker.start()
        work = idle_worker.task(name="work")(lambda: 5)
        for number in range(3):
            work.enqueue()
            wait_for(lambda number=number: len(heard) == number + 1)


@pytest.mark.sqlite_only
def test_receiver_may_enqueue_and_wait(idle_worker: BackgroundTaskWorker) -> None:
    second = idle_worker.task(name="second")(lambda: 5)
    results = []

    def follow(sender: Flask, job: Job[Any], **_: Any) -> None:
        if job.task == "first":
            results.append(second.enqueue().result(timeout=20))

    with signals.job_succeeded.connected_to(follow):
        idle_worker.start()
        idle_worker.task(name="first")(lambda: None).enqueue()
        wait_for(lambda: results)
    assert results == [5]
