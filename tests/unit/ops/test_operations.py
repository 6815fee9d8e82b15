"""What people may do to jobs, queues and schedules: from which state to which, once each, noted and told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from blinker import Signal
from flask import Flask

from flask_taskworker import At, BackgroundTaskWorker, Every, Job, JobCancelled, JobState, Mail, Message, signals
from flask_taskworker.core.clock import from_ms
from flask_taskworker.core.filters import EVERYTHING, JobFilter
from flask_taskworker.errors import DeclarationError, JobNotFound, NotAccepted, StoreError
from flask_taskworker.ops.browse import Browser
from flask_taskworker.ops.operations import FITTING, Operations
from flask_taskworker.store.sql import ScheduleRow, Store
from tests.support.postgres import connect
from tests.support.stored import Rows, store_jobs
from tests.support.waiting import wait, wait_for

pytestmark = pytest.mark.both_databases

FAR = 4_000_000_000_000


@pytest.fixture
def steer(app: Flask, idle_worker: BackgroundTaskWorker, store: Store) -> Operations:
    store.driver.prepare()
    return Operations(app, app.extensions["taskworker"].client, idle_worker._registry, who="ana")


@pytest.fixture
def told(app: Flask) -> Iterator[Callable[[Signal], list[dict[str, Any]]]]:
    """Listen to a signal; returns the list of what it brings."""
    receivers: list[tuple[Signal, Callable[..., None]]] = []

    def listen(signal: Signal) -> list[dict[str, Any]]:
        heard: list[dict[str, Any]] = []

        def receive(sender: Any, **values: Any) -> None:
            heard.append(values)

        signal.connect(receive, app)
        receivers.append((signal, receive))
        return heard

    yield listen
    for signal, receive in receivers:
        signal.disconnect(receive, app)


def look(rows: Rows, job_id: int) -> tuple[Any, ...]:
    """State, whether it is discarded, and whether it was asked to stop."""
    return rows("SELECT state, discarded, cancel_requested FROM taskworker_job WHERE id = ?", job_id)[0]


def notes(store: Store) -> list[tuple[str, str, str, int]]:
    return [(n.who, n.action, n.target, n.number) for n in Browser(store).audit()]


# -- jobs --------------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "scheduled": {"state": "scheduled", "run_at": FAR},
    "ready": {"state": "ready"},
    "suspect": {"state": "ready", "solo": 1},
    "running": {"state": "running"},
    "succeeded": {"state": "succeeded"},
    "failed": {"state": "failed", "failures": 3, "failure_group": "g", "error": "{}"},
    "cancelled": {"state": "cancelled", "cancel_requested": 1},
    "discarded": {"state": "succeeded", "discarded": 1},
    "discarded, failed": {"state": "failed", "discarded": 1},
    "discarded, ready": {"state": "cancelled", "discarded": 2},
    "discarded, scheduled": {"state": "cancelled", "discarded": 2, "run_at": FAR},
}
CHANGES: dict[str, dict[str, tuple[str, int, int]]] = {
    "retry": {
        "failed": ("ready", 0, 0),
        "cancelled": ("ready", 0, 0),
        "discarded, failed": ("ready", 0, 0),
        "discarded, ready": ("ready", 0, 0),
        "discarded, scheduled": ("ready", 0, 0),
    },
    "cancel": {
        "scheduled": ("cancelled", 0, 1),
        "ready": ("cancelled", 0, 1),
        "suspect": ("cancelled", 0, 1),
        "running": ("running", 0, 1),
    },
    "discard": {
        "scheduled": ("cancelled", 2, 0),
        "ready": ("cancelled", 2, 0),
        "suspect": ("cancelled", 2, 0),
        "succeeded": ("succeeded", 1, 0),
        "failed": ("failed", 1, 0),
        "cancelled": ("cancelled", 1, 1),
    },
    "restore": {
        "discarded": ("succeeded", 0, 0),
        "discarded, failed": ("failed", 0, 0),
        "discarded, ready": ("ready", 0, 0),
        "discarded, scheduled": ("scheduled", 0, 0),
    },
    "run": {"scheduled": ("ready", 0, 0)},
}


@pytest.mark.parametrize("action", FITTING)
def test_an_action_changes_the_jobs_that_are_in_a_state_for_it_and_no_other(
    steer: Operations, store: Store, rows: Rows, action: str
) -> None:
    expected = CHANGES[action]
    one_by_one = dict(zip(KINDS, store_jobs(rows, *KINDS.values()), strict=True))
    before = {kind: look(rows, job_id) for kind, job_id in one_by_one.items()}
    assert {kind for kind, job_id in one_by_one.items() if steer.act(action, job_id)} == set(expected)
    assert {kind: look(rows, job_id) for kind, job_id in one_by_one.items()} == before | expected
    assert len(notes(store)) == len(expected)

    rows("DELETE FROM taskworker_job")
    together = dict(zip(KINDS, store_jobs(rows, *KINDS.values()), strict=True))
    changed = sum(steer.act_on_all(action, EVERYTHING)) + sum(steer.act_on_all(action, JobFilter(discarded=True)))
    # What one pass has discarded, or restored, is not what the other finds in a state for it.
    assert changed == len(expected)
    assert {kind: look(rows, job_id) for kind, job_id in together.items()} == before | expected
    target = f"job {one_by_one[list(expected)[-1]]} (app.add)"
    assert [n[2] for n in notes(store)[:3]] == ["discarded:yes", "every job", target]


def test_a_retry_begins_again(steer: Operations, store: Store, rows: Rows) -> None:
    single, bulk = store_jobs(
        rows, *[{"state": "failed", "failures": 3, "crashes": 2, "solo": 1, "error": "e", "progress": "p"}] * 2
    )
    rows("UPDATE taskworker_job SET failure_group = 'g', failure_kind = 'exception', result = 'r'")
    assert steer.act("retry", single)
    assert list(steer.act_on_all("retry", JobFilter(group="g"))) == [1]
    columns = "failures, crashes, solo, error, progress, failure_group, failure_kind, result, finished_at, expires_at"
    for job_id in (single, bulk):
        row = rows(f"SELECT {columns} FROM taskworker_job WHERE id = ?", job_id)[0]
        assert row == (0, 0, 0, *[None] * 7)
        assert abs(store.record(job_id).run_at - store.clock()) < 60_000


def test_a_discarded_job_is_kept_until_its_time_and_comes_back_as_it_was(
    steer: Operations, store: Store, rows: Rows
) -> None:
    at = store.clock() + 3_600_000
    waiting, ended = store_jobs(rows, {"state": "scheduled", "run_at": at}, {"state": "failed", "error": "e"})
    assert list(steer.act_on_all("discard", EVERYTHING)) == [2]
    assert Browser(store).count_all(EVERYTHING) == 0
    assert (store.record(waiting).expires_at or 0) > at
    assert store.record(ended).expires_at == FAR
    assert list(steer.act_on_all("restore", JobFilter(discarded=True))) == [2]
    record = store.record(waiting)
    assert (record.state, record.run_at, record.finished_at, record.expires_at) == ("scheduled", at, None, None)
    assert (store.record(ended).state, store.ending(ended).error) == ("failed", "e")


def test_one_unknown_job_is_named(steer: Operations, store: Store) -> None:
    with pytest.raises(JobNotFound, match="Job 7 never existed"):
        steer.act("retry", 7)
    assert notes(store) == []


@pytest.mark.slow
def test_an_act_that_met_a_worker_halfway_is_done_nevertheless(
    app: Flask, idle_worker: BackgroundTaskWorker, steer: Operations, rows: Rows, driver: str
) -> None:
    if driver == "sqlite":
        return  # one writer at a time
    last = store_jobs(rows, *[{}] * 200)[-1]
    url = app.extensions["taskworker"].config.database_uri.render_as_string(hide_password=False)
    changed: list[int] = []
    act = threading.Thread(target=lambda: changed.extend(steer.act_on_all("cancel", EVERYTHING)))
    with connect(url) as worker, worker.transaction():
        # Of two that wait for each other the server ends the one that has waited first, after a second.
        worker.execute("SET LOCAL deadlock_timeout = '30s'")
        worker.execute("UPDATE taskworker_job SET priority = 1 WHERE id = %s", (last,))
        act.start()
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%cancel_requested%%'"
        wait_for(lambda: rows(waits))
        worker.execute("UPDATE taskworker_job SET priority = 1 WHERE id < %s", (last,))
    act.join()
    assert changed == [200]


# -- unique keys -------------------------------------------------------------------------------------------------------


def test_of_two_jobs_with_one_key_only_one_is_retried(steer: Operations, rows: Rows) -> None:
    keyed = {"state": "failed", "unique_key": "app.add:k"}
    ids = store_jobs(rows, keyed, keyed, {"state": "failed"})
    assert list(steer.act_on_all("retry", EVERYTHING)) == [2]
    assert sorted(look(rows, job_id)[0] for job_id in ids[:2]) == ["failed", "ready"]
    left = next(job_id for job_id in ids if look(rows, job_id)[0] == "failed")
    with pytest.raises(NotAccepted, match=f"Job {left} cannot run again: job "):
        steer.act("retry", left)


def test_of_two_jobs_with_one_key_only_one_is_restored(steer: Operations, rows: Rows) -> None:
    keyed = {"state": "cancelled", "discarded": 2, "unique_key": "app.add:k"}
    ids = store_jobs(rows, keyed, keyed, {"state": "cancelled", "discarded": 2})
    assert list(steer.act_on_all("restore", JobFilter(discarded=True))) == [2]
    assert sorted(look(rows, job_id)[0] for job_id in ids[:2]) == ["cancelled", "ready"]
    left = next(job_id for job_id in ids if look(rows, job_id)[1])
    with pytest.raises(NotAccepted, match=f"Job {left} cannot be restored: another unfinished job has its unique key"):
        steer.act("restore", left)


# -- those who wait, and those who listen ------------------------------------------------------------------------------


def test_many_cancelled_jobs_are_reported_each_once(
    app: Flask,
    idle_worker: BackgroundTaskWorker,
    steer: Operations,
    told: Callable[[Signal], list[dict[str, Any]]],
) -> None:
    @idle_worker.task
    def add(x: int) -> None: ...

    heard = told(signals.job_cancelled)
    jobs = add.enqueue_many([(1,), (2,), (3,)])
    assert list(steer.act_on_all("cancel", EVERYTHING)) == [3]
    assert sorted(values["job"].id for values in heard) == [job.id for job in jobs]
    more = add.enqueue_many([(4,), (5,)])
    assert steer.act("discard", more[0].id)
    assert steer.act("cancel", more[1].id)
    assert [values["job"].id for values in heard[3:]] == [job.id for job in more]


def test_who_waits_for_a_discarded_job_hears_of_it(idle_worker: BackgroundTaskWorker, steer: Operations) -> None:
    @idle_worker.task
    def add(x: int) -> None: ...

    job = add.enqueue(1)
    assert steer.act("discard", job.id)
    with pytest.raises(JobCancelled):
        job.result(timeout=5)


def test_an_act_is_noted_and_told(
    steer: Operations, store: Store, rows: Rows, told: Callable[[Signal], list[dict[str, Any]]]
) -> None:
    heard = told(signals.dashboard_action)
    (job_id,) = store_jobs(rows, {"state": "failed"})
    steer.act("retry", job_id)
    list(steer.act_on_all("cancel", JobFilter.parse("state:ready queue:default", 0)))
    (other,) = store_jobs(rows, {})
    steer.act_on_some("cancel", [other], "x" * 900)
    expected = [
        ("ana", "retry", f"job {job_id} (app.add)", 1),
        ("ana", "cancel", "state:ready queue:default", 1),
        ("ana", "cancel", "x" * 500, 1),
    ]
    assert notes(store)[::-1] == expected
    assert [tuple(values.values()) for values in heard][:2] == expected[:2]
    assert list(heard[0]) == ["who", "action", "target", "number"]
    assert abs(Browser(store).audit()[0].at - store.clock()) < 60_000


def test_an_act_on_many_that_was_left_half_way_is_noted(
    steer: Operations, store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_taskworker.ops.browse.WINDOW", 2)
    store_jobs(rows, *[{}] * 9)
    acts = steer.act_on_all("cancel", JobFilter(queue="default"))
    done = next(acts)
    acts.close()
    assert notes(store) == [("ana", "cancel", "queue:default", done)]


def test_what_cannot_be_noted_is_not_done(
    idle_worker: BackgroundTaskWorker, steer: Operations, store: Store, rows: Rows, recorder: Recorder
) -> None:
    recorder.task.schedule(Every(hours=1), name="hourly", args=("tick",))
    steer.pause_queue("b")
    ids = dict(zip(KINDS, store_jobs(rows, *KINDS.values()), strict=True))
    before = {name: rows(f"SELECT * FROM taskworker_{name} ORDER BY 1") for name in ("job", "queue", "schedule")}
    rows("ALTER TABLE taskworker_audit RENAME TO taskworker_elsewhere")
    acts: list[Callable[[], object]] = [
        *(lambda a=action, k=kind: steer.act(a, ids[k]) for action in FITTING for kind in CHANGES[action]),
        *(lambda a=action: list(steer.act_on_all(a, JobFilter(discarded=a == "restore"))) for action in FITTING),
        lambda: steer.act_on_some("cancel", list(ids.values())),
        lambda: list(steer.purge(FAR)),
        lambda: steer.pause_queue("a"),
        lambda: steer.resume_queue("b"),
        lambda: steer.pause_schedule("hourly"),
        lambda: steer.skip_next("hourly"),
        lambda: steer.run_schedule("hourly"),
    ]
    for act in acts:
        with pytest.raises(StoreError, match="taskworker_audit"):
            act()
    after = {name: rows(f"SELECT * FROM taskworker_{name} ORDER BY 1") for name in before}
    assert after == before


def test_the_note_of_an_act_on_many_grows_with_each_batch(
    steer: Operations, store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_taskworker.ops.browse.WINDOW", 2)
    store_jobs(rows, *[{}] * 9)
    done = 0
    for changed in steer.act_on_all("cancel", EVERYTHING):
        done += changed
        assert notes(store) == [("ana", "cancel", "every job", done)]
    assert done == 9


# -- what no longer fits -----------------------------------------------------------------------------------------------

MOVED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "queue:default": ({"state": "failed"}, {"queue": "other"}),
    "state:failed": ({"state": "failed", "discarded": 0}, {"state": "cancelled"}),
    "state:failed attempts:2": ({"state": "failed", "failures": 3}, {"failures": 1}),
    "group:g": ({"state": "failed", "failure_group": "g"}, {"failure_group": "h"}),
    "discarded:yes": ({"state": "failed", "discarded": 1}, {"discarded": 0}),
}


@pytest.mark.parametrize("special", [{}, {"unique_key": "app.add:k"}], ids=["plain", "unique"])
@pytest.mark.parametrize("text", MOVED)
def test_jobs_that_no_longer_fit_the_filter_are_left_alone(
    steer: Operations, store: Store, rows: Rows, text: str, special: dict[str, Any]
) -> None:
    job, change = MOVED[text]
    chosen = JobFilter.parse(text, 0)
    other = {"unique_key": "app.add:other"} if special else {}
    stays, goes = store_jobs(rows, {**job, **special}, {**job, **other})
    ids = [row.record.id for row in Browser(store).first(chosen, limit=10).rows]
    assert sorted(ids) == [stays, goes]
    for name, value in change.items():
        rows(f"UPDATE taskworker_job SET {name} = ? WHERE id = ?", value, goes)
    before = look(rows, goes)
    assert steer.act_on_some("restore" if chosen.discarded else "retry", ids, chosen=chosen) == 1
    assert look(rows, goes) == before
    assert look(rows, stays)[0] == ("ready" if not chosen.discarded else "failed")


def test_jobs_that_move_while_an_act_on_many_goes_on_are_left_alone(
    steer: Operations, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = store_jobs(rows, *[{"queue": "a"}] * 3)
    found = Browser.ids

    def ids_then_moved(self: Browser, *args: Any, **kwargs: Any) -> Iterator[list[int]]:
        for batch in found(self, *args, **kwargs):
            rows("UPDATE taskworker_job SET queue = 'b' WHERE id = ?", ids[1])
            yield batch

    monkeypatch.setattr(Browser, "ids", ids_then_moved)
    assert list(steer.act_on_all("cancel", JobFilter(queue="a"))) == [2]
    assert [look(rows, job_id)[0] for job_id in ids] == ["cancelled", "ready", "cancelled"]


# -- mails -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bulk", [False, True])
def test_a_mail_that_is_retried_goes_to_its_recipients_again(
    app: Flask, idle_worker: BackgroundTaskWorker, steer: Operations, store: Store, rows: Rows, bulk: bool
) -> None:
    app.config["MAIL_DEFAULT_SENDER"] = "from@example.com"
    mail = Mail(app)
    with app.app_context():
        job = mail.send_later(Message("Hi", recipients=["a@x.org", "b@x.org"], body="Hi"))
    rows("UPDATE taskworker_job SET state = 'failed', finished_at = 5, expires_at = ?", FAR)
    rows("UPDATE taskworker_mail SET finished_at = 5")
    rows("UPDATE taskworker_recipient SET ending = CASE WHEN address = 'a@x.org' THEN 'accepted' ELSE 'rejected' END")
    assert list(steer.act_on_all("retry", EVERYTHING)) == [1] if bulk else steer.act("retry", job.id)
    assert store.record(job.id).state == "ready"
    found = rows("SELECT address, ending FROM taskworker_recipient ORDER BY address")
    assert found == [("a@x.org", "accepted"), ("b@x.org", "waiting")]
    assert rows("SELECT finished_at FROM taskworker_mail") == [(None,)]


# -- queues ------------------------------------------------------------------------------------------------------------


class Recorder:
    """A sync task that notes which jobs ran, and one that holds the only thread."""

    def __init__(self, task_worker: BackgroundTaskWorker) -> None:
        self.ran: list[str] = []
        self.release = threading.Event()
        self.task = task_worker.task(name="record")(lambda name: self.ran.append(name))
        self.blocker = task_worker.task(name="block")(lambda: wait(self.release))


@pytest.fixture
def recorder(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker], idle_worker: BackgroundTaskWorker
) -> Recorder:
    return Recorder(idle_worker)


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    """Its worker has one thread, and must be woken: it does not look by itself."""
    return make_app(TASKER_THREADS=1, TASKER_LOOP_INTERVAL=3600)


def ended(*jobs: Job[Any]) -> None:
    wait_for(lambda: all(job.refresh().state.finished for job in jobs))


def test_nothing_is_claimed_from_a_paused_queue_and_all_when_it_is_resumed(
    idle_worker: BackgroundTaskWorker, steer: Operations, recorder: Recorder, rows: Rows
) -> None:
    steer.pause_queue("a")
    held = [recorder.task.using(queue="a").enqueue("held"), recorder.task.using(queue="a").enqueue("suspect")]
    other = recorder.task.using(queue="b").enqueue("b1")
    rows("UPDATE taskworker_job SET solo = 1, crashes = 2 WHERE id IN (?, ?)", held[1].id, other.id)
    idle_worker.start()
    ended(other)
    # It has had a turn with a look at the database; now one by a hint alone.
    held.append(recorder.task.using(queue="a").enqueue("hinted"))
    ended(recorder.task.using(queue="b").enqueue("b2"))
    assert recorder.ran == ["b1", "b2"]
    assert steer.resume_queue("a")
    ended(*held)
    assert sorted(recorder.ran[2:]) == ["held", "hinted", "suspect"]
    assert not steer.resume_queue("a")


def test_a_worker_that_knew_of_jobs_claims_none_after_the_pause(
    idle_worker: BackgroundTaskWorker, steer: Operations, recorder: Recorder
) -> None:
    idle_worker.start()
    blocker = recorder.blocker.using(queue="b").enqueue()
    wait_for(lambda: blocker.refresh().state is JobState.RUNNING)
    held = recorder.task.using(queue="a").enqueue("held")
    steer.pause_queue("a")
    recorder.release.set()
    ended(blocker, recorder.task.using(queue="b").enqueue("b"))
    assert held.refresh().state is JobState.READY
    assert recorder.ran == ["b"]


def test_a_running_job_ends_in_a_paused_queue(
    idle_worker: BackgroundTaskWorker, steer: Operations, recorder: Recorder
) -> None:
    idle_worker.start()
    job = recorder.blocker.using(queue="a").enqueue()
    wait_for(lambda: job.refresh().state is JobState.RUNNING)
    steer.pause_queue("a")
    recorder.release.set()
    job.result(timeout=20)


def test_a_pause_is_reported_and_the_first_one_counts(
    steer: Operations, store: Store, rows: Rows, told: Callable[[Signal], list[dict[str, Any]]]
) -> None:
    heard = told(signals.queue_paused)
    steer.pause_queue("a")
    rows("UPDATE taskworker_queue SET paused_at = 5, paused_by = 'bo'")
    steer.pause_queue("a")
    assert [(q.paused_at, q.paused_by) for q in Browser(store).queues()] == [(5, "bo")]
    steer.resume_queue("a")
    assert heard == [{"queue": "a", "paused": True}] * 2 + [{"queue": "a", "paused": False}]
    assert [n[1:3] for n in notes(store)] == [("resume", "queue a"), ("pause", "queue a"), ("pause", "queue a")]
    steer.pause_queue("a")
    assert [q.paused_by for q in Browser(store).queues()] == ["ana"]


# -- schedules ---------------------------------------------------------------------------------------------------------


def schedule(store: Store, name: str = "hourly") -> ScheduleRow:
    return next(s for s in store.schedules() if s.name == name)


@pytest.fixture
def hourly(idle_worker: BackgroundTaskWorker, recorder: Recorder) -> Recorder:
    # Half an hour off the beat, so that it is not due while a test runs.
    start = datetime.now(UTC) - timedelta(minutes=30)
    recorder.task.schedule(Every(hours=1, start=start), name="hourly", args=("tick",))
    return recorder


def test_a_paused_schedule_does_not_fire_and_makes_nothing_up(
    idle_worker: BackgroundTaskWorker, steer: Operations, store: Store, rows: Rows, hourly: Recorder
) -> None:
    assert steer.pause_schedule("hourly")
    assert not steer.pause_schedule("hourly")
    rows("UPDATE taskworker_schedule SET next_at = 5")
    idle_worker.start()
    ended(hourly.task.enqueue("sentinel"))
    assert steer.resume_schedule("hourly")
    assert not steer.resume_schedule("hourly")
    ended(hourly.task.enqueue("sentinel"))
    assert hourly.ran == ["sentinel"] * 2
    assert 0 < (schedule(store).next_at or 0) - store.clock() <= 3_600_000
    assert notes(store) == [("ana", "resume", "schedule hourly", 1), ("ana", "pause", "schedule hourly", 1)]


def test_a_resumed_schedule_fires_again(
    idle_worker: BackgroundTaskWorker, steer: Operations, store: Store, recorder: Recorder
) -> None:
    recorder.task.schedule(Every(seconds=1), name="often", args=("tick",))
    steer.pause_schedule("often")
    idle_worker.start()
    ended(recorder.task.enqueue("sentinel"))
    steer.resume_schedule("often")
    wait_for(lambda: "tick" in recorder.ran)


def test_a_fire_time_is_left_out(steer: Operations, store: Store, hourly: Recorder) -> None:
    before = schedule(store).next_at
    assert before is not None
    after = steer.skip_next("hourly")
    assert after == schedule(store).next_at == before + 3_600_000
    assert notes(store) == [("ana", "skip", "schedule hourly", 1)]


def test_a_schedule_whose_only_time_is_left_out_is_over(steer: Operations, store: Store, recorder: Recorder) -> None:
    recorder.task.schedule(At(datetime.now(UTC) + timedelta(hours=1)), name="once", args=("x",))
    assert steer.skip_next("once") is None
    assert store.schedules() == []


def test_a_schedule_runs_now_besides_its_times(
    idle_worker: BackgroundTaskWorker,
    steer: Operations,
    store: Store,
    hourly: Recorder,
    told: Callable[[Signal], list[dict[str, Any]]],
) -> None:
    heard = told(signals.job_enqueued)
    before = schedule(store).next_at
    steer.pause_schedule("hourly")
    job = steer.run_schedule("hourly")
    assert job.schedule == "hourly"
    assert job.fire_at == job.created_at
    assert [values["job"].id for values in heard] == [job.id]
    with pytest.raises(DeclarationError, match="An earlier job of the schedule 'hourly' is unfinished"):
        steer.run_schedule("hourly")
    idle_worker.start()
    ended(job)
    assert hourly.ran == ["tick"]
    assert schedule(store).next_at == before
    assert notes(store)[0] == ("ana", "run", "schedule hourly", 1)
    assert from_ms(before or 0) > datetime.now(UTC)


def test_a_schedule_that_is_not_there_is_named(steer: Operations, store: Store, rows: Rows, hourly: Recorder) -> None:
    for act in (steer.pause_schedule, steer.resume_schedule, steer.skip_next, steer.run_schedule):
        with pytest.raises(DeclarationError, match="No schedule is named 'nightly'"):
            act("nightly")
    rows("UPDATE taskworker_schedule SET task = 'gone'")
    with pytest.raises(DeclarationError, match="The schedule 'hourly' is for the task 'gone', which this code does"):
        steer.run_schedule("hourly")
    assert notes(store) == []
