"""The executor: one job's function in the app context, and its ending as an Outcome.

Foreign code is called in one place for each kind, and every ending of it (return, exception, timeout, cancellation,
``SystemExit``, a result that JSON cannot hold) is named in one place.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
import random
import threading
from collections.abc import Callable, Coroutine
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from flask import Flask

from ..client.origin import current_trace
from ..client.threads import PoolClosed, end_process
from ..core.clock import as_timedelta
from ..core.codec import UnknownType
from ..core.current_job import RunningJob, refuse_swallowed, set_running
from ..core.failures import deciding, failure_of, message_of
from ..core.loggers import Logger, get_logger
from ..core.retry import Retry
from ..core.rows import INTERRUPTED, SUCCEEDED, Claim, Failure, Outcome, OutcomeKind
from ..core.steps import HandedOver, Suspended
from ..core.tasks import Task, TaskRegistry, Tracing
from ..core.words import spoken
from ..errors import (
    AppError,
    CancelJob,
    DeclarationError,
    JobCancelled,
    LeaseLost,
    NotDecodable,
    NotEncodable,
    RetryJob,
    SnoozeJob,
)
from .thread_bridge import ThreadBridge
from .timing import DEFAULT_TIMING, Timing

if TYPE_CHECKING:
    from .isolation import JobServer

log: Logger = get_logger("jobs")

ASKED_RETRY = Retry(max_attempts=10)
NO_RETRY = Retry(max_attempts=1)
"""The policy of a task without one that raises RetryJob."""

LONGEST_DEPLOY_MS = 3_600_000
"""A job younger than this with an argument of an unknown type goes back to its queue: newer code may know the type."""

LARGE = 100_000
"""Characters of JSON from which arguments are decoded in a thread, and results counted."""
MOST_ENCODED = 4_000_000
"""Characters of results that are encoded in one turn of the loop: those of a thousand async jobs may come at once."""

_NOTHING = object()
_TOO_LONG = "The task did not end within {:g} s."
_NO_THREAD_PAUSE = 1.0
"""Seconds."""
_LONGEST_RELEASE = timedelta(minutes=10)


class Executor:
    """Runs jobs of one app. For one event loop only."""

    isolates = True
    """Whether isolated jobs get a process of their own; in tests they run in a thread."""

    def __init__(
        self,
        find_app: Callable[[], Flask | None],
        registry: TaskRegistry,
        *,
        threads: int,
        clock: Callable[[], int],
        run_atomically: Callable[[Task[..., Any, Any], Claim, Callable[[], Outcome]], Outcome],
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        self._shortest_release = timedelta(seconds=timing.shortest_release)
        self._run_atomically = run_atomically
        self._encoded = 0
        """How many characters of large results this turn of the loop has encoded."""
        self._find_app = find_app
        self._clock = clock
        self.registry = registry
        self._codec = registry.codec
        self._bridge = ThreadBridge(threads, "taskworker-job")
        self._parent_only = ParentOnly()
        self.on_overdue: Callable[[Claim, bool], None] = lambda claim, is_overdue: None
        """Told True when a timed-out job keeps its thread, since its function runs on, and False when that returns."""
        self._server: JobServer | None = None
        self.open_server: Callable[[], JobServer]
        """Makes what runs isolated jobs."""

    def execute(self, job: RunningJob) -> Coroutine[Any, Any, Outcome]:
        """Run one job to its ending. Never raises but CancelledError before it began."""
        tracing = self.registry.tracing
        return self._execute(job) if tracing is None else self._traced(job, tracing)

    async def _traced(self, job: RunningJob, tracing: Tracing) -> Outcome:
        outcome: Outcome | None = None
        try:
            with tracing.processing(job.claim) as ended:
                job.trace = current_trace()
                outcome = await self._execute(job)
                ended(outcome)
        except Exception:
            if outcome is None:
                raise
            log.exception("the trace of %s could not be written", job.claim)
        return outcome

    def _execute(self, job: RunningJob) -> Coroutine[Any, Any, Outcome]:
        """No coroutine itself: one less for each job."""
        task = self.registry.get(job.claim.task)
        app = self._find_app()
        if app is None:
            # The app is gone, and its worker about to stop. Another one may have the job at once.
            return _at_once(Outcome(OutcomeKind.RELEASED))
        if task is None:
            return _at_once(self._unknown(job.claim))
        if (longest := job.claim.missed_by(self._clock())) is not None:
            return _at_once(_cancelled(task, f"Not begun within {spoken(longest)} of when it was due."))
        if task.options.isolate and self.isolates:
            return self._run_isolated(job)
        run = self._run_async if task.kind == "async" else self._run_sync
        if len(job.claim.args) > LARGE:
            return self._run_large(run, app, task, job)
        try:
            return run(app, task, job, *self._codec.decode_call(job.claim.args))
        except NotDecodable as error:
            return _at_once(self._unreadable(task, job, error))

    def _unknown(self, claim: Claim) -> Outcome:
        reason = "this worker has no task of that name; import the module that declares it"
        last = claim.task.rpartition(".")[2]
        if alike := [one.name for one in self.registry if one.name.rpartition(".")[2] == last]:
            reason += f". If {alike[0]!r} is meant, both processes must import its module by one name, or give name=…"
        return self._released_unknown(claim, reason)

    async def _run_large(
        self, run: Callable[..., Coroutine[Any, Any, Outcome]], app: Flask, task: Task[..., Any, Any], job: RunningJob
    ) -> Outcome:
        """As :meth:`_execute`. The arguments are decoded in a thread: on the loop they would hold up other jobs."""
        try:
            args, kwargs = await asyncio.to_thread(self._codec.decode_call, job.claim.args)
        except NotDecodable as error:
            return self._unreadable(task, job, error)
        except BaseException as error:  # noqa: BLE001 - cancelled while it was decoded
            return self.ending_of(job, error)
        return await run(app, task, job, args, kwargs)

    def _unreadable(self, task: Task[..., Any, Any], job: RunningJob, error: NotDecodable) -> Outcome:
        if isinstance(error, UnknownType) and self._clock() - job.claim.created_at < LONGEST_DEPLOY_MS:
            return self._released_unknown(job.claim, str(error))
        return _failed(task, error, "payload")

    async def _run_async(
        self, app: Flask, task: Task[..., Any, Any], job: RunningJob, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Outcome:
        set_running(job)
        limit = job.claim.timeout
        scope: asyncio.Timeout | None = None
        value: Any = _NOTHING
        around = self.registry.surroundings
        try:
            with app.app_context(), self._parent_only:
                if around is None:
                    running = task.function(*args, **kwargs)
                else:
                    running = around.arun(job, functools.partial(task.function, *args, **kwargs))
                if limit is None:
                    value = await running
                else:
                    async with asyncio.timeout(limit / 1000) as scope:
                        value = await running
                if job.tried is not None and job.tried.is_suspended:
                    value = _NOTHING
                    refuse_swallowed(job)
            if self._encoded > MOST_ENCODED:
                # The task has returned: to cancel it is too late.
                with suppress(asyncio.CancelledError):
                    while self._encoded > MOST_ENCODED:  # noqa: ASYNC110 - each waits for its turn, not for an event
                        await asyncio.sleep(0)
            outcome = self._succeeded(task, value)
            if outcome.result is not None and len(outcome.result) > LARGE:
                self._encoded += len(outcome.result)
                asyncio.get_running_loop().call_soon(self._begin_turn)
            return outcome
        except BaseException as error:  # noqa: BLE001 - foreign code; whatever it raises ends its job alone
            if value is not _NOTHING:
                return self._teardown_raised(task, job, value, error)
            if limit is not None and scope is not None and scope.expired() and isinstance(error, TimeoutError):
                error.args = (_TOO_LONG.format(limit / 1000),)
                return self.ending_of(job, error, "timeout")
            return self.ending_of(job, error)

    def _begin_turn(self) -> None:
        self._encoded = 0

    async def _run_sync(
        self, app: Flask, task: Task[..., Any, Any], job: RunningJob, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Outcome:
        limit = job.claim.timeout
        set_running(job)
        thread = self._bridge.run(functools.partial(self._call, app, task, job, args, kwargs))
        try:
            return await thread if limit is None else await self._limited(job, thread, limit / 1000)
        except PoolClosed as error:
            # Back to the queue: no thread can be started. While the process lives the slot stays in use for a moment:
            # else the next job would be claimed, and handed back, as fast as the database can.
            if threading.main_thread().is_alive():
                log.warning("%s goes back to its queue: no thread for it: %s", job.claim, error.__cause__ or error)
                await asyncio.sleep(_NO_THREAD_PAUSE)
            return Outcome(OutcomeKind.RELEASED)

    async def _run_isolated(self, job: RunningJob) -> Outcome:
        job.isolated = True
        try:
            if job.cancelled or job.lost:
                raise asyncio.CancelledError
            return await self.server.run(job)
        except AppError as error:
            return self._released_unknown(job.claim, str(error))
        except TimeoutError as error:
            return self.ending_of(job, error.with_traceback(None), "timeout")
        except BaseException as error:  # noqa: BLE001 - cancelled, or its process has died
            return self.ending_of(job, error.with_traceback(None))

    def perform(self, app: Flask, job: RunningJob) -> Outcome:
        """Run a sync job in this thread to its ending, in a process that has no other job. Never raises."""
        task = self.registry.get(job.claim.task)
        if task is None:
            return self._unknown(job.claim)
        try:
            args, kwargs = self._codec.decode_call(job.claim.args)
        except NotDecodable as error:
            return self._unreadable(task, job, error)
        set_running(job)
        scope = self.registry.scope
        with nullcontext() if scope is None else scope(job.claim):
            return self._call(app, task, job, args, kwargs)

    def _call(
        self, app: Flask, task: Task[..., Any, Any], job: RunningJob, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Outcome:
        """Run a sync job in its thread. Never raises."""

        def run() -> Any:
            with self._parent_only:
                value = task.function(*args, **kwargs)
                refuse_swallowed(job)
                return value

        committed: Outcome | None = None

        def commit() -> Outcome:
            nonlocal committed
            outcome = self._run_atomically(task, job.claim, lambda: self._succeeded(task, run()))
            committed = outcome if outcome.recorded else None
            return outcome

        around = self.registry.surroundings
        # The context is pushed in here: pushed around the hop, its teardown would run on the loop's thread.
        job.thread = threading.get_ident()
        value: Any = _NOTHING
        body = run if task.options.atomic is None else commit
        try:
            with app.app_context():
                value = body() if around is None else around.run(job, body)
            return value if task.options.atomic is not None else self._succeeded(task, value)
        except BaseException as error:
            if committed is not None:
                log.exception("%s has committed, then this was raised; the job succeeded", job.claim)
                return committed
            if value is not _NOTHING:
                return self._teardown_raised(task, job, value, error)
            return self.ending_of(job, error)

    async def _limited(self, job: RunningJob, thread: asyncio.Future[Outcome], limit: float) -> Outcome:
        """Wait no longer than *limit*. The await is abandoned then, not the thread: it cannot be stopped."""
        done, _ = await asyncio.wait({thread}, timeout=limit)
        if done:
            return thread.result()
        if self._bridge.withdraw(thread):
            raise PoolClosed("its timeout was over before a thread was free")

        def on_end(_: object) -> None:
            self.on_overdue(job.claim, False)
            set_running(job)
            if not thread.cancelled() and thread.exception() is None:
                words = "%s, timed out before, has returned (%s, dropped); its thread is free again"
                log.info(words, job.claim, thread.result().ending)

        job.cancelled = True
        self.on_overdue(job.claim, True)
        # In a context of its own: jobs start when a thread is free again, and theirs is a copy of it.
        thread.add_done_callback(on_end, context=contextvars.Context())
        words = "%s exceeded its timeout of %g s; its thread is in use until the function returns"
        log.warning(words, job.claim, limit)
        return self.ending_of(job, TimeoutError(_TOO_LONG.format(limit)), "timeout")

    def _succeeded(self, task: Task[..., Any, Any], value: object) -> Outcome:
        keep = task.options.keep
        if value is None:
            return SUCCEEDED if keep is None else Outcome(OutcomeKind.SUCCEEDED, keep=keep)
        if inspect.iscoroutine(value):
            value.close()
            problem = NotEncodable(
                f"{task.name} returned a coroutine. Declare it with async def, or await the coroutine."
            )
            return _failed(task, problem, "result")
        try:
            return Outcome(OutcomeKind.SUCCEEDED, result=self._codec.encode(value), keep=keep)
        except NotEncodable as error:
            return _failed(task, error, "result")

    def _teardown_raised(
        self, task: Task[..., Any, Any], job: RunningJob, value: object, error: BaseException
    ) -> Outcome:
        """The task did its work: running it again because of the app's teardown would do the work twice."""
        words = "%s returned, then a teardown function of the app raised; the job counts as succeeded"
        log.error(words, job.claim, exc_info=error)
        return self._succeeded(task, value)

    def ending_of(self, job: RunningJob, error: BaseException, kind: str = "exception") -> Outcome:
        """What becomes of a job whose execution raised *error*. Never raises, whatever *error* does."""
        claim, task = job.claim, self.registry.get(job.claim.task)
        policies, asked = task.options.retries if task else (), None
        try:
            match deciding(error):
                case SnoozeJob() | Suspended() as pause:
                    return self._put_off(pause)
                case CancelJob() as cancel:
                    return _cancelled(task, message_of(cancel))
                case JobCancelled() | asyncio.CancelledError() if job.cancelled:
                    return _cancelled(task, "Stopped on request.")
                case asyncio.CancelledError() | HandedOver() if job.releasing or job.lost:
                    return _interrupted(claim)
                case RuntimeError() if "shutdown" in message_of(error) and not threading.main_thread().is_alive():
                    # Python refuses new threads once the main thread has ended, which says nothing about the job.
                    return _interrupted(claim)
                case LeaseLost() if job.lost or (task is not None and task.options.atomic is not None):
                    return _interrupted(claim)
                case RetryJob() as retry:
                    policy, asked = next(iter(policies), ASKED_RETRY), retry.delay
                case _:
                    policy = next((policy for policy in policies if policy.wants(error)), NO_RETRY)
            if claim.attempt < policy.max_attempts:
                delay = policy.delay(claim.attempt, rand=random.uniform(-1, 1))
                if asked is not None:
                    delay = as_timedelta(asked, "delay")
                return Outcome(OutcomeKind.RETRYING, delay=delay, failure=failure_of(error, kind), exception=error)
        except DeclarationError as problem:
            problem.__cause__ = error
            return _failed(task, problem, "exception")
        except BaseException:
            # The error's class is foreign code.
            log.exception("the error of %s cannot be examined", claim)
        return _failed(task, error, kind)

    def _put_off(self, pause: SnoozeJob | Suspended) -> Outcome:
        if isinstance(pause, SnoozeJob):
            return Outcome(OutcomeKind.SNOOZED, delay=as_timedelta(pause.delay, "delay"), closes=pause.limit)
        delay = timedelta(milliseconds=max(0, pause.until - self._clock()))
        return Outcome(OutcomeKind.SNOOZED, delay=delay, until=pause.until)

    def _released_unknown(self, claim: Claim, reason: str) -> Outcome:
        """Back to the queue: another version of the code may know the task, or the types of its arguments.

        The older the job, the longer the pause; but slowly: several workers that do not know it may take it in turn.
        """
        log.error("%s goes back to its queue: %s", claim, reason)
        age = timedelta(milliseconds=max(0, self._clock() - claim.created_at))
        return Outcome(OutcomeKind.RELEASED, delay=min(max(age / 10, self._shortest_release), _LONGEST_RELEASE))

    @property
    def server(self) -> JobServer:
        """What runs isolated jobs, made where there is none yet."""
        if self._server is None:
            self._server = self.open_server()
        return self._server

    def allow_threads(self, number: int) -> None:
        """As many sync jobs may run at once from now on."""
        self._bridge.allow(number)

    def end_processes(self) -> None:
        """End isolated jobs at once. Safe from any thread."""
        if self._server is not None:
            self._server.kill()

    def close(self) -> None:
        """Let idle threads end; a busy one ends with its job or with the process."""
        self._bridge.close()
        self.end_processes()


