"""Running jobs: what surrounds the function, what comes of its result, and that every ending ends its own job alone."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, Flag, auto
from itertools import pairwise
from typing import Any, NoReturn, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from flask import Flask, current_app, g, has_app_context

from flask_taskworker import BackgroundTaskWorker, Job, JobFailed, JobState, current_job
from flask_taskworker.core.failures import MAX_TEXT
from flask_taskworker.store.sql import Store
from flask_taskworker.worker.executor import LARGE, MOST_ENCODED
from tests.support.apps import KINDS
from tests.support.stored import counts_of
from tests.support.waiting import wait, wait_for

pytestmark = pytest.mark.both_databases(slow="postgresql")

Rows = Callable[..., list[tuple[Any, ...]]]


def declare(task_worker: BackgroundTaskWorker, kind: str, function: Callable[[], Any], **options: Any) -> Any:
    """A task of that kind that does what *function* does."""

    def work() -> Any:
        return function()

    async def work_async() -> Any:
        await asyncio.sleep(0)
        return function()

    options.setdefault("name", "work")
    return task_worker.task(**options)(work if kind == "sync" else work_async)


# -- the app context ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sqlite_only
def test_job_runs_inside_the_context_of_its_app(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker], kind: str
) -> None:
    apps = [make_app(), make_app()]
    task_worker = make_worker(*apps)
    task = declare(task_worker, kind, lambda: current_app.import_name)
    for app in apps:
        with app.app_context():
            assert task.enqueue().result(timeout=20) == app.import_name
    assert not has_app_context()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sqlite_only
def test_each_job_has_a_context_of_its_own(task_worker: BackgroundTaskWorker, kind: str) -> None:
    task = declare(task_worker, kind, lambda: g.setdefault("seen", []).append(1) or len(g.seen))
    assert [task.enqueue().result(timeout=20) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.sqlite_only
def test_teardown_runs_after_each_job_on_its_thread(
    app: Flask, task_worker: BackgroundTaskWorker, kind: str, fails: bool
) -> None:
    happened: list[tuple[str, int, object]] = []

    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        happened.append(("teardown", threading.get_ident(), type(error)))

    def work() -> None:
        happened.append(("work", threading.get_ident(), None))
        if fails:
            raise ZeroDivisionError

    task = declare(task_worker, kind, work)
    for _ in range(2):
        job = task.enqueue()
        wait_for(lambda job=job: job.refresh().state.finished)
    assert [what for what, *_ in happened] == ["work", "teardown"] * 2
    for (_, thread, _), (_, teardown_thread, error) in zip(happened[::2], happened[1::2], strict=True):
        assert thread == teardown_thread
        assert error is (ZeroDivisionError if fails else type(None))


@pytest.mark.sqlite_only
def test_async_jobs_run_on_the_loops_thread_and_sync_jobs_do_not(task_worker: BackgroundTaskWorker) -> None:
    on_loop = declare(task_worker, "async", lambda: threading.current_thread().name, name="a")
    aside = declare(task_worker, "sync", lambda: threading.current_thread().name, name="b")
    assert on_loop.enqueue().result(timeout=20) == "taskworker-loop"
    assert aside.enqueue().result(timeout=20).startswith("taskworker-job")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sqlite_only
def test_teardown_that_raises_does_not_undo_the_job(
    app: Flask, task_worker: BackgroundTaskWorker, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        raise ZeroDivisionError("in the teardown")

    assert declare(task_worker, kind, lambda: 5, retry=3).enqueue().result(timeout=20) == 5
    assert "then a teardown function of the app raised; the job counts as succeeded" in caplog.text
    assert "in the teardown" in caplog.text


@pytest.mark.parametrize("sleeps", [False, True])
@pytest.mark.sqlite_only
def test_sync_job_may_call_coroutines(task_worker: BackgroundTaskWorker, sleeps: bool) -> None:
    """As ``ensure_sync`` makes of an async view or teardown function."""

    async def look() -> tuple[str, int]:
        if sleeps:
            await asyncio.sleep(0.001)
        return current_app.import_name, current_job.id

    jobs = declare(task_worker, "sync", lambda: current_app.ensure_sync(look)()).enqueue_many([()] * 20)
    assert [job.result(timeout=20) for job in jobs] == [("app1", job.id) for job in jobs]


@pytest.mark.sqlite_only
def test_async_job_may_call_sync_functions_in_threads(task_worker: BackgroundTaskWorker) -> None:
    def look() -> tuple[str, int]:
        return current_app.import_name, current_job.id

    @task_worker.task
    async def work() -> list[Any]:
        from asgiref.sync import sync_to_async

        return [await sync_to_async(look)(), await sync_to_async(look, thread_sensitive=False)()]

    for job in work.enqueue_many([()] * 5):
        assert job.result(timeout=20) == [("app1", job.id)] * 2


@pytest.mark.sqlite_only
def test_async_teardown_functions_run_after_sync_jobs(app: Flask, task_worker: BackgroundTaskWorker) -> None:
    """Flask itself can run them only where no event loop runs."""
    seen = []

    @app.teardown_appcontext
    async def teardown(error: BaseException | None) -> None:
        await asyncio.sleep(0)
        seen.append(error)

    assert declare(task_worker, "sync", lambda: 5).enqueue().result(timeout=20) == 5
    wait_for(lambda: seen == [None])


# -- current_job -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sqlite_only
def test_current_job_reports_the_job(task_worker: BackgroundTaskWorker, kind: str) -> None:
    def look() -> list[Any]:
        assert current_job
        names = ("id", "uid", "task", "queue", "attempt", "claim", "schedule", "fire_at", "cancelled")
        return [*(getattr(current_job, name) for name in names), repr(current_job)]

    job = declare(task_worker, kind, look).using(queue="web").enqueue()
    assert job.result(timeout=20) == [
        job.id, job.uid, "work", "web", 1, 1, None, None, False, f"<current_job job {job.id} (work)>",
    ]  # fmt: skip


@pytest.mark.sqlite_only
def test_current_job_is_seen_in_what_an_async_job_starts(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    async def look() -> list[Any]:
        async def inner() -> tuple[int, str]:
            return current_job.id, current_app.import_name

        def in_thread() -> tuple[int, str]:
            return current_job.id, current_app.import_name

        return [*(await asyncio.gather(inner(), asyncio.create_task(inner()))), await asyncio.to_thread(in_thread)]

    job = look.enqueue()
    assert job.result(timeout=20) == [(job.id, "app1")] * 3


def test_outside_of_a_job_current_job_says_so() -> None:
    assert not current_job
    assert repr(current_job) == "<current_job: none>"
    for use in (lambda: current_job.id, lambda: current_job.check(), lambda: current_job.progress(1)):
        with pytest.raises(RuntimeError, match=r"No job runs here: .* if current_job: .*jobs\.perform"):
            use()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sqlite_only
def test_plain_call_inside_a_job_keeps_the_jobs_identity(task_worker: BackgroundTaskWorker, kind: str) -> None:
    inner = task_worker.task(name="inner")(lambda: current_job.task)
    assert declare(task_worker, kind, lambda: [inner(), current_job.task]).enqueue().result(20) == ["work", "work"]


colour: ContextVar[str] = ContextVar("colour", default="none")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sqlite_only
def test_context_variables_do_not_leak_from_job_to_job(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker], kind: str
) -> None:
    app = make_app(TASKER_THREADS=1)
    task_worker = make_worker(app)

    def look() -> str:
        before = colour.get()
        colour.set("red")
        return before

    task = declare(task_worker, kind, look)
    assert [task.enqueue().result(timeout=20) for _ in range(3)] == ["none"] * 3


# -- progress ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_last_progress_is_kept_with_the_job(task_worker: BackgroundTaskWorker, kind: str) -> None:
    def work() -> None:
        for done in range(1000):
            current_job.progress(done, 999, f"step {done}")

    job = declare(task_worker, kind, work).enqueue()
    job.result(timeout=20)
    progress = job.refresh().progress
    assert progress is not None
    assert (progress.done, progress.total, progress.text) == (999, 999, "step 999")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sqlite_only
def test_progress_that_is_not_a_number_ends_its_own_job_alone(task_worker: BackgroundTaskWorker, kind: str) -> None:
    """Progress is written by the worker, later: it must be refused where it is reported."""
    wrong = [(object(),), ("7",), (None,), (1, []), (float("nan"),), (1, float("inf")), (1j,), (10**400,)]
    report = declare(task_worker, kind, lambda: current_job.progress(*wrong.pop()))
    jobs = report.enqueue_many([()] * len(wrong))
    for job in jobs:
        with pytest.raises(JobFailed, match="progress"):
            job.result(timeout=20)
    assert not wrong
    assert declare(task_worker, kind, lambda: 1, name="next").enqueue().result(timeout=20) == 1


@pytest.mark.sqlite_only
def test_progress_takes_what_is_a_number(task_worker: BackgroundTaskWorker) -> None:
    for done, expected in ((Decimal("1.5"), 1.5), (3, 3), (0.25, 0.25)):
        job = declare(task_worker, "sync", lambda done=done: current_job.progress(done, text="é\0\ud800")).enqueue()
        job.result(timeout=20)
        progress = job.refresh().progress
        assert progress is not None
        assert (progress.done, progress.total) == (expected, None)
        assert progress.text.startswith("é")


def test_long_progress_text_is_shortened(task_worker: BackgroundTaskWorker, rows: Rows) -> None:
    job = declare(task_worker, "sync", lambda: current_job.progress(1, text="x" * 1_000_000)).enqueue()
    job.result(timeout=20)
    assert rows("SELECT length(progress) FROM taskworker_job")[0][0] < 2000
    assert (job.refresh().progress or job).done == 1  # type: ignore[union-attr]


# -- results -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    x: int
    y: tuple[int, ...] = ()


class Colour(Enum):
    RED = "red"


class Right(Flag):
    READ = auto()
    WRITE = auto()


RESULTS = [
    None, 0, 1.5, "é\0", b"\0\xff", [1, [2]], (1, (2, "3")), {"a": (1,)}, {1: 2, (1, 2): {3}}, {"$": 1},
    frozenset("ab"),
    datetime(2030, 5, 1, 12, tzinfo=UTC), datetime(2030, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    date(2030, 1, 1), timedelta(microseconds=-1), Decimal("1.10"), UUID(int=7),
    Point(1, (2, 3)), [Point(1)], Colour.RED, Right.READ | Right.WRITE,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_results_and_arguments_come_back_equal_and_of_the_same_type(
    task_worker: BackgroundTaskWorker, kind: str
) -> None:
    task_worker.register_type(Point, Colour, Right)

    def sync(value: Any) -> tuple[str, Any]:
        return repr(value), value

    async def asynchronous(value: Any) -> tuple[str, Any]:
        return repr(value), value

    task = task_worker.task(sync if kind == "sync" else asynchronous)
    for value, job in zip(RESULTS, task.enqueue_many([(value,) for value in RESULTS]), strict=True):
        seen, result = job.result(timeout=20)
        assert result == value
        assert (type(result), repr(result)) == (type(value), repr(value))
        # A set may be shown in another order.
        if not isinstance(value, frozenset):
            assert seen == repr(value)


@pytest.mark.sqlite_only
def test_types_in_annotations_need_no_registration(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    def move(point: Point, colour: Colour) -> tuple[Point, Colour]:
        return Point(point.x + 1), colour

    assert move.enqueue(Point(1), Colour.RED).result(timeout=20) == (Point(2), Colour.RED)


# -- endings -----------------------------------------------------------------------------------------------------------


class Silent(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Evil(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Opaque(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise OSError("ask me nothing")


def with_unreadable_source() -> None:
    """As in a zip application whose file was replaced under the running worker."""

    class Loader:
        def get_source(self, name: str) -> str:
            raise ValueError("bad local file header")

    names = {"__name__": "gone", "__loader__": Loader()}
    exec(compile("def price():\n    raise LookupError('no price')", "gone.zip/gone.py", "exec"), names)
    names["price"]()  # type: ignore[operator]


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("of no use elsewhere")
        self.lock = threading.Lock()

    def __reduce__(self) -> NoReturn:
        raise TypeError("not to be pickled")


def recurse() -> None:
    recurse()


def chained() -> None:
    try:
        raise KeyError("first")
    except KeyError as error:
        raise RuntimeError("second") from error


def raising(kind: type[BaseException], *args: Any) -> Callable[[], None]:
    def function() -> None:
        raise kind(*args)

    return function


ENDINGS: dict[str, tuple[Callable[[], Any], str, str, str]] = {
    "exception": (raising(ValueError, "no"), "exception", "ValueError", "no"),
    "base exception": (raising(BaseException, "base"), "exception", "BaseException", "base"),
    "system exit": (lambda: sys.exit(3), "exception", "SystemExit", "3"),
    "system exit bare": (lambda: sys.exit(), "exception", "SystemExit", ""),
    "keyboard interrupt": (raising(KeyboardInterrupt), "exception", "KeyboardInterrupt", ""),
    "generator exit": (raising(GeneratorExit, "out"), "exception", "GeneratorExit", "out"),
    "cancelled": (raising(asyncio.CancelledError, "c"), "exception", "asyncio.exceptions.CancelledError", "c"),
    "stop iteration": (raising(StopIteration, 7), "exception", "", ""),
    "next": (lambda: next(iter(())), "exception", "", ""),
    "stop async iteration": (raising(StopAsyncIteration, 7), "exception", "", ""),
    "timeout error": (raising(TimeoutError, "t"), "exception", "TimeoutError", "t"),
    "group": (raising(ExceptionGroup, "g", [ValueError("a")]), "exception", "ExceptionGroup", "g (1 sub-exception)"),
    "base group": (
        raising(BaseExceptionGroup, "g", [SystemExit(1)]),
        "exception",
        "BaseExceptionGroup",
        "g (1 sub-exception)",
    ),
    "no words": (raising(Silent), "exception", f"{__name__}.Silent", "(str() of the exception raised ValueError)"),
    "evil words": (raising(Evil), "exception", f"{__name__}.Evil", "(str() of the exception raised SystemExit)"),
    "opaque": (raising(Opaque), "exception", "Opaque", "(describing the exception raised OSError)"),
    "unreadable source": (with_unreadable_source, "exception", "LookupError", "no price"),
    "unpicklable": (raising(Unpicklable), "exception", f"{__name__}.Unpicklable", "of no use elsewhere"),
    "recursion": (recurse, "exception", "RecursionError", "maximum recursion depth exceeded"),
    "chained": (chained, "exception", "RuntimeError", "second"),
    "memory": (raising(MemoryError), "exception", "MemoryError", ""),
    "surrogate": (raising(ValueError, "\ud800\0"), "exception", "ValueError", r"\ud800\0"),
    "object": (object, "result", "flask_taskworker.errors.NotEncodable", "value is a builtins.object"),
    "nan": (lambda: float("nan"), "result", "flask_taskworker.errors.NotEncodable", "value is nan"),
    "unregistered": (lambda: Point(1), "result", "flask_taskworker.errors.NotEncodable", "which is not registered"),
    "too large": (lambda: "x" * 1_100_000, "result", "flask_taskworker.errors.NotEncodable", "1,100,002 bytes"),
    "coroutine": (
        lambda: asyncio.sleep(0),
        "result",
        "flask_taskworker.errors.NotEncodable",
        "returned a coroutine. Declare it with async def, or await the coroutine.",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_ending_ends_its_own_job_and_the_worker_goes_on(
    task_worker: BackgroundTaskWorker, store: Store, kind: str
) -> None:
    jobs: dict[str, Job[Any]] = {}
    for name, (function, *_) in ENDINGS.items():
        jobs[name] = declare(task_worker, kind, function, name=f"work {name}").enqueue()
    good = declare(task_worker, kind, lambda: "good", name="good")
    assert good.enqueue().result(timeout=20) == "good"
    workers = [worker.id for worker in store.workers()]
    for name, (_, failure_kind, type_name, words) in ENDINGS.items():
        with pytest.raises(JobFailed) as caught:
            jobs[name].result(timeout=20)
        failed = caught.value
        assert failed.kind == failure_kind, name
        assert failed.exception_type == type_name or not type_name, name
        assert words in failed.exception_message, name
        assert failed.job_id == jobs[name].id
        if failure_kind == "exception":
            assert "Traceback (most recent call last):" in failed.traceback.split("\n")[0], name
            assert __file__ in failed.traceback, name
        jobs[name].refresh()
        assert (jobs[name].state, jobs[name].attempt) == (JobState.FAILED, 1), name
    assert len(workers) == 1
    assert store.record(jobs["exception"].id).claim == 1


@pytest.mark.sqlite_only
def test_traceback_shows_the_users_frames_and_the_cause(task_worker: BackgroundTaskWorker) -> None:
    job = declare(task_worker, "sync", chained).enqueue()
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=20)
    text = caught.value.traceback
    assert "KeyError: 'first'" in text
    assert "direct cause" in text
    assert 'raise RuntimeError("second") from error' in text
    assert "/executor.py" not in text
    assert "asgiref" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_huge_message_is_cut_in_the_database_and_in_the_log(
    task_worker: BackgroundTaskWorker, rows: Rows, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        raise ValueError("x" * 50_000_000)

    job = declare(task_worker, kind, work).enqueue()
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=20)
    assert caught.value.exception_message == "x" * MAX_TEXT + " …"
    assert len(caught.value.traceback) < MAX_TEXT + 10
    assert rows("SELECT length(error) FROM taskworker_job")[0][0] < 4 * MAX_TEXT
    assert rows("SELECT length(error) FROM taskworker_attempt")[0][0] < 4 * MAX_TEXT
    assert len(caplog.text) < 4 * MAX_TEXT
    assert "ValueError: xxx" in caplog.text


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("stray"), GeneratorExit()], ids=repr)
@pytest.mark.sqlite_only
def test_coroutine_that_a_job_left_behind_harms_nothing_else(
    task_worker: BackgroundTaskWorker, alarms: list[str], error: BaseException, store: Store
) -> None:
    """asyncio lets SystemExit and KeyboardInterrupt out of the loop, past every ``except`` of ours."""
    release, raised = threading.Event(), threading.Event()
    strays = []

    async def stray() -> None:
        while not release.is_set():
            await asyncio.sleep(0.001)
        raised.set()
        raise error

    @task_worker.task
    async def leave_behind() -> None:
        strays.append(asyncio.create_task(stray()))

    @task_worker.task
    async def innocent() -> str:
        while not raised.is_set():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        return "unharmed"

    leave_behind.enqueue().result(timeout=20)
    before = [worker.id for worker in store.workers()]
    job = innocent.enqueue()
    wait_for(lambda: job.refresh().state is JobState.RUNNING)
    release.set()
    assert job.result(timeout=20) == "unharmed"
    assert innocent.enqueue().result(timeout=20) == "unharmed"
    assert [worker.id for worker in store.workers()] == before
    # Its exception was never asked for; asyncio may say so when it is collected.
    strays.clear()
    gc.collect()
    alarms.clear()


@pytest.mark.sqlite_only
def test_job_that_cancels_itself_at_its_end_ends_once(
    task_worker: BackgroundTaskWorker, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio then calls the task cancelled, although its coroutine came to its end."""

    @task_worker.task
    async def work(value: int | None) -> int | None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return value

    assert work.enqueue(None).result(timeout=20) is None
    assert work.enqueue(5).result(timeout=20) == 5
    assert rows("SELECT state FROM taskworker_job") == [("succeeded",)] * 2
    assert rows("SELECT count(*) FROM taskworker_attempt") == [(0,)]
    assert "fenced" not in caplog.text


