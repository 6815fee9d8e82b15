"""Enqueueing: what is checked, what is stored, for which app, and from where."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app

from flask_taskworker import BackgroundTaskWorker, BlockingTaskWorker, Job, JobState, Mail
from flask_taskworker.client.rows import new_job, new_uid
from flask_taskworker.core.tasks import EnqueueOptions, Task
from flask_taskworker.errors import AppError, ArgumentsError, ConfigError, DeclarationError, NotAccepted, NotEncodable
from flask_taskworker.signals import job_enqueued
from flask_taskworker.store.sql import Store
from flask_taskworker.store.statements.jobs import alike_pieces
from tests.support.stored import counts_of
from tests.support.waiting import wait_for_collected

pytestmark = pytest.mark.both_databases

Rows = Callable[..., list[tuple[Any, ...]]]


def make_add(task_worker: BackgroundTaskWorker | BlockingTaskWorker, **options: Any) -> Task[..., Any, Any]:
    @task_worker.task(**options)
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


@pytest.fixture
def add(idle_worker: BackgroundTaskWorker) -> Task[..., Any, Any]:
    """A task of a worker that never starts: its jobs stay as they were enqueued."""
    return make_add(idle_worker, name="add")


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, r"missing a required argument: 'x'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"z": 2}, "unexpected keyword argument 'z'"),
        ((1,), {"x": 2}, "multiple values for argument 'x'"),
    ],
)
@pytest.mark.sqlite_only
def test_arguments_that_do_not_fit_are_refused(
    add: Task[..., Any, Any], store: Store, args: tuple[Any, ...], kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(ArgumentsError, match=words) as caught:
        add.enqueue(*args, **kwargs)
    assert "add(x: 'int', y: 'int' = 0)" in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert counts_of(store)["ready"] == 0


@pytest.mark.sqlite_only
def test_keyword_only_and_variadic_parameters_are_checked(idle_worker: BackgroundTaskWorker) -> None:
    @idle_worker.task(name="one")
    def one(a: int, /, *rest: int, key: str) -> None: ...

    @idle_worker.task(name="two")
    def two(**more: int) -> None: ...

    one.enqueue(1, 2, 3, key="k")
    two.enqueue(a=1, b=2)
    for wrong in (lambda: one.enqueue(1, 2), lambda: one.enqueue(a=1, key="k"), lambda: two.enqueue(1)):
        with pytest.raises(ArgumentsError):
            wrong()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (object(), r"args\[0\] is a builtins.object"),
        ({"a": [1, {2, 3j}]}, r"args\[0\]\['a'\]\[1\] member"),
        (float("nan"), r"args\[0\] is nan"),
        ("\ud800", r"args\[0\] holds half a surrogate pair"),
        ("x" * 1_100_000, r"at most 1,048,576 are stored"),
        (lambda: 1, r"args\[0\] is a builtins.function"),
    ],
    ids=["object", "nested", "nan", "surrogate", "too large", "function"],
)
@pytest.mark.sqlite_only
def test_what_json_cannot_hold_is_refused_with_its_place(
    add: Task[..., Any, Any], store: Store, value: object, place: str
) -> None:
    with pytest.raises(NotEncodable, match=place):
        add.enqueue(value)
    assert counts_of(store)["ready"] == 0


# -- what is stored ----------------------------------------------------------------------------------------------------


def test_job_is_stored_when_enqueue_returns(add: Task[..., Any, Any], rows: Rows) -> None:
    job = add.enqueue(1, y=2)
    assert rows("SELECT id, uid, task, queue, kind, priority, state, run_at, args FROM taskworker_job") == [
        (job.id, job.uid, "add", "default", "sync", 0, "ready", 0, '[[1],{"y":2}]')
    ]
    assert (job.state, job.attempt, job.max_attempts, job.run_at) == (JobState.READY, 1, 1, None)
    assert job.created_at is not None
    assert abs(datetime.now(UTC) - job.created_at) < timedelta(minutes=1)
    assert repr(job) == f"<Job {job.id} add ready>"


def test_job_is_the_same_when_found_again(
    add: Task[..., Any, Any], idle_worker: BackgroundTaskWorker, store: Store
) -> None:
    job = add.using(delay=3600, priority=5, queue="other").enqueue(1)
    again = idle_worker.get_job(job.id)
    assert again == job
    assert hash(again) == hash(job)
    assert store.record(job.id) == job._record


@pytest.mark.sqlite_only
def test_delay_is_in_seconds_or_a_timedelta(add: Task[..., Any, Any], store: Store) -> None:
    before = store.clock()
    jobs = [add.using(delay=delay).enqueue(1) for delay in (90, timedelta(minutes=1.5))]
    after = store.clock()
    for job in jobs:
        assert job.state is JobState.SCHEDULED
        assert before + 90_000 <= store.record(job.id).run_at <= after + 90_000


@pytest.mark.sqlite_only
def test_run_at_may_be_in_any_zone(add: Task[..., Any, Any]) -> None:
    moment = datetime(2100, 5, 1, 12, 30, tzinfo=UTC)
    for given in (moment, moment.astimezone(), moment.astimezone().astimezone(UTC)):
        job = add.using(run_at=given).enqueue(1)
        assert (job.state, job.run_at) == (JobState.SCHEDULED, moment)


@pytest.mark.parametrize("options", [{"delay": 0}, {"run_at": datetime(2001, 1, 1, tzinfo=UTC)}])
def test_job_that_is_due_is_ready_and_has_no_moment(
    add: Task[..., Any, Any], options: dict[str, Any], store: Store
) -> None:
    """No moment, since a clock that is set back must not hide a job that was accepted."""
    job = add.using(**options).enqueue(1)
    assert (job.state, store.record(job.id).run_at) == (JobState.READY, 0)


def test_delayed_job_runs_when_it_is_due(task_worker: BackgroundTaskWorker) -> None:
    add = make_add(task_worker)
    job = add.using(delay=0.05).enqueue(1, 2)
    assert job.state is JobState.SCHEDULED
    assert job.result(timeout=20) == 3
    job.refresh()
    assert job.started_at is not None
    assert job.run_at is not None
    assert job.started_at >= job.run_at


@pytest.mark.sqlite_only
def test_bad_option_is_refused_with_the_value(add: Task[..., Any, Any]) -> None:
    for options, error, words in [
        ({"delay": -1}, DeclarationError, "delay is -1"),
        ({"delay": "1"}, DeclarationError, "delay is '1'. Give a number of seconds or a timedelta"),
        ({"delay": float("nan")}, DeclarationError, "delay is nan"),
        ({"delay": 1e300}, DeclarationError, r"delay is 1e\+300. Give a period"),
        ({"run_at": datetime(2030, 1, 1)}, DeclarationError, "no time zone. Give an aware datetime"),  # noqa: DTZ001
        ({"run_at": "2030-01-01"}, DeclarationError, "run_at is '2030-01-01'. Give an aware datetime"),
        ({"delay": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, ArgumentsError, "either delay or run_at"),
        ({"priority": 1.0}, DeclarationError, "priority = 1.0"),
        ({"priority": -(2**31)}, DeclarationError, "priority = -2147483648"),
        ({"queue": ""}, DeclarationError, "queue = ''"),
        ({"unique": "a\nb"}, DeclarationError, "unique = 'a"),
        ({"unique": 5.5}, DeclarationError, "unique = 5.5"),
        ({"uid": "x" * 201}, DeclarationError, "uid = 'xxx"),
    ]:
        with pytest.raises(error, match=words):
            add.using(**options)


def test_options_override_those_of_the_task(idle_worker: BackgroundTaskWorker) -> None:
    add = make_add(idle_worker, queue="web", priority=3)
    assert [(job.queue, job.priority) for job in (add.enqueue(1), add.using(queue="b", priority=0).enqueue(1))] == [
        ("web", 3),
        ("b", 0),
    ]


# -- unique and uid ----------------------------------------------------------------------------------------------------


def test_unique_key_has_one_unfinished_job(add: Task[..., Any, Any], store: Store) -> None:
    first = add.using(unique="k").enqueue(1)
    assert add.using(unique="k").enqueue(2) == first
    assert add.using(unique="other").enqueue(2) != first
    assert store.args(first.id) == "[[1],{}]"
    assert first.cancel()
    again = add.using(unique="k").enqueue(3)
    assert again != first
    assert again.state is JobState.READY


def test_unique_key_belongs_to_its_task(add: Task[..., Any, Any], idle_worker: BackgroundTaskWorker) -> None:
    other = idle_worker.task(name="other")(lambda x: x)
    assert add.using(unique="k").enqueue(1) != other.using(unique="k").enqueue(1)


def test_unique_key_and_task_name_do_not_run_into_each_other(idle_worker: BackgroundTaskWorker) -> None:
    pairs = [("a", "b:c"), ("a:b", "c"), ("a:b:c", ":"), ("a\\", "b:c"), ("a\\:b", "c")]
    jobs = []
    for name, key in pairs:
        task = idle_worker.task(name=name)(lambda: None)
        jobs += [task.using(unique=key).enqueue(), task.using(unique=key).enqueue()]
    assert len(set(jobs)) == len(pairs)


def test_unique_key_stays_taken_while_the_job_waits_for_a_retry(
    add: Task[..., Any, Any], store: Store, rows: Rows
) -> None:
    job = add.using(unique="k", delay=3600).enqueue(1)
    assert add.using(unique="k").enqueue(1) == job
    rows("UPDATE taskworker_job SET state = 'running', worker_id = 'w' WHERE id = ?", job.id)
    assert add.using(unique="k").enqueue(1) == job


def test_retry_of_a_job_whose_unique_key_is_taken_says_so(add: Task[..., Any, Any], store: Store) -> None:
    first = add.using(unique="k").enqueue(1)
    first.cancel()
    second = add.using(unique="k").enqueue(1)
    with pytest.raises(NotAccepted, match=f"job {second.id} .*unfinished"):
        first.retry()
    assert first.refresh().state is JobState.CANCELLED
    second.cancel()
    assert first.retry()


def test_uid_is_never_stored_twice(add: Task[..., Any, Any], store: Store) -> None:
    first = add.using(uid="order-7").enqueue(1)
    assert (first.uid, add.using(uid="order-7").enqueue(1)) == ("order-7", first)
    first.cancel()
    again = add.using(uid="order-7").enqueue(1)
    assert again == first
    assert again.state is JobState.CANCELLED


def test_uid_of_another_tasks_job_is_refused(add: Task[..., Any, Any], idle_worker: BackgroundTaskWorker) -> None:
    """Returning the other task's job would lose this one without a word."""
    other = idle_worker.task(name="other")(lambda x: x)
    job = add.using(uid="order-7").enqueue(1)
    with pytest.raises(NotAccepted, match=f"'order-7' belongs to job {job.id} of the task 'add'"):
        other.using(uid="order-7").enqueue(1)


