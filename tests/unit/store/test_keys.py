"""Not twice: which job stands for a call, on both databases, one call at a time and many at once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask

from flask_taskworker import BackgroundTaskWorker, Job, JobState, Unique
from flask_taskworker.core.tasks import Task
from flask_taskworker.errors import ArgumentsError, DeclarationError, NotAccepted
from flask_taskworker.ops import doctor
from flask_taskworker.store.sql import Store
from tests.support.dashboard_lab import Lab
from tests.support.doors import SessionDoor
from tests.support.stored import counts_of
from tests.support.waiting import wait_for

pytestmark = pytest.mark.both_databases

Rows = Callable[..., list[tuple[Any, ...]]]
NOW = 1_800_000_000_000

CALLS = "SELECT calls, first_at, last_at FROM taskworker_key WHERE job_id = :id"


class Clock:
    """The store's clock, which only the test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(store: Store) -> Clock:
    store.clock = Clock()
    return store.clock


@pytest.fixture
def save(idle_worker: BackgroundTaskWorker) -> Task[..., Any, Any]:
    """A task of a worker that does not run."""

    @idle_worker.task(name="save")
    def save(page: int, text: str = "") -> str:
        return text

    return save


def begin(rows: Rows, job: Job[Any]) -> None:
    """As a claim does."""
    rows(
        "UPDATE taskworker_job SET state = 'running', claim = claim + 1, worker_id = 'w' WHERE id = ? RETURNING id",
        job.id,
    )


def end(rows: Rows, job: Job[Any], *, failures: int = 0) -> None:
    rows(
        "UPDATE taskworker_job SET state = 'succeeded', worker_id = NULL, finished_at = ?, expires_at = ?, "
        "failures = ? WHERE id = ? RETURNING id",
        *(NOW, NOW + 1000, failures, job.id),
    )


def calls_of(store: Store, job: Job[Any]) -> tuple[Any, ...]:
    return store.driver.read(CALLS, {"id": job.id})[0]


# -- until started -----------------------------------------------------------------------------------------------------


def test_job_that_has_started_does_not_count(save: Task[..., Any, Any], store: Store, rows: Rows) -> None:
    once = save.using(unique=("page", 7), until="started")
    first = once.enqueue(7, "a")
    again = once.enqueue(7, "b")
    assert (first.merged, again.merged, again) == (False, True, first)
    assert store.args(first.id) == '[[7,"a"],{}]'
    begin(rows, first)
    second = once.enqueue(7, "c")
    assert (second.merged, second != first) == (False, True)
    assert calls_of(store, second)[0] == 1
    assert once.enqueue(7) == second
    assert calls_of(store, second)[0] == 2


def test_latest_arguments_win_on_request(save: Task[..., Any, Any], store: Store) -> None:
    latest = save.using(unique="k", until="started", latest=True)
    job = latest.enqueue(1, "old")
    assert latest.enqueue(1, "new") == job
    assert store.args(job.id) == '[[1,"new"],{}]'


def test_merging_raises_the_priority_and_never_lowers_it(save: Task[..., Any, Any], store: Store) -> None:
    job = save.using(unique="k", until="started", priority=3).enqueue(1)
    for priority, found in ((9, 9), (1, 9)):
        save.using(unique="k", until="started", priority=priority).enqueue(1)
        assert store.record(job.id).priority == found


def test_cancelled_job_frees_its_key(save: Task[..., Any, Any]) -> None:
    once = save.using(unique="k", until="started")
    first = once.enqueue(1)
    first.cancel()
    assert once.enqueue(1) != first


def test_job_whose_try_failed_keeps_its_arguments(save: Task[..., Any, Any], rows: Rows) -> None:
    once = save.using(unique="k", until="started", latest=True)
    first = once.enqueue(1)
    begin(rows, first)
    rows(
        "UPDATE taskworker_job SET state = 'scheduled', worker_id = NULL, failures = 1, run_at = ? WHERE id = ? "
        "RETURNING id",
        *(NOW, first.id),
    )
    assert once.enqueue(1) != first