@pytest.mark.sqlite_only
def test_job_that_cancels_itself_and_awaits_fails(task_worker: BackgroundTaskWorker) -> None:
    @task_worker.task
    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(JobFailed, match="CancelledError"):
        work.enqueue().result(timeout=20)


def test_arguments_that_do_not_fit_any_more_end_their_own_job(task_worker: BackgroundTaskWorker) -> None:
    """A row of an older version of the code."""
    hold = threading.Event()
    task = task_worker.task(name="work", timeout=None)(lambda: wait(hold))
    holder = task.enqueue()
    old = task_worker.task(name="old")(lambda x, y: None)
    job = old.using(delay=3600).enqueue(1, 2)
    hold.set()
    holder.result(timeout=20)
    job.cancel()
    task_worker._registry._tasks["old"] = task_worker.task(name="new")(lambda x: None)
    assert job.retry()
    with pytest.raises(JobFailed, match="TypeError.*takes 1 positional argument but 2 were given"):
        job.result(timeout=20)


# -- nothing is lost ---------------------------------------------------------------------------------------------------


@pytest.mark.sqlite_only
def test_no_job_is_lost_to_the_garbage_collector(task_worker: BackgroundTaskWorker, store: Store) -> None:
    """asyncio holds its tasks weakly: one that only a future holds, which only it holds, may be collected."""
    done = threading.Event()

    def collect() -> None:
        while not done.wait(0.002):
            gc.collect()

    @task_worker.task
    async def work(number: int) -> int:
        # Nothing else holds this future: the job, the future and the callback are a cycle.
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.001, future.set_result, None)
        await future
        return number

    @task_worker.task
    async def lonely() -> None:
        await asyncio.get_running_loop().create_future()

    # What other tests left behind would only make each collection slow.
    gc.freeze()
    collector = threading.Thread(target=collect)
    collector.start()
    try:
        waiting = lonely.enqueue()
        jobs = work.enqueue_many([(number,) for number in range(150)])
        assert [job.result(timeout=20) for job in jobs] == list(range(150))
        # Held by nothing but itself and the worker, it still waits.
        assert waiting.refresh().state is JobState.RUNNING
        task_worker.stop(timeout=0)
    finally:
        done.set()
        collector.join()
        gc.unfreeze()
    assert counts_of(store)["succeeded"] == 150