# -- many at once ------------------------------------------------------------------------------------------------------


def test_many_are_stored_in_order(add: Task[..., Any, Any], store: Store) -> None:
    jobs = add.enqueue_many([(1, 2), {"x": 3}, [4]])
    assert [store.args(job.id) for job in jobs] == ["[[1,2],{}]", '[[],{"x":3}]', "[[4],{}]"]
    assert [job.id for job in jobs] == [jobs[0].id + i for i in range(3)]
    assert add.enqueue_many([]) == []


@pytest.mark.parametrize("characters", [1, 100, 1_000_000])
def test_many_are_stored_in_order_however_many_statements_that_takes(
    add: Task[..., Any, Any], store: Store, monkeypatch: pytest.MonkeyPatch, characters: int
) -> None:
    monkeypatch.setattr("flask_taskworker.store.statements.jobs.PIECE_CHARACTERS", characters)
    add.enqueue(0)
    jobs = add.enqueue_many([(number,) for number in range(50)])
    assert [store.args(job.id) for job in jobs] == [f"[[{number}],{{}}]" for number in range(50)]
    assert [store.record(job.id).uid for job in jobs] == [job.uid for job in jobs]
    assert [job.id for job in jobs] == list(range(jobs[0].id, jobs[0].id + 50))


def test_statement_for_many_has_a_bounded_length(
    add: Task[..., Any, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_taskworker.store.statements.jobs.PIECE_CHARACTERS", 100)
    job = new_job(add, "x" * 40, EnqueueOptions(), store.clock())
    assert [len(piece) for piece in alike_pieces([job] * 10)] == [2, 2, 2, 2, 2]
    assert [len(piece) for piece in alike_pieces([job._replace(args="x" * 1000)] * 2)] == [1, 1]


def test_many_of_several_kinds_keep_what_is_their_own(add: Task[..., Any, Any], store: Store) -> None:
    like = new_job(add, "[[1],{}]", EnqueueOptions(), store.clock())
    jobs = [
        like._replace(uid=f"uid-{number}", args=f"[[{number}],{{}}]", queue=queue, priority=number // 2, origin=origin)
        for number, (queue, origin) in enumerate([("a", None), ("a", None), ("b", "{}"), ("a", None), ("a", "{}")])
    ]
    records = store.add(jobs)
    for job, record in zip(jobs, records, strict=True):
        assert store.record(record.id) == record
        assert (record.uid, record.queue, record.priority) == (job.uid, job.queue, job.priority)
        assert store.args(record.id) == job.args


ODD_TEXTS = ["\"\\'", "a\x00b", "\x1f\x7f\u2028", "é😀", "\\u0000", "</script>", "$[0]", "x" * 100_000]


def test_many_take_any_text(add: Task[..., Any, Any], store: Store) -> None:
    for text in ODD_TEXTS:
        one = add.enqueue(text)
        assert [store.args(job.id) for job in add.enqueue_many([(text,)] * 2)] == [store.args(one.id)] * 2


def test_numbers_of_jobs_that_are_gone_are_not_given_again(
    add: Task[..., Any, Any], idle_worker: BackgroundTaskWorker, rows: Rows
) -> None:
    gone = add.enqueue_many([(1,), (2,), (3,)])
    rows("DELETE FROM taskworker_job RETURNING id")
    assert add.enqueue_many([(1,), (2,)])[0].id > gone[-1].id


@pytest.mark.sqlite_only
def test_many_find_free_numbers_where_a_copied_file_has_lost_count(add: Task[..., Any, Any], rows: Rows) -> None:
    first = add.enqueue_many([(1,), (2,), (3,)])
    rows("DELETE FROM sqlite_sequence RETURNING seq")
    assert add.enqueue_many([(1,), (2,)])[0].id == first[-1].id + 1


@pytest.mark.sqlite_only  # PostgreSQL takes a repeat for one whose first answer was lost.
def test_many_of_which_one_is_taken_leave_nothing_behind(add: Task[..., Any, Any], store: Store) -> None:
    like = new_job(add, "[[1],{}]", EnqueueOptions(), store.clock())
    store.add([like])
    with pytest.raises(NotAccepted, match="UNIQUE"):
        store.add([like._replace(uid="other"), like])
    assert counts_of(store)["ready"] == 1
    assert [job.state for job in add.enqueue_many([(1,), (2,)])] == [JobState.READY] * 2


def test_many_take_options(add: Task[..., Any, Any]) -> None:
    jobs = add.using(queue="bulk", delay=60).enqueue_many((i,) for i in range(3))
    assert {(job.queue, job.state) for job in jobs} == {("bulk", JobState.SCHEDULED)}


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ((1, 2, 3), ArgumentsError, "too many positional"),
        (5, ArgumentsError, r"Call 1 of enqueue_many is 5. Each must be a tuple of arguments, such as \(5,\)"),
        ("ab", ArgumentsError, "Call 1 of enqueue_many is 'ab'"),
        ({1: 2}, ArgumentsError, "Call 1 of enqueue_many"),
        ((object(),), NotEncodable, r"args\[0\]"),
    ],
)
@pytest.mark.sqlite_only
def test_many_are_stored_all_or_none(
    add: Task[..., Any, Any], store: Store, wrong: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        add.enqueue_many([(1,), wrong, (3,)])
    assert counts_of(store)["ready"] == 0


@pytest.mark.parametrize("unique", [None, "k"], ids=["batch", "one by one"])
def test_many_are_stored_all_or_none_by_the_database(
    add: Task[..., Any, Any], store: Store, unique: str | None
) -> None:
    good = new_job(add, "[[1],{}]", EnqueueOptions(), store.clock())._replace(unique_key=unique)
    bad = good._replace(uid="bad", unique_key=None, kind="neither")  # type: ignore[arg-type]
    with pytest.raises(NotAccepted, match="The job was not accepted"):
        store.add([good, bad])
    assert counts_of(store)["ready"] == 0


# -- different tasks in one call ---------------------------------------------------------------------------------------


@pytest.fixture
def subtract(idle_worker: BackgroundTaskWorker) -> Task[..., Any, Any]:
    @idle_worker.task(name="subtract", queue="less", priority=2)
    async def subtract(x: int) -> int:
        return -x

    return subtract


def test_bound_call_is_checked_and_encoded_at_once(
    idle_worker: BackgroundTaskWorker, add: Task[..., Any, Any], store: Store
) -> None:
    with pytest.raises(ArgumentsError, match="missing a required argument: 'x'"):
        add.bind()
    with pytest.raises(NotEncodable, match=r"args\[0\]"):
        add.bind(object())
    with pytest.raises(DeclarationError, match="priority"):
        add.bind(1).using(priority="high")  # type: ignore[typeddict-item]
    given = [1]
    call = add.bind(given)
    given.append(2)
    (job,) = idle_worker.enqueue_all([call])
    assert store.args(job.id) == "[[[1]],{}]"


def test_bound_calls_of_different_tasks_are_stored_in_order(
    idle_worker: BackgroundTaskWorker, add: Task[..., Any, Any], subtract: Task[..., Any, Any], store: Store
) -> None:
    once = add.using(queue="mine", uid="u")
    calls = [add.bind(1), subtract.bind(2), once.bind(3).using(delay=60), add.bind(4)]
    jobs = idle_worker.enqueue_all(calls)
    assert [(job.task, job.queue, job.kind, job.priority, job.state) for job in jobs] == [
        ("add", "default", "sync", 0, "ready"),
        ("subtract", "less", "async", 2, "ready"),
        ("add", "mine", "sync", 0, "scheduled"),
        ("add", "default", "sync", 0, "ready"),
    ]
    assert jobs[2].uid == "u"
    assert [job.id for job in jobs] == list(range(jobs[0].id, jobs[0].id + 4))
    assert [job.refresh().state for job in jobs] == ["ready", "ready", "scheduled", "ready"]
    assert idle_worker.enqueue_all([]) == []


def test_bound_calls_find_the_jobs_that_stand_for_them(
    idle_worker: BackgroundTaskWorker, add: Task[..., Any, Any], store: Store
) -> None:
    keyed, named = add.using(unique="k"), add.using(uid="u")
    first = keyed.enqueue(1)
    jobs = idle_worker.enqueue_all([named.bind(1), keyed.bind(2), add.bind(3), named.bind(4)])
    assert (jobs[1], jobs[3]) == (first, jobs[0])
    assert counts_of(store)["ready"] == 3


def test_bound_calls_are_stored_all_or_none(
    idle_worker: BackgroundTaskWorker, add: Task[..., Any, Any], subtract: Task[..., Any, Any], store: Store
) -> None:
    add.using(uid="u").enqueue(1)
    with pytest.raises(NotAccepted, match="'u' belongs to job"):
        idle_worker.enqueue_all([add.bind(1), subtract.using(uid="u").bind(2)])
    assert counts_of(store)["ready"] == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda add, session: [add], r"Make a call of a task with task.bind"),
        (lambda add, session: [add.using(session=session).bind(1)], "Give session=… to enqueue_all"),
    ],
    ids=["a task", "a session of its own"],
)
@pytest.mark.sqlite_only
def test_what_enqueue_all_cannot_take_is_refused_with_the_remedy(
    idle_worker: BackgroundTaskWorker, add: Task[..., Any, Any], make: Callable[..., Any], words: str
) -> None:
    with pytest.raises(ArgumentsError, match=words):
        idle_worker.enqueue_all(make(add, object()))