def _interrupted(claim: Claim) -> Outcome:
    """Back to the queue; but a job that may run only once has begun, and must not begin again."""
    return Outcome(OutcomeKind.FAILED, failure=INTERRUPTED) if claim.at_most_once else Outcome(OutcomeKind.RELEASED)


async def _at_once(outcome: Outcome) -> Outcome:
    return outcome


class ParentOnly:
    """A with block that only the process may leave in which it was made.

    A task may fork. Where its child comes back from the task, all that follows is the parent's business: its context's
    teardown, its outcome, its loop. The child ends instead.
    """

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if os.getpid() == self._pid:
            return
        match error:
            case None | SystemExit(code=None):
                end_process(0)
            case SystemExit(code=int(code)):
                end_process(code)
            case _:
                log.error("a process that a task has forked ends with %r", error, exc_info=error)
                end_process(1)


def _cancelled(task: Task[..., Any, Any] | None, reason: str) -> Outcome:
    failure = Failure(kind="cancelled", type="", message=reason)
    return Outcome(OutcomeKind.CANCELLED, failure=failure, keep=task.options.keep if task else None)


def _failed(task: Task[..., Any, Any] | None, error: BaseException, kind: str) -> Outcome:
    keep = task.options.keep if task else None
    return Outcome(OutcomeKind.FAILED, failure=failure_of(error, kind), exception=error, keep=keep)
