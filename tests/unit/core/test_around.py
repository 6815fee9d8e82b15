"""Around jobs: generators of the application, what sees calls before they are enqueued, and values that jobs carry."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask, g

from flask_taskworker import (
    BackgroundTaskWorker,
    Bound,
    CancelJob,
    JobCancelled,
    JobFailed,
    JobState,
    Retry,
    SnoozeJob,
    current_job,
)
from flask_taskworker.client import origin
from flask_taskworker.errors import ArgumentsError, DeclarationError, NotEncodable
from tests.support.apps import task_worker_of
from tests.support.doors import beside_the_jobs
from tests.support.waiting import wait_for

PATIENCE = 20.0
tenant: ContextVar[str] = ContextVar("tenant", default="none")


def test_what_is_declared_first_is_outermost_and_encloses_the_try(task_worker: BackgroundTaskWorker) -> None:
    seen: list[str] = []

    def record(name: str) -> Callable[[Any], Iterator[None]]:
        def around(job: Any) -> Iterator[None]:
            seen.append(f"{name} before {job.id} on {threading.current_thread().name}")
            yield
            seen.append(f"{name} after")

        return around

    task_worker.around(record("outer"))
    task_worker.around(record("inner"))

    @task_worker.task
    def work() -> str:
        seen.append("work")
        return threading.current_thread().name

    job = work.enqueue()
    thread = job.result(timeout=PATIENCE)
    before = [f"{name} before {job.id} on {thread}" for name in ("outer", "inner")]
    assert seen == [*before, "work", "inner after", "outer after"]


def test_async_generator_is_around_async_tasks_in_the_task_of_the_job(task_worker: BackgroundTaskWorker) -> None:
    tasks: list[Any] = []

    @task_worker.around
    async def note(job: Any) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        tenant.set("set around")
        tasks.append(asyncio.current_task())
        yield

    @task_worker.task
    async def work() -> str:
        tasks.append(asyncio.current_task())
        return tenant.get()

    @task_worker.task
    def sync_work() -> str:
        return tenant.get()

    assert work.enqueue().result(timeout=PATIENCE) == "set around"
    assert sync_work.enqueue().result(timeout=PATIENCE) == "none"
    assert len(tasks) == 2
    assert tasks[0] is tasks[1]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_it_gets_what_the_task_raises_and_what_it_raises_itself_ends_the_try(
    task_worker: BackgroundTaskWorker, kind: str
) -> None:
    seen: list[str] = []

    @task_worker.around(blocking=False)
    def translate(job: Any) -> Iterator[None]:
        try:
            yield
        except LookupError as error:
            seen.append(str(error))
            raise CancelJob("not there any more") from error

    def fail() -> None:
        raise LookupError("gone")

    async def fail_async() -> None:
        fail()

    task = task_worker.task(retry=3)(fail if kind == "sync" else fail_async)
    with pytest.raises(JobCancelled, match="not there any more"):
        task.enqueue().result(timeout=PATIENCE)
    assert seen == ["gone"]


def test_it_may_snooze_before_the_task_and_is_entered_once_a_try(task_worker: BackgroundTaskWorker) -> None:
    tries: list[int] = []

    @task_worker.around
    def closed_at_first(job: Any) -> Iterator[None]:
        tries.append(job.attempt)
        if len(tries) == 1:
            raise SnoozeJob(0.001)
        yield

    @task_worker.task(retry=Retry(2, base=0.001))
    def work() -> None:
        if current_job.attempt == 1:
            raise ValueError("at first")

    work.enqueue().result(timeout=PATIENCE)
    assert tries == [1, 1, 2]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("times", [0, 2])
def test_one_that_does_not_yield_once_fails_the_job_and_is_named(
    task_worker: BackgroundTaskWorker, kind: str, times: int
) -> None:
    @task_worker.around(blocking=False)
    def wrong(job: Any) -> Iterator[None]:
        for _ in range(times):
            yield

    def work() -> None: ...
    async def async_work() -> None: ...

    task = task_worker.task(work if kind == "sync" else async_work)
    with pytest.raises(JobFailed) as failed:
        task.enqueue().result(timeout=PATIENCE)
    assert f"{wrong.__qualname__}, each of which must yield once" in failed.value.traceback


def test_it_is_around_the_tasks_and_queues_that_were_named(task_worker: BackgroundTaskWorker) -> None:
    seen: list[tuple[str, int]] = []

    @task_worker.task
    def one() -> None: ...
    @task_worker.task
    def other() -> None: ...
    def note(name: str) -> Callable[[Any], Iterator[None]]:
        def around(job: Any) -> Iterator[None]:
            seen.append((name, job.id))
            yield

        return around

    task_worker.around(tasks=[one])(note("tasks"))
    task_worker.around(queues=["reports"])(note("queues"))
    jobs = [one.enqueue(), other.enqueue(), other.using(queue="reports").enqueue()]
    for job in jobs:
        job.result(timeout=PATIENCE)
    assert sorted(seen) == [("queues", jobs[2].id), ("tasks", jobs[0].id)]


def test_plain_generator_around_async_tasks_must_say_that_it_does_not_block(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    async def work() -> None: ...

    def around(job: Any) -> Iterator[None]:
        yield

    with pytest.raises(DeclarationError, match="blocking=False"):
        task_worker.around(around)
    with pytest.raises(DeclarationError, match="blocking=False"):
        task_worker.around(queues=["slow"])(around)  # a call may name that queue
    task_worker.around(blocking=True)(around)
    task_worker.around(tasks=["another"])(around)
    with pytest.raises(DeclarationError, match="blocking=False"):

        @task_worker.task(name="another")
        async def another() -> None: ...

    work.enqueue().result(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (len, {}),
        (lambda job: None, {}),
        ((lambda job: (yield)), {"tasks": "one"}),
        ((lambda job: (yield)), {"tasks": [len]}),
    ],
)
def test_what_cannot_be_around_a_job_is_refused(
    task_worker: BackgroundTaskWorker, function: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(DeclarationError, match="yield|Allowed|not a task"):
        task_worker.around(**options)(function)


def test_built_in_tasks_have_nothing_around_them(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    from flask_taskworker import Mail, Message

    seen: list[str] = []
    app.config.update(MAIL_SUPPRESS_SEND=True, MAIL_DEFAULT_SENDER="shop@example.org")

    @task_worker.around(blocking=False)
    def note(job: Any) -> Iterator[None]:
        seen.append(job.task)
        yield

    mail = Mail(app)
    with app.app_context():
        mail.send_later(Message("Hi", recipients=["ana@example.org"])).result(timeout=PATIENCE)
    assert seen == []


# -- before enqueueing -------------------------------------------------------------------------------------------------


def test_calls_are_changed_or_refused_before_they_are_enqueued(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.before_enqueue
    def to_reports(call: Bound[Any]) -> Bound[Any]:
        if call.options.priority == 9:
            raise PermissionError("not with that priority")
        return call.using(queue="reports") if call.task is report else call

    @task_worker.task
    def report(number: int) -> int:
        return number

    @task_worker.task
    def other() -> None: ...

    assert report.enqueue(1).queue == "reports"
    assert [job.queue for job in report.enqueue_many([(1,), (2,)])] == ["reports", "reports"]
    assert [job.queue for job in task_worker.enqueue_all([report.bind(3), other.bind()])] == ["reports", "default"]
    assert asyncio.run(report.aenqueue(4)).queue == "reports"
    with pytest.raises(PermissionError):
        report.using(priority=9).enqueue(5)


@pytest.mark.parametrize("changed", [lambda call: None, lambda call: call.task.bind(2)])
def test_what_changes_the_arguments_of_a_call_is_refused(
    task_worker: BackgroundTaskWorker, changed: Callable[[Any], Any]
) -> None:
    @task_worker.task
    def work(number: int) -> None: ...

    task_worker.before_enqueue(changed)
    with pytest.raises(ArgumentsError, match=r"call\.using"):
        work.enqueue(1)


@pytest.mark.parametrize("function", [None, "stamp", asyncio.sleep])
def test_what_cannot_see_calls_is_refused(task_worker: BackgroundTaskWorker, function: Any) -> None:
    with pytest.raises(DeclarationError, match="plain function"):
        task_worker.before_enqueue(function)


# -- carried values ----------------------------------------------------------------------------------------------------


@dataclass
class Locale:
    language: str


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_value_comes_along_to_every_try_and_to_the_jobs_of_the_job(
    app: Flask, task_worker: BackgroundTaskWorker, kind: str
) -> None:
    task_worker.register_type(Locale)
    task_worker.carry("tenant", save=lambda: g.get("tenant"), restore=lambda value: setattr(g, "tenant", value))
    task_worker.carry("locale", save=lambda: g.get("locale"))
    seen: list[Any] = []

    def look() -> None:
        seen.append((g.get("tenant"), current_job.carried.get("locale")))
        if len(seen) == 1:
            raise ValueError("at first")

    async def alook() -> None:
        look()

    child = task_worker.task(retry=Retry(3, base=0.001))(look if kind == "sync" else alook)

    @task_worker.task
    def parent() -> int:
        return child.enqueue().id

    with app.app_context():
        g.tenant, g.locale = "ana", Locale("de")
        child.enqueue().result(timeout=PATIENCE)
        task_worker.get_job(parent.enqueue().result(timeout=PATIENCE)).result(timeout=PATIENCE)
    with app.app_context():
        child.enqueue().result(timeout=PATIENCE)
    child.enqueue().result(timeout=PATIENCE)  # without a context, in which g would not work
    assert seen == [("ana", Locale("de"))] * 2 + [("ana", None), (None, None), (None, None)]


def test_job_whose_origin_only_has_the_word_carries_nothing(task_worker: BackgroundTaskWorker) -> None:
    task_worker.carry("tenant", save=lambda: None)

    @task_worker.task
    def work() -> bool:
        return bool(current_job.carried)

    origin.carriers.append(lambda found: found.update(baggage="carried"))
    try:
        assert work.enqueue().result(timeout=PATIENCE) is False
    finally:
        origin.carriers.pop()


def test_value_that_cannot_be_carried_is_refused_at_the_call(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    values: list[Any] = [object()]
    task_worker.carry("user", save=lambda: values[0])

    @task_worker.task
    def work() -> None: ...

    with app.app_context():
        with pytest.raises(NotEncodable):
            work.enqueue()
        values[0] = "x" * 20_000
        with pytest.raises(NotEncodable, match="user"):
            work.enqueue()
        values[0] = "ana"
        assert work.enqueue().result(timeout=PATIENCE) is None


@pytest.mark.parametrize(("name", "save"), [("two words", str), ("tenant", "g.tenant"), (7, str)])
def test_misdeclared_value_is_refused(task_worker: BackgroundTaskWorker, name: Any, save: Any) -> None:
    with pytest.raises(DeclarationError):
        task_worker.carry(name, save=save)


def test_each_of_many_jobs_at_once_sees_its_own_values(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    task_worker.carry("number", save=lambda: g.get("number"), restore=lambda value: tenant.set(str(value)))
    wrong: list[Any] = []

    @task_worker.around(blocking=False)
    def compare(job: Any) -> Iterator[None]:
        yield
        if tenant.get() != str(job.carried["number"]):
            wrong.append(job.id)

    @task_worker.task
    def work(number: int) -> None:
        if tenant.get() != str(number):
            wrong.append(number)

    @task_worker.task
    async def async_work(number: int) -> None:
        await asyncio.sleep(0)
        if tenant.get() != str(number):
            wrong.append(number)

    jobs = []
    for number in range(200):
        with app.app_context():
            g.number = number
            jobs.append((work if number % 2 else async_work).enqueue(number))
    for job in jobs:
        job.result(timeout=PATIENCE)
    assert wrong == []


def test_what_is_raised_after_an_atomic_task_has_committed_is_logged_only(
    app: Flask, make_worker: Callable[..., BackgroundTaskWorker], caplog: pytest.LogCaptureFixture
) -> None:
    states: list[str] = []
    with beside_the_jobs(app, make_worker) as db, caplog.at_level(logging.ERROR):
        worker = task_worker_of(app)

        @worker.around
        def fail_after(job: Any) -> Iterator[None]:
            yield
            states.append(worker.get_job(job.id).state.value)
            raise RuntimeError("too late")

        @worker.task(atomic=db, retry=3)
        def work() -> int:
            return 7

        job = work.enqueue()
        assert job.result(timeout=PATIENCE) == 7
        wait_for(lambda: "too late" in caplog.text)
        assert states == ["succeeded"]
        assert job.refresh().state is JobState.SUCCEEDED