def test_job_that_came_back_unbegun_stands_for_new_calls(save: Task[..., Any, Any], rows: Rows) -> None:
    """A worker claims a little ahead, and gives back what finds no slot."""
    once = save.using(unique="k", until="started")
    first = once.enqueue(1)
    begin(rows, first)
    rows("UPDATE taskworker_job SET state = 'ready', worker_id = NULL WHERE id = ? RETURNING id", first.id)
    assert once.enqueue(1) == first


def test_keys_belong_to_their_tasks(save: Task[..., Any, Any], idle_worker: BackgroundTaskWorker) -> None:
    other = idle_worker.task(name="other")(lambda x: x)
    assert save.using(unique=1, until="started").enqueue(1) != other.using(unique=1, until="started").enqueue(1)


# -- within ------------------------------------------------------------------------------------------------------------


def test_job_stands_for_a_period_after_it_was_enqueued(save: Task[..., Any, Any], rows: Rows, clock: Clock) -> None:
    hourly = save.using(unique="Ana", within=3600)
    first = hourly.enqueue(1)
    begin(rows, first)
    assert hourly.enqueue(1) == first
    end(rows, first)
    clock.now += 3_599_999
    found = hourly.enqueue(1)
    assert (found, found.merged, found.state) == (first, True, JobState.SUCCEEDED)
    clock.now += 1
    assert hourly.enqueue(1) != first


def test_job_that_is_unfinished_after_the_period_still_stands(
    save: Task[..., Any, Any], rows: Rows, clock: Clock
) -> None:
    hourly = save.using(unique="Ana", within=3600)
    first = hourly.enqueue(1)
    begin(rows, first)
    clock.now += 7_200_000
    assert hourly.enqueue(1) == first


def test_with_until_started_the_period_is_the_only_reason_to_return_a_begun_job(
    save: Task[..., Any, Any], rows: Rows, clock: Clock
) -> None:
    call = save.using(unique="Ana", within=60, until="started")
    first = call.enqueue(1)
    begin(rows, first)
    assert call.enqueue(1) == first
    clock.now += 60_000
    assert call.enqueue(1) != first


# -- debounce ----------------------------------------------------------------------------------------------------------


def test_debounced_job_is_due_after_the_last_call(save: Task[..., Any, Any], store: Store, clock: Clock) -> None:
    call = save.using(unique=("doc", 7), debounce=30, at_most=100)
    job = call.enqueue(7, "a")
    assert (job.state, store.record(job.id).run_at) == (JobState.SCHEDULED, NOW + 30_000)
    for number, (seconds, due) in enumerate([(20, 50), (40, 70), (60, 90), (80, 100), (99, 100)]):
        clock.now = NOW + seconds * 1000
        assert call.enqueue(7, str(number)) == job
        assert store.record(job.id).run_at == NOW + due * 1000
    assert store.args(job.id) == '[[7,"4"],{}]'
    assert calls_of(store, job) == (6, NOW, NOW + 99_000)


def test_debounced_job_that_is_due_waits_again(
    save: Task[..., Any, Any], store: Store, rows: Rows, clock: Clock
) -> None:
    call = save.using(unique="k", debounce=30)
    job = call.enqueue(1)
    rows("UPDATE taskworker_job SET state = 'ready' WHERE id = ? RETURNING id", job.id)
    clock.now += 31_000
    assert call.enqueue(1).state is JobState.SCHEDULED
    assert store.record(job.id).run_at == NOW + 61_000


def test_clock_that_is_set_back_delays_by_the_jump_at_most(
    save: Task[..., Any, Any], store: Store, clock: Clock
) -> None:
    call = save.using(unique="k", debounce=30, at_most=300)
    job = call.enqueue(1)
    clock.now -= 3_600_000
    call.enqueue(1)
    assert store.record(job.id).run_at == clock.now + 30_000


# -- on the task -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["page_id", lambda page_id, text="": page_id], ids=["parameter", "function"])
def test_task_takes_the_key_from_its_arguments(idle_worker: BackgroundTaskWorker, store: Store, key: Any) -> None:
    @idle_worker.task(name="reindex", unique=Unique(key, until="started", latest=True))
    def reindex(page_id: int, text: str = "") -> None: ...

    first, other = reindex.enqueue(7, "a"), reindex.enqueue(8)
    assert reindex.enqueue(page_id=7, text="b") == first != other
    assert store.args(first.id) == '[[],{"page_id":7,"text":"b"}]'
    many = reindex.enqueue_many([(7,), (9,), (9,)])
    assert (many[0], many[1] == many[2], many[2].merged) == (first, True, True)
    assert counts_of(store)["ready"] == 3