@pytest.mark.sqlite_only
def test_call_of_another_task_workers_task_is_refused(
    idle_worker: BackgroundTaskWorker, make_app: Callable[..., Flask], add: Task[..., Any, Any]
) -> None:
    app = make_app()
    foreign = make_add(BackgroundTaskWorker(app), name="foreign")
    with pytest.raises(ArgumentsError, match="The task foreign belongs to another TaskWorker"):
        idle_worker.enqueue_all([add.bind(1), foreign.bind(1)])


def test_coroutine_enqueues_bound_calls(
    idle_worker: BackgroundTaskWorker, add: Task[..., Any, Any], subtract: Task[..., Any, Any]
) -> None:
    jobs = asyncio.run(idle_worker.aenqueue_all([add.bind(1), subtract.bind(2)]))
    assert [job.task for job in jobs] == ["add", "subtract"]


# -- from coroutines and threads ---------------------------------------------------------------------------------------


def test_async_view_enqueues_and_waits(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    add = make_add(task_worker)

    @app.get("/add")
    async def view() -> dict[str, Any]:
        job = await add.aenqueue(1, 2)
        many = await add.using(priority=1).aenqueue_many([(3, 4), (5, 6)])
        return {"results": [await one.aresult(timeout=20) for one in (job, *many)]}

    assert app.test_client().get("/add").json == {"results": [3, 7, 11]}


def test_tasks_enqueue_tasks(task_worker: BackgroundTaskWorker) -> None:
    add = make_add(task_worker)

    @task_worker.task
    def from_sync(x: int) -> int:
        return add.enqueue(x, 1).id

    @task_worker.task
    async def from_async(x: int) -> tuple[int, int]:
        return add.enqueue(x, 10).id, (await add.aenqueue(x, 100)).id

    ids = [from_sync.enqueue(1).result(timeout=20), *from_async.enqueue(1).result(timeout=20)]
    assert [task_worker.get_job(job_id).result(timeout=20) for job_id in ids] == [2, 11, 101]


@pytest.mark.sqlite_only
def test_async_errors_are_those_of_the_sync_face(add: Task[..., Any, Any]) -> None:
    with pytest.raises(ArgumentsError):
        asyncio.run(add.aenqueue(1, 2, 3))
    with pytest.raises(NotEncodable):
        asyncio.run(add.using(delay=1).aenqueue(object()))
    with pytest.raises(ArgumentsError, match="Call 0"):
        asyncio.run(add.aenqueue_many([5]))  # type: ignore[list-item]


def test_many_threads_enqueue_at_once(add: Task[..., Any, Any], store: Store) -> None:
    ready = threading.Barrier(8)
    jobs: list[list[Job[Any]]] = [[] for _ in range(8)]

    def enqueue(number: int) -> None:
        ready.wait(20)
        jobs[number] = [add.enqueue(number, i) for i in range(25)]

    threads = [threading.Thread(target=enqueue, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    stored = {job.id: f"[[{number},{i}],{{}}]" for number in range(8) for i, job in enumerate(jobs[number])}
    assert len(stored) == 200
    assert {job_id: store.args(job_id) for job_id in stored} == stored
    assert counts_of(store)["ready"] == 200


# -- job_enqueued ------------------------------------------------------------------------------------------------------


def test_job_enqueued_is_sent_once_each_after_the_commit(app: Flask, add: Task[..., Any, Any], database: Path) -> None:
    seen: list[tuple[Any, str, int, int]] = []

    def receive(sender: Flask, job: Job[Any]) -> None:
        with closing(sqlite3.connect(database)) as other:
            found = other.execute("SELECT count(*) FROM taskworker_job WHERE id = ?", (job.id,)).fetchone()
        seen.append((sender, job.task, found[0], threading.get_ident()))

    with job_enqueued.connected_to(receive):
        add.enqueue(1)
        add.enqueue_many([(1,), (2,)])
    assert seen == [(app, "add", 1, threading.get_ident())] * 3


def test_job_enqueued_is_not_sent_for_a_job_that_was_there(add: Task[..., Any, Any], store: Store) -> None:
    heard: list[int] = []
    now = store.clock()

    def hear(sender: Flask, job: Job[Any]) -> None:
        heard.append(job.id)

    with job_enqueued.connected_to(hear):
        firsts = [call.enqueue(1) for call in (add.using(unique="k"), add.using(uid="u"))]
        store.clock = lambda: now + 60_000
        assert [add.using(unique="k").enqueue(2), add.using(uid="u").enqueue(2)] == firsts
    assert heard == [job.id for job in firsts]


@pytest.mark.sqlite_only
def test_receiver_that_raises_harms_no_enqueue(
    add: Task[..., Any, Any], store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int] = []

    def fail(sender: Flask, job: Job[Any]) -> None:
        raise ZeroDivisionError("on purpose")

    def hear(sender: Flask, job: Job[Any]) -> None:
        heard.append(job.id)

    with job_enqueued.connected_to(fail), job_enqueued.connected_to(hear), caplog.at_level(logging.ERROR):
        job = add.enqueue(1)
    assert heard == [job.id]
    assert store.record(job.id).state == "ready"
    assert "a receiver of" in caplog.text
    assert "ZeroDivisionError: on purpose" in caplog.text


@pytest.mark.parametrize("where", ["sync", "on a loop", "aenqueue"])
@pytest.mark.sqlite_only
def test_coroutine_receiver_is_awaited_wherever_the_job_is_enqueued(add: Task[..., Any, Any], where: str) -> None:
    heard: list[int] = []

    async def hear(sender: Flask, job: Job[Any]) -> None:
        await asyncio.sleep(0)
        heard.append(job.id)

    async def enqueue() -> Job[Any]:
        return add.enqueue(1) if where == "on a loop" else await add.aenqueue(1)

    with job_enqueued.connected_to(hear):
        job = add.enqueue(1) if where == "sync" else asyncio.run(enqueue())
    assert heard == [job.id]


@pytest.mark.sqlite_only
def test_worker_is_woken_even_where_a_receiver_ends_the_thread(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    app = make_app(TASKER_LOOP_INTERVAL=3600)
    task_worker = make_worker(app)
    add = make_add(task_worker)

    def leave(sender: Flask, job: Job[Any]) -> None:
        raise SystemExit

    # The worker looks by itself only after an hour; until then another process must wake it.
    add.enqueue(0).result(timeout=20)
    with job_enqueued.connected_to(leave), pytest.raises(SystemExit):
        add.enqueue(1, 2)
    job = task_worker.get_job(2)
    assert job.result(timeout=20) == 3


# -- which app ---------------------------------------------------------------------------------------------------------


def test_without_an_app_enqueueing_says_what_to_do() -> None:
    add = make_add(BackgroundTaskWorker())
    with pytest.raises(AppError, match=r"No app is registered with this TaskWorker. Call init_app\(app\) first"):
        add.enqueue(1)


@pytest.mark.sqlite_only
def test_the_only_app_needs_no_context(add: Task[..., Any, Any], make_app: Callable[..., Flask]) -> None:
    assert add.enqueue(1).id == 1
    with make_app().app_context():  # one that is not registered
        assert add.enqueue(1).id == 2


@pytest.mark.sqlite_only
def test_of_several_apps_the_current_one_is_meant(make_app: Callable[..., Flask]) -> None:
    one, two = make_app(), make_app()
    task_worker = BackgroundTaskWorker(one)
    task_worker.init_app(two)
    add = make_add(task_worker)
    for app in (one, two):
        with app.app_context():
            job = add.enqueue(1)
        assert app.extensions["taskworker"].store.record(job.id).uid == job.uid
    with one.app_context(), pytest.raises(LookupError):
        task_worker.get_job(2)


@pytest.mark.sqlite_only
def test_of_several_apps_none_is_guessed(make_app: Callable[..., Flask]) -> None:
    one, two = make_app(), make_app()
    task_worker = BackgroundTaskWorker(one)
    task_worker.init_app(two)
    add = make_add(task_worker)
    with pytest.raises(AppError, match=r"Several apps are registered \('app1', 'app2'\). Push the context") as caught:
        add.enqueue(1)
    assert "with app.app_context()" in str(caught.value)
    with make_app().app_context(), pytest.raises(AppError, match="Several"):
        add.enqueue(1)


def test_job_stays_with_the_app_that_made_it(make_app: Callable[..., Flask]) -> None:
    one, two = make_app(), make_app()
    task_worker = BackgroundTaskWorker(one)
    task_worker.init_app(two)
    with one.app_context():
        job = make_add(task_worker).enqueue(1)
    with two.app_context():
        assert job.cancel()
    assert job.refresh().state is JobState.CANCELLED


@pytest.mark.sqlite_only
def test_app_takes_one_task_worker(app: Flask, idle_worker: BackgroundTaskWorker) -> None:
    for another in (idle_worker, BackgroundTaskWorker()):
        with pytest.raises(AppError, match=f"The app '{app.import_name}' has a TaskWorker already. Import and use"):
            another.init_app(app)


@pytest.mark.parametrize("kind", [BackgroundTaskWorker, BlockingTaskWorker, Mail])
@pytest.mark.parametrize("given", ["shop", lambda: Flask("shop"), Flask])
def test_what_is_not_an_app_is_refused_with_the_remedy(kind: Any, given: Any) -> None:
    for register in (kind, lambda app: kind().init_app(app)):
        with pytest.raises(ArgumentsError, match=r"^app is .*\. Give the Flask app itself"):
            register(given)


@pytest.mark.sqlite_only
def test_current_app_is_the_app_that_it_stands_for(app: Flask) -> None:
    with app.app_context():
        task_worker, mail = BackgroundTaskWorker(current_app), Mail(current_app)  # type: ignore[arg-type]
    task_worker.task(name="work")(lambda: current_app.import_name).enqueue()
    assert mail.connect().mail is app.extensions["mail"]
    assert task_worker._state().find_app() is app


@pytest.mark.parametrize("calls", [None, 3])
@pytest.mark.sqlite_only
def test_many_calls_that_are_none_are_refused_with_the_remedy(add: Task[..., Any, Any], calls: Any) -> None:
    for enqueue in (add.enqueue_many, lambda calls: asyncio.run(add.aenqueue_many(calls))):
        with pytest.raises(ArgumentsError, match=rf"enqueue_many was given {calls}\. Give a list of calls"):
            enqueue(calls)


@pytest.mark.sqlite_only
def test_two_apps_on_one_database_are_refused_naming_both(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/one.db"
    one, two = make_app(TASKER_DATABASE_URI=uri), make_app(TASKER_DATABASE_URI=uri)
    BackgroundTaskWorker(one)
    with pytest.raises(AppError, match="'app1' and 'app2' would share .*one.db.*TASKER_DATABASE_URI"):
        BackgroundTaskWorker(two)
    assert "taskworker" not in two.extensions


@pytest.mark.sqlite_only
def test_a_symbolic_link_is_the_same_database(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    one = make_app(TASKER_DATABASE_URI=f"sqlite:///{tmp_path}/one.db")
    two = make_app(TASKER_DATABASE_URI=f"sqlite:///{tmp_path}/link/one.db")
    BackgroundTaskWorker(one)
    with pytest.raises(AppError, match="would share"):
        BackgroundTaskWorker(two)


def make_same_app(tmp_path: Path) -> Flask:
    return Flask("factory", instance_path=str(tmp_path), root_path=str(tmp_path))


def test_factory_that_is_called_again_replaces_its_app(
    tmp_path: Path, make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    first, second = make_same_app(tmp_path), make_same_app(tmp_path)
    task_worker = make_worker(first)
    add = make_add(task_worker)
    assert add.enqueue(1).result(timeout=20) == 1
    task_worker.init_app(second)
    # Without a context: only the second app is left.
    assert add.enqueue(2).result(timeout=20) == 2
    with second.app_context():
        assert add.enqueue(3).result(timeout=20) == 3
    with first.app_context(), pytest.raises(AppError, match="A later app 'factory' .* has replaced this one"):
        add.enqueue(4)


def test_factory_with_a_worker_of_its_own_replaces_its_app(
    tmp_path: Path, make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    apps = [make_same_app(tmp_path) for _ in range(2)]
    workers = [make_worker(app) for app in apps]
    assert make_add(workers[1]).enqueue(2).result(timeout=20) == 2
    with pytest.raises(AppError, match="No app is registered"):
        make_add(workers[0]).enqueue(1)


@pytest.mark.sqlite_only
def test_database_of_a_collected_app_is_free(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/one.db"
    BackgroundTaskWorker(make_app(TASKER_DATABASE_URI=uri))
    gc.collect()
    app = make_app(TASKER_DATABASE_URI=uri)
    assert make_add(BackgroundTaskWorker(app)).enqueue(1).id == 1


def test_collected_app_is_forgotten(make_app: Callable[..., Flask]) -> None:
    one, two = make_app(), make_app()
    task_worker = BackgroundTaskWorker(one)
    task_worker.init_app(two)
    add = make_add(task_worker)
    del one
    gc.collect()
    job = add.enqueue(1)
    assert two.extensions["taskworker"].store.record(job.id).uid == job.uid


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("no_collector")
def test_app_that_waits_for_the_garbage_collector_is_gone(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker], tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/one/jobs.db"
    one = make_app(TASKER_DATABASE_URI=uri)
    one.get("/")(lambda app=one: app.name)  # a cycle, as a view made inside a factory is in one
    task_worker = make_worker(one)
    add = make_add(task_worker)
    add.enqueue(1).result(timeout=20)
    task_worker.stop()
    shutil.rmtree(tmp_path / "one")
    del one

    two = make_app()
    task_worker.init_app(two)
    task_worker.start()
    assert add.enqueue(2).result(timeout=20) == 2


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("no_collector")
def test_database_of_an_app_that_waits_for_the_garbage_collector_is_free(
    make_app: Callable[..., Flask], tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/one.db"
    one = make_app(TASKER_DATABASE_URI=uri)
    one.get("/")(lambda app=one: app.name)  # a cycle, as a view made inside a factory is in one
    BackgroundTaskWorker(one)
    del one
    assert make_add(BackgroundTaskWorker(app := make_app(TASKER_DATABASE_URI=uri))).enqueue(1).id == 1
    assert app


@pytest.mark.sqlite_only
def test_task_declared_inside_a_factory_does_not_keep_the_last_app(make_app: Callable[..., Flask]) -> None:
    task_worker = BackgroundTaskWorker()

    def create_app() -> Flask:
        app = make_app()
        task_worker.init_app(app)
        app.extensions["who"] = task_worker.task(name="who")(lambda: app.import_name)
        return app

    create_app()
    app = create_app()
    job = app.extensions["who"].enqueue()
    assert app.extensions["taskworker"].store.record(job.id).uid == job.uid


def test_worker_of_a_collected_app_stops(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    one, two = make_app(), make_app()
    task_worker = make_worker(one, two)
    add = make_add(task_worker)
    with one.app_context():
        add.enqueue(1).result(timeout=20)
        store = one.extensions["taskworker"].store
    assert len(store.workers()) == 1
    del one
    wait_for_collected(lambda: not store.workers(), "the worker of the collected app is gone")
    assert add.enqueue(2).result(timeout=20) == 2
    store.driver.close()


@pytest.mark.sqlite_only
@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_memory_is_refused_with_the_remedy(make_app: Callable[..., Flask], uri: str) -> None:
    with pytest.raises(ConfigError, match="in-memory database.*no restart would survive.*in tests one in a temporary"):
        BackgroundTaskWorker(make_app(TASKER_DATABASE_URI=uri))


@pytest.mark.sqlite_only
def test_relative_path_is_relative_to_the_instance_folder(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    app = make_app(TASKER_DATABASE_URI="sqlite:///deeper/jobs.db")
    make_add(BackgroundTaskWorker(app)).enqueue(1)
    assert (tmp_path / "instance1" / "deeper" / "jobs.db").exists()


def test_blocking_worker_enqueues_without_being_started(app: Flask) -> None:
    job = make_add(BlockingTaskWorker(app)).enqueue(1)
    assert job.refresh().state is JobState.READY


def test_collected_app_leaves_no_threads_behind(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    add = make_add(BackgroundTaskWorker(app))
    before = set(threading.enumerate())
    asyncio.run(add.aenqueue(1))
    begun = set(threading.enumerate()) - before
    assert begun
    del app
    wait_for_collected(lambda: not any(thread.is_alive() for thread in begun))


def test_uids_grow_with_time_and_differ() -> None:
    uids = [new_uid(now) for now in (1, 1000, 1_700_000_000_000)]
    assert uids == sorted(uids)
    assert new_uid(5) != new_uid(5)
