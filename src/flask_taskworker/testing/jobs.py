"""Jobs in a test: what was enqueued, and running it."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ParamSpec, Self, TypeVar, get_args

from flask import Flask

from ..client.health import name_of
from ..core.batches import Batch, BatchCounts, BatchState
from ..core.clock import require_aware, to_ms
from ..core.codec import Codec
from ..core.current_job import running_job
from ..core.jobs import Job
from ..core.limits import Limit
from ..core.rows import JobRecord, JobState, OutcomeKind, read_origin
from ..core.tasks import MAX_PRIORITY, Task
from ..errors import ArgumentsError, NotDecodable, RetryJob, TaskWorkerError
from ..signals import job_enqueued, schedule_fired
from ..store.flows import Flows
from ..store.statements import jobs as job_statements
from ..store.statements import steps as step_statements
from ..store.statements import workers as worker_statements
from .drive import FOR_EVER, Bench, CrashPoint, Execution, Plan, Report
from .matching import MOST_SHOWN, EnqueuedJob, Wanted, by_name, listing, no_match, some_by_name
from .session_driver import SessionDriver

P = ParamSpec("P")
R = TypeVar("R")

MAX_JOBS = 1000
_OWN_DATABASE = "TASKER_DATABASE_URI = 'sqlite:///' + str(tmp_path / 'taskworker.db')."
_ANYTHING: Any = object()
_NONE: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """How the jobs ended that were run. Every try counts: a job that failed twice and then succeeded counts thrice."""

    succeeded: int = 0
    failed: int = 0
    retrying: int = 0
    """Tries that failed, and are followed by another."""
    cancelled: int = 0
    snoozed: int = 0
    released: int = 0
    """Jobs that went back because no task of their name is registered."""
    crashed: int = 0
    """Jobs whose process has died: see :meth:`Jobs.crash`."""
    errors: tuple[BaseException, ...] = ()
    """What was raised by the jobs that have not succeeded in the end."""

    @property
    def total(self) -> int:
        """How many tries there were."""
        return self.succeeded + self.failed + self.retrying + self.cancelled + self.snoozed + self.released


class Jobs:
    """The jobs of *app* for one test: those that were enqueued since this object was made.

    It runs them through the whole way of a job: claimed out of the database, decoded, run in an app context of their
    own and finished in the database; one at a time. Nothing else may run the app's worker meanwhile. Safe from any
    thread, inside a request, an app context or a coroutine.

    ``session``: an SQLAlchemy session or connection of the test, on the database of the jobs. Until :meth:`close`, or
    the end of ``with Jobs(app, session=…) as jobs``, the app's jobs are written, looked at and run through it, so that
    jobs and tasks see what the test has not committed, and all of that is gone once the test rolls back.

    ``begun``: epoch milliseconds. With it the database must belong to the tests: neither older unfinished jobs nor
    a living worker of another process may be in it, or the worker is not run.
    """

    def __init__(self, app: Flask, *, session: object = None, begun: int | None = None) -> None:
        self._app = app
        self._bench = Bench.of(app)
        self._store = self._bench.state.store
        self.close()
        if session is not None:
            self._store.driver = SessionDriver(self._bench.driver, session)
        self._registry = self._bench.state.registry
        self._since = self._newest()
        self._begun = begun
        self._foreign = [] if begun is None else self._read(job_statements.UNFINISHED_BEFORE, moment=begun)
        self._own: set[int] = set()
        for signal in (job_enqueued, schedule_fired):
            signal.connect(self._on_own, sender=app)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Use the app's own connections again, rather than the *session*."""
        self._store.driver = self._bench.driver

    def _on_own(self, app: Flask, job: Job[Any], **_: object) -> None:
        self._own.add(job.id)

    # -- what was enqueued ------------------------------------------------------------------------------------------

    def enqueued(self, task: Task[..., Any, Any] | str | None = None) -> list[EnqueuedJob]:
        """The jobs, oldest first, in whatever state they are; those of *task*, if it is given.

        Each has its ``arguments`` by name. Jobs that schedules have made are among them; those of a transaction that
        has not committed are not.
        """
        return self._after(self._since, task)

    def in_line(self, limit: Limit, key: object = None) -> list[EnqueuedJob]:
        """The jobs that wait for *limit*, of the lane of *key* where it has keys, the one that goes first first."""
        lane = limit.name if key is None else limit._lane(key)
        held = [job for job in self.enqueued() if job.lane == lane and job.state is JobState.HELD]
        return sorted(held, key=lambda job: (-job.priority, job.id))

    @contextmanager
    def capture(self) -> Iterator[list[EnqueuedJob]]:
        """A list that holds, after the block, the jobs that were enqueued in it."""
        newest, captured = self._newest(), list[EnqueuedJob]()
        try:
            yield captured
        finally:
            captured += self._after(newest)

    def assert_enqueued(
        self,
        task: Task[..., Any, Any] | str,
        /,
        *args: Any,
        queue: str = _ANYTHING,
        run_at: datetime | None = _ANYTHING,
        priority: int = _ANYTHING,
        lane: str | None = _ANYTHING,
        times: int | None = None,
        where: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> EnqueuedJob:
        """Fail unless such a job was enqueued; *times* times, if that is given. Returns the first.

        What is not mentioned may be anything: arguments, too. ``run_at`` is compared to the second; None means at
        once. ``lane``: that of its limit, with the key, as "shop:7". ``where``: arguments whose names are taken by the
        other parameters, such as ``queue``.
        """
        __tracebackhide__ = True
        given = {**kwargs, **(where or {})}
        wanted = self._wanted(task, args, given, queue=queue, run_at=run_at, priority=priority, lane=lane)
        return self._assert(wanted, times)

    def assert_not_enqueued(
        self,
        task: Task[..., Any, Any] | str,
        /,
        *args: Any,
        queue: str = _ANYTHING,
        run_at: datetime | None = _ANYTHING,
        priority: int = _ANYTHING,
        lane: str | None = _ANYTHING,
        where: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Fail if such a job was enqueued. Parameters as for :meth:`assert_enqueued`."""
        __tracebackhide__ = True
        given = {**kwargs, **(where or {})}
        wanted = self._wanted(task, args, given, queue=queue, run_at=run_at, priority=priority, lane=lane)
        found = [job for job in self.enqueued() if not wanted.misses(job)]
        if found:
            raise AssertionError(f"{wanted} was enqueued.\n{listing(found)}")

    def assert_performed(
        self,
        task: Task[..., Any, Any] | str,
        /,
        *args: Any,
        times: int | None = None,
        where: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Fail unless such a job has run and succeeded; *times* times, if that is given."""
        __tracebackhide__ = True
        wanted = self._wanted(task, args, {**kwargs, **(where or {})}, state=JobState.SUCCEEDED)
        self._assert(wanted, times)

    def assert_batch_ended(self, batch: Batch, state: BatchState = "succeeded") -> BatchCounts:
        """Assert that a batch has ended in that state: "succeeded", "failed" or "cancelled". Returns its counts."""
        __tracebackhide__ = True
        counts = batch.counts
        if batch.state != state:
            others = [job for job in batch.jobs() if job.state is not JobState.SUCCEEDED][:MOST_SHOWN]
            raise AssertionError("\n  ".join([f"{batch!r} is {batch.state}, not {state}: {counts}", *map(str, others)]))
        return counts

    def _assert(self, wanted: Wanted, times: int | None) -> EnqueuedJob:
        __tracebackhide__ = True
        jobs = self.enqueued()
        matches = [job for job in jobs if not wanted.misses(job)]
        if not matches if times is None else len(matches) != times:
            raise AssertionError(no_match(wanted, jobs, matches, times))
        return matches[0] if matches else _NONE

    def _wanted(
        self, task: Task[..., Any, Any] | str, args: tuple[Any, ...], kwargs: Mapping[str, Any], **properties: Any
    ) -> Wanted:
        found = self._registry.find(task) if isinstance(task, str) else _checked(task)
        return Wanted(
            task=found.name,
            arguments=some_by_name(found.name, found.function, args, kwargs),
            properties={name: value for name, value in properties.items() if value is not _ANYTHING},
        )

    def _after(self, number: int, task: Task[..., Any, Any] | str | None = None) -> list[EnqueuedJob]:
        name = task if task is None or isinstance(task, str) else _checked(task).name
        rows = self._read(job_statements.JOBS_AFTER, number=number)
        return [self._job(JobRecord._make(row), args, lane) for *row, args, _, lane in rows if name in (None, row[2])]

    def _job(self, record: JobRecord, args: str, lane: str | None) -> EnqueuedJob:
        task = self._registry.get(record.task)
        arguments = by_name(task and task.function, *_decoded(self._registry.codec, args))
        return EnqueuedJob(record, self._bench.state.client, arguments, lane)

    def _newest(self) -> int:
        number: int = self._read(job_statements.NEWEST_JOB)[0][0]
        return number

    def _read(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        self._store.driver.prepare()
        return self._store.driver.read(sql, parameters)

    # -- running it -------------------------------------------------------------------------------------------------

    def drain(
        self,
        until: datetime | None = None,
        scheduled: bool = False,
        max: int = MAX_JOBS,
        raise_errors: bool = True,
    ) -> Drained:
        """Run the jobs that are ready, and those which they enqueue, until none is left.

        ``until``: jobs that are due by then, too, each at its time: the clock moves along, and back at the end.
        ``scheduled``: all jobs that wait for their time, however far it is. Retries wait for theirs, too, and limited
        jobs for that of their rate. Schedules do
        not fire: :class:`TaskClock` does that. ``max``: more jobs than that are an error, since some job may enqueue
        itself again and again. ``raise_errors``: raise what the first job raised that has not succeeded in the end.
        Raises TaskWorkerError when the worker runs in this process already.
        """
        __tracebackhide__ = True
        last = FOR_EVER if scheduled else None if until is None else to_ms(require_aware(until, "until"))
        report = self._run(Plan(max_jobs=max + 1, until=last), raise_errors)
        refuse_endless(report, max)
        return summary(report)

    async def adrain(
        self,
        until: datetime | None = None,
        scheduled: bool = False,
        max: int = MAX_JOBS,
        raise_errors: bool = True,
    ) -> Drained:
        """:meth:`drain`, without blocking the event loop."""
        return await asyncio.to_thread(self.drain, until, scheduled, max, raise_errors)

    def perform(self, task: Task[P, R, Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Enqueue one job, run it before all others, and return its result, or raise what it raised.

        It has the highest priority, so that the worker takes it first. What waits for another job needs :meth:`drain`.
        """
        __tracebackhide__ = True
        with self._app.app_context():
            job = _checked(task).using(priority=MAX_PRIORITY).enqueue(*args, **kwargs)
        self._run(Plan(max_jobs=2 if self._bench.faults.twice else 1, only=(job.queue, job.kind)), raise_errors=True)
        if not job.refresh().state.finished:
            raise TaskWorkerError(f"{job} did not end: it was {job.state} after its first run.")
        return job.result(timeout=0)

    async def aperform(self, task: Task[P, R, Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """:meth:`perform`, without blocking the event loop."""
        return await asyncio.to_thread(functools.partial(self.perform, task, *args, **kwargs))

    def skip_sleep(self, job: Job[Any]) -> None:
        """End the sleep of that job, or the time of its wait, now: the next :meth:`drain` goes on with it.

        Raises AssertionError where it neither sleeps nor waits for a notice.
        """
        __tracebackhide__ = True

        def body(flows: Flows) -> bool:
            values = {"id": job.id, "now": flows.now}
            is_asleep = bool(flows.run(step_statements.SKIP, values))
            flows.run(step_statements.SET_DUE, values)
            return is_asleep

        if not self._store.change(body):
            raise AssertionError(f"{job.refresh()} is {job.state}, and neither sleeps nor waits for a notice.")

    @contextmanager
    def inline(self, raise_errors: bool = True) -> Iterator[None]:
        """Within the block a job is run as soon as it is stored, before ``enqueue`` returns.

        It still goes all its way. What jobs raise never reaches who enqueues, as in production: it is raised at the
        end of the block. Delayed jobs and retries wait for :meth:`drain`.
        """
        __tracebackhide__ = True
        inline = _Inline(self._bench, self._refuse_foreign)
        with job_enqueued.connected_to(inline.on_enqueued, sender=self._app):
            yield
        if raise_errors:
            raise_first(inline.reports)
        for report in inline.reports:
            refuse_endless(report, MAX_JOBS)

    def _run(self, plan: Plan, raise_errors: bool) -> Report:
        __tracebackhide__ = True
        self._refuse_foreign()
        report = self._bench.run(plan)
        if raise_errors:
            raise_first([report])
        return report

    def _refuse_foreign(self) -> None:
        if self._foreign:
            jobs = ", ".join(str(Job(JobRecord._make(row), self._bench.state.client)) for row in self._foreign)
            raise TaskWorkerError(
                f"The database {self._store.driver.key} holds unfinished jobs that are older than this test run: "
                f"{jobs}. Give tests a database of their own: "
                f"{_OWN_DATABASE}"
            )
        if self._begun is not None and (others := self._bench.other_workers()):
            names = ", ".join(f"{worker.id} ({name_of(worker)})" for worker in others)
            raise TaskWorkerError(
                f"Workers of other processes use the database {self._store.driver.key}: {names}. Tests would run, and "
                f"cancel, the jobs of an application. Give tests a database of their own: {_OWN_DATABASE}"
            )

    def clear(self) -> None:
        """Cancel the unfinished jobs that this process has enqueued, so that the next test does not find them.

        Jobs that these have enqueued in another process are cancelled too; whatever else is in the database stays.
        """
        for *row, _, origin, _ in self._read(job_statements.JOBS_AFTER, number=self._since):
            record = JobRecord._make(row)
            if record.id in self._own or read_origin(origin).get("job") in self._own:
                self._own.add(record.id)
                if not JobState(record.state).finished:
                    self._store.cancel(record.id)

    # -- faults -----------------------------------------------------------------------------------------------------

    @contextmanager
    def run_twice(self) -> Iterator[None]:
        """Within the block every job that succeeds runs again, as after a power cut: an idempotent task does no harm.

        Left alone are jobs of tasks with ``at_most_once=True``, and those of ``atomic`` tasks, whose success cannot
        get lost.
        """
        faults = self._bench.faults
        faults.twice = True
        try:
            yield
        finally:
            faults.twice = False
            faults.repeated.clear()

    def crash(self, at: CrashPoint = "before_finish") -> Crash:
        """The process in which the next job runs dies: before its end is recorded, or ``"before_run"``.

        It happens in the next :meth:`drain`, whose other jobs stay ready. The job is then held by a dead worker until
        :meth:`recover`. As a context manager it ends with the block, if nothing has run by then.
        """
        if at not in get_args(CrashPoint):
            raise ValueError(f"crash(at={at!r}) is not allowed. Allowed: {', '.join(map(repr, get_args(CrashPoint)))}.")
        self._bench.faults.crash_at = at
        return Crash(self._bench)

    def recover(self) -> list[Job[Any]]:
        """Have another worker find the dead one and rescue its jobs; returns them. Each has one crash counted.

        A job goes back into its queue after the first crash; after later ones it first waits some seconds, which
        ``drain(scheduled=True)`` skips. One with ``at_most_once=True`` has failed.
        """
        rescued = self._rescue()
        living = {worker.id: worker.beat for worker in self._store.workers() if worker.state != "dead"}
        left = [worker_id for worker_id in self._bench.dead if worker_id in living]
        self._bench.dead.clear()
        for worker_id in left:
            # Its death is known here; another worker would notice that its heartbeat stops.
            self._store.driver.write(worker_statements.DECLARE_DEAD, {"id": worker_id, "beat": living[worker_id]})
        rescued += self._rescue() if left else []
        return [Job(record, self._bench.state.client) for record in rescued]

    def _rescue(self) -> list[JobRecord]:
        return self._bench.run(Plan(max_jobs=MAX_JOBS, perform=False)).rescued


class Crash:
    """A crash that is to come. After ``with``: none any more."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def __enter__(self) -> Crash:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bench.faults.crash_at = None


class _Inline:
    """Runs jobs as they come. A job that enqueues another does not run it: the worker that runs the first one does."""

    def __init__(self, bench: Bench, check: Any) -> None:
        self._bench = bench
        self._check = check
        self._wanted = threading.Event()
        self.reports: list[Report] = []

    def on_enqueued(self, app: Flask, job: Job[Any]) -> None:
        if job.state not in (JobState.READY, JobState.HELD) or running_job() is not None:
            return
        self._wanted.set()
        while self._wanted.is_set():
            self._check()
            report = self._bench.run_unless_busy(Plan(max_jobs=MAX_JOBS + 1), begin=self._wanted.clear)
            if report is None:
                # The thread that runs the worker now looks again when it has ended.
                return
            self.reports.append(report)


# -- reports -----------------------------------------------------------------------------------------------------------


def summary(report: Report) -> Drained:
    """What came of a run, in numbers."""
    endings = [execution.outcome.ending for execution in report.executions]
    counts = {ending.value: endings.count(ending) for ending in OutcomeKind}
    counts["released"] -= report.repeats
    errors = tuple(e.outcome.exception for e in unsuccessful([report]) if e.outcome.exception is not None)
    return Drained(**counts, crashed=int(report.died), errors=errors)


def unsuccessful(reports: Iterable[Report]) -> list[Execution]:
    """The last try of each job whose last try has failed; but not of one that wants to be tried again."""
    last = {e.claim.id: e for report in reports for e in report.executions}
    return [
        e
        for e in last.values()
        if e.outcome.ending in (OutcomeKind.FAILED, OutcomeKind.RETRYING)
        and not (e.outcome.ending is OutcomeKind.RETRYING and isinstance(e.outcome.exception, RetryJob))
    ]


def _checked(task: Task[P, R, Any]) -> Task[P, R, Any]:
    if not isinstance(task, Task):
        raise ArgumentsError(f"{task!r:.100} is not a task. Give what @task_worker.task has made of a function.")
    return task


def raise_first(reports: Iterable[Report]) -> None:
    """Raise what the first job raised that has not succeeded in the end, with a note that names the job."""
    __tracebackhide__ = True
    failed = unsuccessful(reports)
    if not failed:
        return
    first, others = failed[0], len(failed) - 1
    claim, error = first.claim, first.outcome.exception
    note = f"Raised by {claim} in attempt {claim.attempt} of {claim.max_attempts}"
    if first.outcome.ending is OutcomeKind.RETRYING:
        note += f"; it is tried again in {first.outcome.delay}, and drain(scheduled=True) does not wait for that"
    note += f". {others} other jobs have failed, too." if others else "."
    note += " With raise_errors=False the errors are in the result only."
    if isinstance(error, Exception):
        error.add_note(note)
        raise error
    # SystemExit, for example, would end pytest.
    message = first.outcome.failure.message if first.outcome.failure is not None else ""
    raise AssertionError(f"{claim} has failed: {error!r} {message}".rstrip()) from error


def refuse_endless(report: Report, most: int) -> None:
    """Raise TaskWorkerError where more jobs than allowed have run."""
    if report.is_cut_short:
        names = Counter(execution.claim.task for execution in report.executions)
        shown = ", ".join(f"{name} {times} times" for name, times in names.most_common(3))
        raise TaskWorkerError(
            f"More than {most} jobs have run: {shown}. Does a job enqueue itself again and again, or has the clock "
            "gone over many times of a schedule? Go there with task_clock.jump(moment), and advance from there; or "
            "give a higher max=…."
        )


def _decoded(codec: Codec, args: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        return codec.decode_call(args)
    except NotDecodable as error:
        return (f"<{error}>",), {}