def test_plain_unique_task_uses_the_index(idle_worker: BackgroundTaskWorker, store: Store, rows: Rows) -> None:
    @idle_worker.task(name="reindex", unique=Unique("page_id"))
    def reindex(page_id: int) -> None: ...

    first = reindex.enqueue(7)
    assert (reindex.enqueue(7), reindex.enqueue(7).merged) == (first, True)
    assert rows("SELECT count(*) FROM taskworker_key") == [(0,)]


@pytest.mark.sqlite_only
def test_what_contradicts_itself_is_refused(save: Task[..., Any, Any]) -> None:
    for options, error, words in [
        ({"until": "started"}, ArgumentsError, "are about a key. Give unique=…"),
        ({"unique": "k", "until": "never"}, DeclarationError, "until = 'never' is not allowed"),
        ({"unique": "k", "latest": True}, DeclarationError, "latest=True needs until='started'"),
        ({"unique": "k", "at_most": 5}, DeclarationError, "at_most bounds debounce"),
        ({"unique": "k", "debounce": 5, "within": 5}, DeclarationError, "leave within out"),
        ({"unique": "k", "debounce": 5, "until": "finished"}, DeclarationError, "leave until='finished' out"),
        ({"unique": "k", "debounce": 0}, DeclarationError, "debounce = .* is not allowed"),
        ({"unique": "k", "debounce": 5, "delay": 5}, ArgumentsError, "Leave delay and run_at out"),
        ({"unique": 1.5}, DeclarationError, "unique = 1.5 is not allowed"),
        ({"unique": ("a", ["b"])}, DeclarationError, "Allowed: a string, a whole number, a UUID, or a tuple"),
    ]:
        with pytest.raises(error, match=words):
            save.using(**options)


@pytest.mark.sqlite_only
def test_key_that_is_no_parameter_is_refused_at_the_declaration(idle_worker: BackgroundTaskWorker) -> None:
    with pytest.raises(
        DeclarationError, match=r"from the parameter 'pages', which the task does not have \(it has: x\)"
    ):
        idle_worker.task(name="bad", unique=Unique("pages"))(lambda x: x)
    with pytest.raises(DeclarationError, match="unique = 'x' is not allowed"):
        idle_worker.task(name="bad", unique="x")(lambda x: x)  # type: ignore[arg-type]


def test_many_calls_with_one_key_are_refused(save: Task[..., Any, Any]) -> None:
    with pytest.raises(ArgumentsError, match="belong to one job"):
        save.using(unique="k", until="started").enqueue_many([(1,), (2,)])


@pytest.mark.parametrize("first", [{"until": "started"}, {"within": 60}, {}], ids=["started", "within", "plain"])
def test_one_key_has_one_until(save: Task[..., Any, Any], store: Store, first: dict[str, Any]) -> None:
    job = save.using(unique="k", **first).enqueue(1)
    other = {"until": "started"} if first != {"until": "started"} else {"within": 60}
    with pytest.raises(NotAccepted, match=f"Job {job.id} has the key 'save:k' until it has"):
        save.using(unique="k", **other).enqueue(1)
    job.cancel()
    assert save.using(unique="k", **other).enqueue(1) != job


def test_uid_comes_before_the_key(save: Task[..., Any, Any], rows: Rows) -> None:
    named = save.using(unique="k", until="started", uid="mine")
    first = named.enqueue(1)
    begin(rows, first)
    second = save.using(unique="k", until="started").enqueue(1)
    again = named.enqueue(1)
    assert (again == first != second, again.merged) == (True, False)


# -- transactions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def door(app: Flask, idle_worker: BackgroundTaskWorker) -> Iterator[SessionDoor]:
    state = app.extensions["taskworker"]
    state.store.driver.prepare()
    door = SessionDoor(state.config.database_uri.render_as_string(hide_password=False))
    yield door
    door.end()