def test_ten_sync_jobs_run_at_once(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    app, barrier = make_app(TASKER_THREADS=10), threading.Barrier(10)
    task = declare(make_worker(app), "sync", lambda: barrier.wait(20) >= 0)
    assert all(job.result(timeout=20) for job in task.enqueue_many([()] * 10))


def test_blocked_sync_jobs_delay_no_async_job(
    make_app: Callable[..., Flask], make_worker: Callable[..., BackgroundTaskWorker]
) -> None:
    app = make_app(TASKER_THREADS=2)
    task_worker = make_worker(app)
    release = threading.Event()
    blocked = declare(task_worker, "sync", lambda: wait(release), name="blocked").enqueue_many([()] * 5)
    wait_for(lambda: blocked[0].refresh().state is JobState.RUNNING)
    assert declare(task_worker, "async", lambda: "free").enqueue().result(timeout=20) == "free"
    assert not any(job.refresh().state.finished for job in blocked)
    release.set()
    for job in blocked:
        job.result(timeout=20)


def test_failure_of_the_database_text_is_json(task_worker: BackgroundTaskWorker, rows: Rows) -> None:
    job = declare(task_worker, "sync", raising(ValueError, "no")).enqueue()
    wait_for(lambda: job.refresh().state.finished)
    ((error, kind),) = rows("SELECT error, failure_kind FROM taskworker_job")
    assert kind == "exception"
    assert json.loads(error).keys() == {"type", "message", "traceback"}


@pytest.mark.sqlite_only
def test_failed_job_is_logged_with_its_traceback(
    task_worker: BackgroundTaskWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    job = declare(task_worker, "async", chained).enqueue()
    wait_for(lambda: job.refresh().state.finished)
    wait_for(lambda: f"job {job.id} (work) failed after" in caplog.text)
    assert "RuntimeError: second" in caplog.text
    assert "Traceback" in caplog.text


def test_loop_turns_while_large_results_of_many_jobs_are_encoded(task_worker: BackgroundTaskWorker) -> None:
    jobs, at_once = 20, 4
    large = "x" * (MOST_ENCODED // at_once)
    gate = asyncio.Event()
    running: list[asyncio.Task[Any]] = []

    @task_worker.task(name="give")
    async def give() -> str:
        running.append(cast(asyncio.Task[Any], asyncio.current_task()))
        await gate.wait()
        return large

    @task_worker.task(name="count")
    async def count() -> list[int]:
        """How many of them have ended after each turn of the loop."""
        while len(running) < jobs:
            await asyncio.sleep(0)
        gate.set()
        done = [0]
        while done[-1] < jobs:
            await asyncio.sleep(0)
            done.append(sum(task.done() for task in running))
        return done

    given = give.enqueue_many([()] * jobs)
    done = count.enqueue().result(timeout=30)
    assert max(later - earlier for earlier, later in pairwise(done)) <= at_once + 1
    assert all(job.result(timeout=30) == large for job in given)


decoded_in: list[int] = []


@dataclass
class Grown:
    """A class that got a field since its values were stored: decoding calls what makes the default."""

    text: str
    thread: int = field(default_factory=lambda: decoded_in.append(threading.get_ident()) or 0)


@pytest.mark.parametrize("kind", KINDS)
def test_large_arguments_are_decoded_beside_the_loop_and_unreadable_ones_fail_their_job(
    task_worker: BackgroundTaskWorker, rows: Rows, kind: str
) -> None:
    def measure(grown: Grown) -> int:
        return len(grown.text)

    async def measure_async(grown: Grown) -> int:
        return len(grown.text)

    task = task_worker.task(name="measure")(measure if kind == "sync" else measure_async)
    job, unreadable = (task.using(delay=3600).enqueue(Grown("x" * LARGE, 0)) for _ in range(2))
    decoded_in.clear()
    ((stored,),) = rows("SELECT args FROM taskworker_job WHERE id = ?", job.id)
    older = stored.replace(',"thread":0', "")
    assert older != stored
    for job_id, args in ((job.id, older), (unreadable.id, json.dumps("x" * LARGE))):
        rows("UPDATE taskworker_job SET args = ?, run_at = 1 WHERE id = ?", args, job_id)
    task_worker._workers()[0].wake()
    assert job.result(timeout=20) == LARGE
    loop_thread = task_worker._state().client.worker_thread
    assert loop_thread is not None
    assert decoded_in
    assert loop_thread.ident not in decoded_in
    with pytest.raises(JobFailed, match="not \\[arguments, keyword arguments\\]"):
        unreadable.result(timeout=20)


async def nothing() -> None: ...


@pytest.mark.sqlite_only
def test_async_job_that_never_awaits_ends(task_worker: BackgroundTaskWorker) -> None:
    work: Callable[[], Coroutine[Any, Any, None]] = nothing
    assert task_worker.task(work).enqueue().result(timeout=20) is None
