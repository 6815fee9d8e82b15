"""The client: what every process does with one app's jobs, whether or not a worker runs in it.

It enqueues, looks up, waits, cancels and wakes. Tasks and jobs reach the store through it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from typing import Any, ParamSpec, TypeVar, cast

from blinker import Signal
from flask import Flask, has_app_context, url_for
from sqlalchemy import Engine

from .. import signals
from ..core.clock import as_seconds, from_ms, require_aware, to_ms
from ..core.current_job import waiting_for_others
from ..core.jobs import Job, Reason
from ..core.loggers import Logger, get_logger
from ..core.rows import WAITS, Claim, Failure, JobRecord, JobState, NewJob, Outcome, OutcomeKind
from ..core.tasks import (
    Bound,
    DeclaredSchedule,
    EnqueueOptions,
    Task,
    TaskRegistry,
    check_name,
    check_priority,
)
from ..core.triggers import describe
from ..errors import ArgumentsError, DeclarationError, JobCancelled, JobFailed, JobNotFound, JobTimeout, LeaseLost
from ..store.driver import Run
from ..store.flows import Effects, Flows
from ..store.sql import JobEnding, Store, next_fire_ms, record_of
from . import signalling
from .batches import Batches
from .origin import current_origin, module_in_import
from .progress import ProgressFeed
from .rows import new_job, new_jobs
from .sessions import AtomicSession, CallerTransaction, is_async, run_within
from .steps import Steps
from .threads import PoolClosed, ThreadPool
from .waiting import Waiting
from .why import look, reasons

log: Logger = get_logger("jobs")

P = ParamSpec("P")
T = TypeVar("T")
J = TypeVar("J", bound=Job[Any])

_FIRST_POLL = 0.005
_LAST_POLL = 0.25
_THREADS = 4
_FIRST = 10
"""What is enqueued while modules are imported comes first: later calls need not be looked at."""
_LONGEST_LOOK = 5.0
"""Seconds."""
_CALLER_PATIENCE = 2.0
"""Seconds to wait for SQLite's lock while the tables are made: the caller's own transaction may hold it."""


class Client:
    """One app's jobs, as seen from any thread of this process."""

    def __init__(self, store: Store, registry: TaskRegistry, find_app: Callable[[], Flask | None]) -> None:
        self.store = store
        self.on_news: Callable[[Collection[tuple[str, str]]], None] | None = None
        """Wakes the worker of this process, if there is one."""
        self.worker_thread: threading.Thread | None = None
        """The thread of this process's event loop, where waiting for a result would never end."""
        self.on_minute: Callable[[], None] | None = None
        """Called by the worker of this process once a minute. Must not block."""
        self._registry = registry
        self._codec = registry.codec
        self._find_app = find_app
        self._first = _FIRST
        """How many more calls of enqueue are looked at."""
        self._engines: weakref.WeakKeyDictionary[Engine, bool] = weakref.WeakKeyDictionary()
        self._waiting = Waiting()
        self.feed: ProgressFeed = ProgressFeed(self._jobs)
        self._threads = ThreadPool(_THREADS, "taskworker-client")
        me = weakref.ref(self)
        # A store outlives no client, and must not keep one alive.
        store.follow = lambda effects: client.follow(effects) if (client := me()) is not None else None
        self.report_after: float = 5.0
        """Seconds after which the log says why a job does not run that a caller waits for without a timeout."""

    # -- enqueueing -------------------------------------------------------------------------------------------------

    def enqueue(self, task: Task[..., Any, Any], calls: Sequence[str], options: EnqueueOptions) -> list[Job[Any]]:
        """Store one job for each encoded call, in one transaction; then send job_enqueued and wake the workers."""
        around = self._registry.surroundings
        if around is not None and around.sees_calls:
            return self.enqueue_all([Bound(task, args, options) for args in calls], options.session)

        if self._first and not (options.uid or options.unique):
            self._first -= 1
            if (module := module_in_import()) is not None:
                words = (
                    "%s is enqueued while %s is imported, so each process that imports it enqueues a job. Enqueue in a "
                    "function that is called once, give uid=… to store the job once, or use schedule=…."
                )
                log.warning(words, task.name, module)

        def enqueue() -> list[Job[Any]]:
            rows = new_jobs(task, calls, options, self.store.clock(), self.origin())
            return self._store(rows, self.store.add, self.session_of(options))

        return self.traced(task.name, options.queue or task.options.queue, len(calls), enqueue)

    def enqueue_all(self, calls: Sequence[Bound[Any]], session: Any = None) -> list[Job[Any]]:
        """Store a job for each of these calls, which may be of different tasks, in one transaction."""
        if (around := self._registry.surroundings) is not None:
            calls = [around.prepared(call) for call in calls]

        def enqueue() -> list[Job[Any]]:
            now, origin = self.store.clock(), self.origin()
            sessions = [session, *(self.session_of(call.options) for call in calls)]
            rows = [new_job(call.task, call.args, call.options, now, origin) for call in calls]
            return self._store(rows, self.store.add_all, next((one for one in sessions if one is not None), None))

        tasks = ", ".join(sorted({call.task.name for call in calls}))
        queues = ", ".join(sorted({call.options.queue or call.task.options.queue for call in calls}))
        return self.traced(tasks, queues, len(calls), enqueue)

    def origin(self) -> str | None:
        """The origin of a job that is enqueued here and now, with what it carries."""
        return current_origin(self._registry.surroundings)

    def session_of(self, options: EnqueueOptions) -> Any:
        """In whose transaction to store: the caller's, or that of a batch which is just made. Raises ArgumentsError."""
        for one in (*options.after, options.batch):
            owner = getattr(one, "_client", None)
            if one is not None and self not in (owner, getattr(owner, "_client", None), getattr(owner, "_owner", None)):
                raise ArgumentsError(f"{one!r} belongs to another app. Enqueue the job there.")
            if one is not None and not one.id:
                raise ArgumentsError(
                    f"{one!r} is pending in a session of another database, so no job can wait for it yet. Enqueue the "
                    "job after the commit."
                )
        if options.session is None and options.batch is not None:
            return options.batch._session
        return options.session

    def _store(
        self, rows: Sequence[NewJob], add: Callable[[Sequence[NewJob]], list[JobRecord]], session: Any
    ) -> list[Job[Any]]:
        if session is not None:
            return self._enqueue_within(CallerTransaction(session), rows, add)
        return self._announced(add(rows), rows)

    def enqueue_with(
        self, task: Task[..., Any, Any], call: str, also: Callable[[Run], None], *, schedule: str
    ) -> Job[Any]:
        """Store a job of *schedule* with now as its fire time, and what *also* writes, in one transaction."""

        def enqueue() -> list[Job[Any]]:
            now = self.store.clock()
            row = new_job(task, call, options, now, self.origin())._replace(schedule=schedule, fire_at=now)

            def body(flows: Flows) -> list[JobRecord]:
                also(flows.run)
                return self.store.add_within(flows, [row])

            return self._announced(self.store.change(body), [row])

        options = EnqueueOptions()
        return self.traced(task.name, task.options.queue, 1, enqueue)[0]

    def traced(self, task: str, queue: str, number: int, enqueue: Callable[[], list[J]]) -> list[J]:
        """Have *enqueue* make *number* jobs, inside a span if there is a tracing system."""
        if (tracing := self._registry.tracing) is None:
            return enqueue()
        with tracing.sending(task, queue, number) as sent:
            jobs = enqueue()
            sent([job.id for job in jobs])
        return jobs

    def _announced(
        self, records: Sequence[JobRecord], rows: Sequence[NewJob], jobs: list[Job[Any]] | None = None
    ) -> list[Job[Any]]:
        """Announce the jobs that are new; the others existed already, under the same uid or unique key."""
        if jobs is None:
            jobs = [Job(r, self, merged=r.uid != row.uid) for r, row in zip(records, rows, strict=True)]
        new = [i for i, row in enumerate(rows) if row.uid == records[i].uid and row.created_at == records[i].created_at]
        try:
            if signals.job_enqueued.receivers and (app := self._find_app()) is not None:
                for i in new:
                    signalling.send(signals.job_enqueued, app, job=jobs[i])
        finally:
            states = {(rows[i].queue, rows[i].kind, records[i].state) for i in new}
            self.wake(
                {(queue, "held" if state == "held" else kind) for queue, kind, state in states if state != "scheduled"}
            )
        return jobs

    def follow(self, effects: Effects) -> None:
        """A commit has changed other jobs than those that it was about: tell the workers, and do what was put off."""
        while True:
            if effects.ready or effects.admits:
                self.wake(() if effects.admits else effects.ready)
            self.finished(record.id for record in effects.cancelled)
            if signals.job_cancelled.receivers and (app := self._find_app()) is not None:
                with app.app_context():
                    for record in effects.cancelled:
                        signalling.send(signals.job_cancelled, app, job=Job(record, self), outcome=None)
            if not effects.is_more:
                return
            effects = self.store.go_on()

    async def aenqueue(
        self, task: Task[..., Any, Any], calls: Sequence[str], options: EnqueueOptions
    ) -> list[Job[Any]]:
        """As :meth:`enqueue`, in a thread; with a session where the session is."""
        session = self.session_of(options)
        if session is None:
            return await self._aside(self.enqueue, task, calls, options)
        return await self._with(session, lambda inner: self.enqueue(task, calls, replace(options, session=inner)))

    async def aenqueue_all(self, calls: Sequence[Bound[Any]], session: Any = None) -> list[Job[Any]]:
        """As :meth:`enqueue_all`, in a thread; with a session where the session is."""
        if session is None:
            return await self._aside(self.enqueue_all, calls)
        return await self._with(session, lambda inner: self.enqueue_all(calls, inner))

    async def _with(self, session: Any, enqueue: Callable[[Any], T]) -> T:
        return await run_within(session, enqueue) if is_async(session) else enqueue(session)

    @property
    def batches(self) -> Batches:
        """The batches of this app."""
        return Batches(self.store, self, self._aside)

    @property
    def steps(self) -> Steps:
        """The steps of this app's jobs."""
        return Steps(self.store, self._registry, self.shares_database, self._aside)

    # -- in the caller's own transaction ----------------------------------------------------------------------------

    def shares_database(self, transaction: CallerTransaction) -> bool:
        """Whether the jobs lie in the database of the caller's session; asked once an engine."""
        engine = transaction.engine
        known = self._engines.get(engine)
        if known is None:
            # Ours first: it makes the tables where there are none yet.
            known = transaction.holds(self.store.store_id(patience=_CALLER_PATIENCE))
            if known is None:
                return False
            self._engines[engine] = known
        return known

    def _enqueue_within(
        self,
        transaction: CallerTransaction,
        rows: Sequence[NewJob],
        add: Callable[[Sequence[NewJob]], list[JobRecord]],
    ) -> list[Job[Any]]:
        flows: Flows | None = None
        if self.shares_database(transaction):
            transaction.refuse_autocommit()
            flows = self.store.flows(transaction.run)
            records = self.store.add_within(flows, rows)
        elif transaction.session is None:
            raise ArgumentsError(
                "The connection given as session=… is in another database than the jobs, and a connection does not say "
                "when it has committed. Give a Session, or enqueue after the commit without session=…."
            )
        else:
            records = [record_of(row, 0) for row in rows]
        jobs: list[Job[Any]] = [
            Job(record._replace(state=JobState.PENDING.value), self, merged=record.uid != row.uid)
            for record, row in zip(records, rows, strict=True)
        ]

        def on_commit() -> None:
            stored = records if records[0].id else add(rows)
            for job, record in zip(jobs, stored, strict=True):
                job._become(record)
            self._announced(stored, rows, jobs)
            if flows is not None and flows.effects:
                self.follow(flows.effects)

        transaction.after_commit(on_commit)
        return jobs

    async def _aside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except PoolClosed:
            # The interpreter shuts down, the system has no thread left, or the client was just closed. To block for a
            # moment is better than to fail.
            return call()

    def put_schedule(self, schedule: DeclaredSchedule) -> None:
        """Store a schedule made at run time, or change the one of that name."""
        schedule = schedule._in_zone(self.store.timezone)
        next_at = next_fire_ms(schedule, from_ms(self.store.clock()))
        if next_at is None:
            raise DeclarationError(
                f"The schedule {schedule.name!r} would never fire: {describe(schedule.trigger)} has no time left. "
                "Give a later moment, or enqueue the job now."
            )
        self.store.put_schedule(schedule, next_at)
        self.wake()

    def wake(self, ready: Collection[tuple[str, str]] = ()) -> None:
        """Tell all workers of this database that there is news; *ready* says which queues have jobs of which kind."""
        # Looked up once: the worker may end, and clear it, at any moment.
        if (on_news := self.on_news) is not None:
            on_news(ready)
        self.store.driver.wake_others(ready)

    def check_atomic_tasks(self, app: Flask) -> None:
        """Raise DeclarationError where an atomic task writes into another database than that of the jobs.

        Seen from a thread and a context of its own, as in a job. Where that raises, the job fails.
        """
        foreign: list[str] = []

        def look_at_sessions(tasks: Sequence[Task[..., Any, Any]]) -> None:
            for task in tasks:
                try:
                    with app.app_context():
                        transaction = CallerTransaction(cast(Any, task.options.atomic)())
                        if not self.shares_database(transaction):
                            foreign.append(task.name)
                        cast(Any, transaction.session).close()
                except Exception as error:  # noqa: BLE001 - the application's own function, and its database
                    log.debug("the session of %s cannot be had outside of a job: %r", task.name, error)

        if tasks := [task for task in self._registry if task.options.atomic is not None]:
            thread = threading.Thread(target=look_at_sessions, args=(tasks,), name="taskworker-look", daemon=True)
            thread.start()
            thread.join(_LONGEST_LOOK)
        for name in foreign:
            raise DeclarationError(_foreign(name))

    def run_atomically(self, task: Task[..., Any, Any], claim: Claim, work: Callable[[], Outcome]) -> Outcome:
        """Run an atomic task's work and commit its writes and its success together, or neither. In a worker thread.

        Raises ArgumentsError when the session is in another database than the jobs, or when the task commits itself.
        """
        assert task.options.atomic is not None
        session = AtomicSession(task.options.atomic, task.name)
        try:
            if not self.shares_database(session.transaction):
                raise ArgumentsError(_foreign(task.name))
            session.refuse_autocommit()
            with session:
                outcome = work()
                session.check()
                succeeded = outcome.ending is OutcomeKind.SUCCEEDED
                if succeeded:
                    session.flush()
                flows = self.store.flows(session.run)
                if succeeded and not self.store.finish_within(flows, claim, outcome.result, outcome.keep):
                    raise LeaseLost
            if succeeded:
                session.commit()
                if flows.effects:
                    self.follow(flows.effects)
        finally:
            # After the commit there is nothing to roll back.
            session.roll_back()
        return replace(outcome, recorded=succeeded)

    # -- looking and waiting ----------------------------------------------------------------------------------------

    def job(self, job_id: int) -> Job[Any]:
        """The job of that number. Raises JobNotFound, or ArgumentsError for anything but a number."""
        return Job(self.record(job_id), self)

    def job_of(self, uid: str) -> Job[Any]:
        """The job of that uid. Raises JobNotFound."""
        for job in self._jobs([uid]):
            return job
        raise JobNotFound(f"No job has the uid {uid!r:.200}. It may have been pruned, or was never committed.")

    def _jobs(self, uids: Sequence[str]) -> list[Job[Any]]:
        return [Job(record, self) for record in self.store.records(uids)]

    def record(self, job_id: int) -> JobRecord:
        """The job's row. Raises JobNotFound, or ArgumentsError for anything but a number."""
        if not isinstance(job_id, int):
            raise ArgumentsError(
                f"A job's id is a whole number, not {job_id!r:.100}. Of text from a request make an int."
            )
        return self.store.record(job_id)

    def why(self, job_id: int) -> list[Reason]:
        """What a waiting job waits for. Raises JobNotFound."""
        return reasons(look(self.store, self._registry, job_id))

    def wait(self, job_id: int, timeout: float | None) -> Any:
        """The decoded result. Raises JobFailed, JobCancelled, JobTimeout or JobNotFound."""
        if threading.current_thread() is self.worker_thread:
            raise RuntimeError("result() would block the worker's event loop forever. Use: await job.aresult().")
        deadline = _deadline(timeout)
        pause, report_at = _FIRST_POLL, self._report_at(timeout)
        with self._waiting.for_job(job_id) as finished, waiting_for_others():
            while not JobState((ending := self.store.ending(job_id)).state).finished:
                left = _time_left(job_id, ending, deadline)
                # Another process may finish the job: then the event is never set.
                finished.wait(min(pause, left))
                pause = min(pause * 2, _LAST_POLL)
                if time.monotonic() > report_at:
                    report_at = math.inf
                    self._report_wait(job_id)
        return self._value(job_id, ending)

    async def await_result(self, job_id: int, timeout: float | None) -> Any:
        """As :meth:`wait`, without blocking the event loop."""
        deadline = _deadline(timeout)
        pause, report_at = _FIRST_POLL, self._report_at(timeout)
        with self._waiting.for_job(job_id) as finished, waiting_for_others():
            while not JobState((ending := await self._aside(self.store.ending, job_id)).state).finished:
                await finished.async_wait(min(pause, _time_left(job_id, ending, deadline)))
                pause = min(pause * 2, _LAST_POLL)
                if time.monotonic() > report_at:
                    report_at = math.inf
                    await self._aside(self._report_wait, job_id)
        return self._value(job_id, ending)

    def arguments(self, job_id: int, task: str) -> Mapping[str, Any]:
        """The arguments by the names of the parameters. Raises JobNotFound, NotDecodable."""
        return self.named(task, self.store.args(job_id))

    def named(self, task: str, encoded: str) -> Mapping[str, Any]:
        """An encoded call of a task by the names of its parameters. Raises NotDecodable."""
        args, kwargs = self._codec.decode_call(encoded)
        known = self._registry.get(task)
        return {"args": args, **kwargs} if known is None else known._named(args, kwargs)

    def error(self, job_id: int) -> Failure | None:
        """Why it ended as it did. Raises JobNotFound."""
        ending = self.store.ending(job_id)
        has_error = ending.error is not None or ending.failure_kind is not None
        return Failure._from_text(ending.error, ending.failure_kind) if has_error else None

    def url(self, job_id: int) -> str | None:
        """The address of its page on the dashboard; None without one. Raises RuntimeError without a host."""
        app, page = self._find_app(), self._registry.job_page
        if app is None or page not in app.view_functions:
            return None
        with nullcontext() if has_app_context() else app.app_context():
            return url_for(page, job_id=job_id)

    def _report_at(self, timeout: float | None) -> float:
        return time.monotonic() + self.report_after if timeout is None else math.inf

    def _report_wait(self, job_id: int) -> None:
        """Log why a job that a caller waits for does not run: without a timeout the caller may wait forever."""
        for reason in self.why(job_id):
            words = "a caller has waited %g seconds for the result of job %s, without a timeout. %s %s"
            log.warning(words, self.report_after, job_id, reason.text, reason.ends)

    def _value(self, job_id: int, ending: JobEnding) -> Any:
        match ending.state:
            case "succeeded":
                return None if ending.result is None else self._codec.decode(ending.result)
            case "cancelled":
                reason = Failure._from_text(ending.error, ending.failure_kind).message
                raise JobCancelled(f"Job {job_id} was cancelled. {reason}".rstrip())
            case _:
                failure = Failure._from_text(ending.error, ending.failure_kind)
                raise JobFailed(
                    f"Job {job_id} failed: {failure.type or failure.kind}: {failure.message}",
                    job_id=job_id,
                    kind=failure.kind,
                    exception_type=failure.type,
                    exception_message=failure.message,
                    traceback=failure.traceback,
                )

    def finished(self, job_ids: Iterable[int]) -> None:
        """Told by the worker of this process after the commit: end the waiting for these jobs."""
        self._waiting.end(job_ids)

    def tell(self, uid: str, name: str, value: Any, session: Any = None) -> None:
        """Tell a job something. Raises JobFinished, JobNotFound or StepError."""
        self.steps.tell(uid, name, value, session)

    # -- cancelling and retrying ---------------------------------------------------------------------------------------

    def cancel(self, job_id: int) -> bool:
        """Cancel, or ask the running job to stop."""
        state = self.store.cancel(job_id)
        if state is JobState.CANCELLED:
            self.cancelled((job_id,))
            if self._registry.limits:
                # There may be room for others now.
                self.wake()
        return state is not None

    def cancelled(self, job_ids: Iterable[int]) -> None:
        """These waiting jobs were cancelled: end the waiting for them and send job_cancelled."""
        ended = tuple(job_ids)
        self.finished(ended)
        if signals.job_cancelled.receivers and (app := self._find_app()) is not None:
            with app.app_context():
                for job_id in ended:
                    signalling.send(signals.job_cancelled, app, job=self.job(job_id), outcome=None)

    def announce(self, signal: Signal, **values: Any) -> None:
        """Send a signal here and now, if anybody listens and the app lives."""
        if signal.receivers and (app := self._find_app()) is not None:
            signalling.send(signal, app, **values)

    def retry(self, job_id: int, *, following: bool = False, fresh: bool = False) -> bool:
        """Put a finished job back into its queue."""
        done = self.store.retry(job_id, following=following, fresh=fresh)
        self.wake()
        return done

    def change(self, job_id: int, **changes: Any) -> bool:
        """Change a waiting job: see :meth:`Job.change`."""
        values = self.checked_change(self.store.record(job_id), **changes)
        return bool(self.store.change(lambda flows: flows.change(values)))

    def checked_change(
        self,
        job: JobRecord,
        *,
        priority: int | None = None,
        run_at: datetime | None = None,
        queue: str | None = None,
        args: Sequence[Any] | Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What ``Flows.change`` takes. Raises ArgumentsError, DeclarationError or NotEncodable."""
        if priority is not None:
            check_priority(priority)
        if queue is not None:
            check_name("queue", queue)
        due_at = None
        if run_at is not None:
            if job.marks & WAITS:
                raise ArgumentsError(f"Job {job.id} waits for others, which say when it is due. Leave run_at out.")
            due_at = to_ms(require_aware(run_at, "run_at"))
            due_at = due_at if due_at > self.store.clock() else 0
        encoded = None if args is None else self._registry.find(job.task)._encode_others(args)
        return {"id": job.id, "priority": priority, "run_at": due_at, "queue": queue, "args": encoded}

    def close(self) -> None:
        """Close the database's connections and end idle threads; new ones are made when needed."""
        # A thread that has just taken the old pool finds it closed, and does without: see _aside.
        threads, self._threads = self._threads, ThreadPool(_THREADS, "taskworker-client")
        threads.shutdown()
        self.store.driver.close()

    def abandon(self) -> None:
        """After a fork, in the child: start afresh, with nothing of the parent's."""
        self.on_news = None
        self.worker_thread = None
        self._waiting = Waiting()
        self.feed = ProgressFeed(self._jobs)
        self._threads = ThreadPool(_THREADS, "taskworker-client")
        self.store.driver.abandon()


_monotonic = functools.partial(time.monotonic)
"""Goes on where a test freezes the clock: freezegun replaces the functions that modules hold, not this one."""


def _foreign(task: str) -> str:
    return (
        f"{task} is atomic, so the jobs must lie in the database of its session. Set TASKER_DATABASE_URI to the "
        "session's database, or declare the task without atomic=…."
    )


def _deadline(timeout: float | None) -> float | None:
    seconds = as_seconds(timeout)
    return None if seconds is None else _monotonic() + seconds


def _time_left(job_id: int, ending: JobEnding, deadline: float | None) -> float:
    if deadline is None:
        return _LAST_POLL
    left = deadline - _monotonic()
    if left <= 0:
        is_ready = ending.state == "ready"
        waits = " It is still ready: if no worker takes it, flask tasks status says why." if is_ready else ""
        raise JobTimeout(f"Job {job_id} had no result within the timeout. It goes on; ask again later.{waits}")
    return left