def test_key_in_a_session_shares_its_fate(save: Task[..., Any, Any], store: Store, door: SessionDoor) -> None:
    call = save.using(unique="k", until="started", latest=True)
    job = call.enqueue(1, "before")
    within = save.using(unique="k", until="started", latest=True, session=door.given)
    merged = within.enqueue(1, "within")
    assert (merged.merged, merged.state) == (True, JobState.PENDING)
    door.roll_back()
    assert store.args(job.id) == '[[1,"before"],{}]'
    assert within.enqueue(1, "within") == job
    door.commit()
    assert store.args(job.id) == '[[1,"within"],{}]'


def test_calls_at_the_same_moment_leave_one_job(save: Task[..., Any, Any], store: Store, rows: Rows) -> None:
    call = save.using(unique="k", until="started", latest=True)
    start = threading.Barrier(8)

    def enqueue(thread: int) -> list[Job[Any]]:
        start.wait(30)
        return [call.enqueue(thread, str(number)) for number in range(10)]

    with ThreadPoolExecutor(8) as threads:
        jobs = [job for some in threads.map(enqueue, range(8)) for job in some]
    assert len({job.id for job in jobs}) == 1
    assert sum(not job.merged for job in jobs) == 1
    assert calls_of(store, jobs[0])[0] == 80
    assert rows("SELECT count(*) FROM taskworker_job") == [(1,)]


def test_pruned_job_takes_its_key_along(
    save: Task[..., Any, Any], idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    job = save.using(unique="k", until="started").enqueue(1)
    end(rows, job)
    rows("UPDATE taskworker_job SET expires_at = 5 WHERE id = ? RETURNING id", job.id)
    idle_worker.start()
    wait_for(lambda: not rows("SELECT 1 FROM taskworker_job WHERE id = ?", job.id))
    assert rows("SELECT count(*) FROM taskworker_key") == [(0,)]


def test_every_call_is_covered_by_a_run_that_begins_after_it(task_worker: BackgroundTaskWorker) -> None:
    """The promise, with a worker that takes jobs as fast as they come."""
    moments = itertools.count()
    began: list[tuple[int, int]] = []

    @task_worker.task(name="note")
    def note(number: int) -> None:
        began.append((next(moments), number))

    call = note.using(unique="k", until="started", latest=True)
    called = [(next(moments), number, call.enqueue(number)) for number in range(300)]
    for _, _, job in called:
        job.result(timeout=30)
    for moment, number, _ in called:
        assert any(at > moment and ran >= number for at, ran in began), (moment, number)


# -- what people see ---------------------------------------------------------------------------------------------------


def test_page_and_command_say_for_how_many_calls_a_job_stands(make_app: Callable[..., Flask]) -> None:
    lab = Lab(make_app())
    save = lab.task_worker.task(name="save")(lambda text: text)
    with lab.app.app_context():
        jobs = [save.using(unique="k", debounce=60).enqueue(text) for text in "abc"]
    assert lab.data(f"/jobs/{jobs[0].id}")["calls"]["calls"] == 3
    assert "Stands for 3 calls: the first" in lab.page(f"/jobs/{jobs[0].id}")
    run = lab.app.test_cli_runner().invoke
    assert "stands for  3 calls, the last " in run(args=["tasks", "job", str(jobs[0].id)]).stdout


def test_doctor_finds_keys_whose_jobs_are_gone(
    save: Task[..., Any, Any], app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    job = save.using(unique="k", until="started").enqueue(1)
    assert [finding.level for finding in doctor.keys(idle_worker._state())] == ["ok"]
    rows("DELETE FROM taskworker_job WHERE id = ? RETURNING id", job.id)
    (finding,) = doctor.keys(idle_worker._state())
    assert (finding.level, finding.text[:30]) == ("warning", "Keys of jobs that are gone: 1.")
    assert save.using(unique="k", until="started").enqueue(1) != job
    assert [finding.level for finding in doctor.keys(idle_worker._state())] == ["ok"]


def test_purge_takes_keys_along(
    save: Task[..., Any, Any], app: Flask, idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    save.using(unique="k", until="started").enqueue(1).cancel()
    state = idle_worker._state()
    purged = app.test_cli_runner().invoke(args=["tasks", "purge", "--done-before", "0", "--yes"])
    assert purged.exit_code == 0, purged.output
    assert rows("SELECT count(*) FROM taskworker_key") == [(0,)], state
